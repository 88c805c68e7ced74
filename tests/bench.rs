//! proxy-bench: a short run of `compare` measures what it says of everybody who takes part, without an error. No time is
//! asserted: what is fast is for a quiet machine.

#[path = "lab/mod.rs"]
mod lab;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The peers, and what shows that one is installed; the first of them is measured.
const PEERS: [(&str, &str); 4] = [
    ("haproxy", "/usr/sbin/haproxy"),
    ("nginx", "/usr/lib/nginx/modules/ngx_stream_module.so"),
    ("socat", "/usr/bin/socat"),
    ("ssh", "/usr/sbin/sshd"),
];

fn proxy_bench() -> PathBuf {
    let path = Path::new(lab::bin("farside")).with_file_name("proxy-bench");
    assert!(path.exists(), "{} is missing: cargo build -p proxy-bench", path.display());
    path
}

struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("farside-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_short_comparison_measures_every_row_without_an_error() {
    assert!(lab::shim().exists());
    let peer = PEERS.iter().find(|(_, proof)| Path::new(proof).exists()).expect("tools/setup has openssh-server").0;
    let scratch = Scratch::new();
    let run = Command::new(proxy_bench())
        .args(["compare", "--rounds", "1", "--seconds", "0.2", "--idle-connections", "100", "--out"])
        .arg(&scratch.0)
        .arg("--with")
        .arg(format!("unix,tcp,ours,{peer}"))
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{out}\n{err}");

    // Every row of the tables, with figures in it.
    let text = std::fs::read_to_string(scratch.0.join("compare.jsonl")).unwrap();
    let measured = |cell: &str, entrant: &str| {
        let is_it = |l: &&str| l.contains(&format!(r#""cell":"{cell}","entrant":"{entrant}""#));
        text.lines().filter(is_it).any(|l| l.contains(r#""figures":{""#) && !l.contains(r#""error""#))
    };
    let mut wanted: BTreeSet<(&str, &str)> = BTreeSet::new();
    for cell in ["rt1", "rt64", "bulk1", "bulk16", "churn1", "churn16"] {
        wanted.extend(["unix", "tcp", "ours", peer].map(|entrant| (cell, entrant)));
    }
    for cell in ["calls64", "idle"] {
        wanted.extend(["ours", peer].map(|entrant| (cell, entrant)));
    }
    wanted.extend([("churn1", "ours+shim"), ("churn16", "ours+shim"), ("mixed", "tcp"), ("mixed", "ours")]);
    wanted.extend([("fds1", "unix"), ("fds1", "ours"), ("fds16", "unix"), ("fds16", "ours")]);
    let missing: Vec<_> = wanted.iter().filter(|(cell, entrant)| !measured(cell, entrant)).collect();
    assert!(missing.is_empty(), "{missing:?}\n{out}\n{text}");

    // One round says nothing, and must not pretend to.
    assert!(out.contains("UNDECIDED") && !out.contains("PASS") && !out.contains("FAIL"), "{out}");

    let page = Command::new(proxy_bench()).arg("report").arg(&scratch.0).status().unwrap();
    assert!(page.success());
    let page = std::fs::read_to_string(scratch.0.join("report.html")).unwrap();
    assert!(page.matches("<svg").count() >= 10, "bars and curves");
}

#[test]
fn a_proxy_that_changes_a_byte_ends_a_measurement_with_an_error() {
    let scratch = Scratch::new();
    let socket = scratch.0.join("liar");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut client, _) = listener.accept().unwrap();
        let mut wish = [0; 5];
        client.read_exact(&mut wish).unwrap();
        let mut request = [0; 64];
        for number in 0.. {
            client.read_exact(&mut request).unwrap();
            request[40] ^= u8::from(number == 100);
            client.write_all(&request).unwrap();
        }
    });
    let words = ["latency", "--seconds", "1", "--warm-up", "0", "--connect"];
    let run = Command::new(proxy_bench()).args(words).arg(&socket).output().unwrap();
    let err = String::from_utf8_lossy(&run.stderr);
    assert!(!run.status.success() && err.contains("another answer"), "{err}");
}
