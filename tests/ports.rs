//! README, help texts, the template of `farside dpu init` and the demo agree on the port, and README says early on what
//! is not there.

use std::path::Path;
use std::process::Command;

use farside::config::{DEFAULT_LISTEN, NodeConfig};
use farside::sys::tempdir::PrivateDir;

const README: &str = include_str!("../README.md");
/// What begins a line about the guide's separate programs, which have the guide's ports.
const GUIDE: [&str; 3] = ["| `CMD_NET_ADDR=tcp://0.0.0.0:7777 rexec_server`", "| `udsproxyd 1 ", "guide's own ports ("];

fn port() -> &'static str {
    DEFAULT_LISTEN.rsplit_once(':').unwrap().1
}

/// Each `ADDR:PORT` of a text whose port is a number; `[::1]:1` and host names included.
fn addresses(text: &str) -> Vec<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || ".:[]".contains(c)));
    let ends_in_port = |word: &&str| {
        let Some((addr, port)) = word.trim_end_matches(['.', ':']).rsplit_once(':') else { return false };
        !addr.is_empty() && (4..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit())
    };
    words.filter(ends_in_port).collect()
}

#[track_caller]
fn assert_all_at_the_port(what: &str, text: &str) {
    for address in addresses(text) {
        assert!(address.ends_with(&format!(":{}", port())), "{what} has {address}, and not port {}", port());
    }
}

fn help(program: &str, words: &[&str]) -> String {
    let out = Command::new(program).args(words).arg("--help").output().unwrap();
    assert!(out.status.success(), "{program} {words:?} --help");
    String::from_utf8(out.stdout).unwrap()
}

/// What `farside dpu init` writes.
fn template() -> (String, NodeConfig) {
    let dir = PrivateDir::new("ports").unwrap();
    let mut init = Command::new(env!("CARGO_BIN_EXE_farside"));
    let out = init.args(["dpu", "init"]).env("FARSIDE_CONFIG_DIR", dir.path()).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    (std::fs::read_to_string(dir.path().join("node.toml")).unwrap(), NodeConfig::load(dir.path()).unwrap())
}

#[test]
fn the_readme_and_the_template_name_the_same_nodes() {
    let main_way: String = README
        .lines()
        .filter(|line| !GUIDE.iter().any(|own| line.contains(own)))
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(addresses(&main_way).len() >= 3, "README shows where to serve");
    assert_all_at_the_port("README", &main_way);
    let (text, config) = template();
    assert_all_at_the_port("the template", &text);
    let peer = config.peer.unwrap();
    assert!(README.contains(&format!("listen = \"{peer}\"")), "README's host does not listen on {peer}");
    assert_eq!(config.listen.unwrap().rsplit_once(':').unwrap().1, port());
}

#[test]
fn every_help_names_that_port() {
    let farside = env!("CARGO_BIN_EXE_farside");
    for (program, words) in [
        (farside, &[][..]),
        (farside, &["host"]),
        (farside, &["dpu"]),
        (farside, &["dpu", "up"]),
        (farside, &["trust"]),
        (farside, &["enrol"]),
        (env!("CARGO_BIN_EXE_rexec"), &[]),
        (env!("CARGO_BIN_EXE_rexec_server"), &[]),
        (env!("CARGO_BIN_EXE_udsproxyd"), &[]),
        (env!("CARGO_BIN_EXE_engine"), &[]),
        (env!("CARGO_BIN_EXE_mount_qtfs"), &[]),
    ] {
        assert_all_at_the_port(&format!("{program} {words:?} --help"), &help(program, words));
    }
    for text in [help(farside, &["host"]), help(env!("CARGO_BIN_EXE_engine"), &[])] {
        assert!(text.replace('\n', " ").contains(DEFAULT_LISTEN), "{text}");
    }
}

#[test]
fn the_demo_uses_that_port() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/demo");
    let demo = std::fs::read_to_string(demo).unwrap();
    assert!(demo.contains(&format!(" PORT={} ", port())), "tools/demo has another PORT");
}

/// Who reads on does so knowing what is not there.
#[test]
fn limitations_come_before_anything_that_is_typed() {
    let headings: Vec<&str> = README.lines().filter(|line| line.starts_with("## ")).collect();
    assert_eq!(headings[0], "## Limitations", "{headings:?}");
    let text = README.split("\n## ").find(|part| part.starts_with("Limitations")).unwrap();
    for what in [
        "resumed",
        "/proc",
        "/sys",
        "cgroups",
        "/dev/pts",
        "eventfds",
        "network sockets",
        "memfd",
        "reads ahead",
        "terminal",
        "not the command's children",
        "ls -lR",
        "MAP_SHARED",
        "packages",
        "systemd units",
    ] {
        assert!(text.contains(what), "Limitations do not say {what}");
    }
    assert_eq!(README.matches("narrow still").count(), 0);
}
