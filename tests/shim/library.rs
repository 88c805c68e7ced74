//! The library itself: what it exports, what it needs, and that no panic path is in it.

use std::process::Command;

use crate::lab::{lab, shim};
use crate::skip::skip;

fn tool(program: &str, args: &[&str]) -> Option<String> {
    match Command::new(program).args(args).arg(shim()).output() {
        Ok(output) => Some(String::from_utf8(output.stdout).unwrap()),
        Err(e) => {
            skip(format_args!("{program}: {e}"));
            None
        }
    }
}

#[test]
fn it_exports_what_it_interposes_and_cannot_panic() {
    let Some(_lab) = lab("nm") else { return };
    let Some(symbols) = tool("nm", &["-D"]) else { return };
    let mut exported = Vec::new();
    let mut imported = Vec::new();
    for line in symbols.lines() {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            [_, _, name] => exported.push(name),
            ["U", name] => imported.push(name.split('@').next().unwrap()),
            // Weak: the C runtime's own hooks.
            _ => {}
        }
    }
    assert_eq!(exported, ["connect", "sendmmsg", "sendmsg", "sendto"]);
    imported.sort_unstable();
    let expected = ["__errno_location", "bcmp", "dlsym", "memcpy", "memset", "secure_getenv", "strlen", "syscall"];
    assert_eq!(imported, expected, "no abort (a reachable panic), no malloc, no lock");
    let Some(size) = tool("size", &[]) else { return };
    eprintln!("libudsproxy.so:\n{size}");
    let text: usize = size.lines().nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    assert!(text < 16_000, "{text} bytes of text");
}

#[test]
fn it_loads_with_an_old_glibc() {
    let Some(_lab) = lab("glibc") else { return };
    let Some(table) = tool("objdump", &["-T"]) else { return };
    for version in table.split(|c: char| c.is_whitespace() || "()".contains(c)).filter_map(|w| w.strip_prefix("GLIBC_"))
    {
        let numbers: Vec<u32> = version.split('.').map(|n| n.parse().unwrap()).collect();
        assert!(numbers <= vec![2, 17], "GLIBC_{version}: Rust itself asks for no more than 2.17");
    }
}
