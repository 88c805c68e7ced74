//! Keys, trust and policy as a person meets them: the real program on directories of a test's own.
//!
//! Two machines are two directories. `enrol` goes over an ssh that the test has put into PATH, and, where there is an
//! sshd, over a real one on loopback.

#[path = "keys/enrol.rs"]
mod enrol;
#[path = "keys/machines.rs"]
mod machines;
#[path = "common/skip.rs"]
mod skip;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use machines::Machine;

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn a_key_is_one_line_made_once() {
    let dpu = Machine::new("dpu");
    let line = dpu.farside(&["key"]).ok();
    let words: Vec<&str> = line.split(' ').collect();
    assert_eq!((words.len(), words[0], line.matches('\n').count()), (3, "farside-ed25519", 1), "{line:?}");
    assert_eq!(dpu.farside(&["key"]).ok(), line);
    assert_eq!(fs::metadata(dpu.path("host.key")).unwrap().permissions().mode() & 0o7777, 0o600);
}

#[test]
fn starters_at_once_agree_on_one_key() {
    let dpu = Machine::new("dpu");
    let all: Vec<_> = (0..12).map(|_| dpu.start(&["key"])).collect();
    let lines: Vec<String> =
        all.into_iter().map(|one| machines::Said::of(one.wait_with_output().unwrap()).ok()).collect();
    assert!(lines.iter().all(|line| *line == lines[0]), "{lines:?}");
    let left: Vec<_> = fs::read_dir(&dpu.dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "the key and the lock: {left:?}");
}

#[test]
fn what_others_could_have_touched_is_refused_in_one_line() {
    let dpu = Machine::new("dpu");
    let line = Machine::new("host").key();
    dpu.farside(&["trust", "host", &line]).ok();
    dpu.key();
    for (name, bad, good, part) in [
        ("host.key", 0o644, 0o600, "chmod 600"),
        ("peers.d/host.toml", 0o666, 0o600, "chmod go-w"),
        ("peers.d", 0o777, 0o700, "chmod go-w"),
        ("", 0o775, 0o755, "chmod go-w"),
    ] {
        let mode = |mode| fs::set_permissions(dpu.path(name), fs::Permissions::from_mode(mode)).unwrap();
        mode(bad);
        let said = dpu.farside(&["peers"]).refused();
        assert!(said.contains(part), "{said}");
        mode(good);
    }
    if is_root() {
        chown(dpu.path("host.key"), Some(1), None).unwrap();
        assert!(dpu.farside(&["key"]).refused().contains("belongs to user 1"));
        chown(dpu.path("host.key"), Some(0), None).unwrap();
    }
    fs::rename(dpu.path("host.key"), dpu.path("elsewhere")).unwrap();
    symlink(dpu.path("elsewhere"), dpu.path("host.key")).unwrap();
    assert!(dpu.farside(&["key"]).refused().contains("symbolic link"));
}

#[test]
fn a_copied_key_is_set_aside_and_that_is_said_once() {
    let dpu = Machine::new("dpu");
    let line = dpu.key();
    let text = fs::read_to_string(dpu.path("host.key")).unwrap();
    let own = text.lines().find(|l| l.starts_with("machine-id")).unwrap();
    if own.ends_with("\"\"") {
        skip::skip("this machine has nothing to tell it by");
        return;
    }
    fs::write(dpu.path("host.key"), text.replace(own, "machine-id = \"machine-id:0123\"")).unwrap();
    let said = dpu.farside(&["key"]);
    assert_eq!(said.stderr.lines().count(), 1, "{}", said.stderr);
    assert!(
        said.stderr.contains("machine-id:0123") && said.stderr.contains("host.key.of-machine-id_0123"),
        "{}",
        said.stderr
    );
    assert_ne!(said.ok().trim(), line);
    assert!(dpu.path("host.key.of-machine-id_0123").exists());
    assert_eq!(dpu.farside(&["key"]).stderr, "");
}

#[test]
fn a_peer_is_trusted_listed_and_revoked() {
    let (host, dpu) = (Machine::new("host"), Machine::new("dpu"));
    let line = dpu.key();
    assert!(host.farside(&["peers"]).ok().contains("nobody"));
    let said = host.farside(&["trust", "dpu", &line, "--allow", "exec,fs", "--address", "10.0.0.0/8"]).ok();
    assert!(said.contains("SHA256:") && said.contains("peers.d/dpu.toml"), "{said}");
    let listed = host.farside(&["peers"]).ok();
    for part in ["dpu", "SHA256:", "exec (1 rule), fs (1 rule)", "10.0.0.0/8"] {
        assert!(listed.contains(part), "{listed}");
    }
    let json = host.farside(&["peers", "--json"]).ok();
    assert!(
        json.contains("\"name\": \"dpu\"") && json.contains("\"exec\": 1") && json.contains("\"seen\": null"),
        "{json}"
    );
    let other = Machine::new("other").key();
    assert!(host.farside(&["trust", "dpu", &other]).refused().contains("--add"));
    assert!(host.farside(&["trust", "again", &line]).refused().contains("dpu's key already"));
    let own = host.key();
    assert!(host.farside(&["trust", "me", &own]).refused().contains("own key"));
    assert!(host.farside(&["trust", "../x", &other]).refused().contains("is no name"));
    assert!(host.farside(&["trust", "x", "ssh-ed25519 AAAA x"]).refused().contains("farside-ed25519"));
    host.farside(&["revoke", "dpu"]).ok();
    assert!(host.farside(&["peers"]).ok().contains("nobody"));
    assert!(host.farside(&["revoke", "dpu"]).refused().contains("not trusted"));
}

#[test]
fn a_line_may_come_unquoted() {
    let (host, dpu) = (Machine::new("host"), Machine::new("dpu"));
    let line = dpu.key();
    let words: Vec<&str> = ["trust", "dpu"].into_iter().chain(line.split(' ')).chain(["--allow", "uds"]).collect();
    host.farside(&words).ok();
    assert!(host.farside(&["peers"]).ok().contains("uds ("));
}

#[test]
fn a_rotation_is_what_it_says_to_type() {
    let (host, dpu) = (Machine::new("host"), Machine::new("dpu"));
    let old = dpu.key();
    let name = old.split(' ').nth(2).unwrap().to_owned();
    host.farside(&["trust", &name, &old, "--allow", "uds"]).ok();
    let mine = format!("{}# mine\n", fs::read_to_string(host.path(&format!("peers.d/{name}.toml"))).unwrap());
    fs::write(host.path(&format!("peers.d/{name}.toml")), &mine).unwrap();
    assert!(dpu.farside(&["rotate", "--finish"]).refused().contains("farside rotate"));
    let begun = dpu.farside(&["rotate"]).ok();
    assert_eq!(dpu.farside(&["rotate"]).ok().lines().last(), begun.lines().last(), "begun once");
    assert_eq!(dpu.key(), old);
    host.shell(begun.lines().last().unwrap()).ok();
    let listed = host.farside(&["peers"]).ok();
    assert_eq!(listed.matches("SHA256:").count(), 2, "{listed}");
    let done = dpu.farside(&["rotate", "--finish"]).ok();
    assert_ne!(dpu.key(), old);
    host.shell(done.lines().last().unwrap()).ok();
    let kept = fs::read_to_string(host.path(&format!("peers.d/{name}.toml"))).unwrap();
    assert!(kept.contains(&dpu.key()) && !kept.contains(&old) && kept.ends_with("# mine\n"), "{kept}");
    dpu.farside(&["rotate"]).ok();
    let presented = dpu.key();
    dpu.farside(&["rotate", "--abort"]).ok();
    assert_eq!(dpu.key(), presented);
}

/// A host whose peer `dpu` has these rules.
fn with_policy(rules: &str) -> Machine {
    let (host, dpu) = (Machine::new("host"), Machine::new("dpu"));
    host.farside(&["trust", "dpu", &dpu.key()]).ok();
    fs::write(host.path("peers.d/dpu.toml"), format!("keys = [\"{}\"]\n{rules}", dpu.key())).unwrap();
    host
}

#[test]
fn a_check_says_which_line_decides() {
    let host =
        with_policy("[[exec]]\ndeny = \"/usr/bin/env\"\n[[exec]]\nallow = \"/usr/bin/*\"\nargs = [\"-a\", \"**\"]\n");
    let check = |words: &[&str]| host.farside(&[&["policy", "check", "dpu", "exec"], words].concat());
    let said = check(&["/usr/bin/id", "-a", "--more"]).ok();
    assert!(said.contains("allowed by") && said.contains("dpu.toml:5 (exec rule 2)"), "{said}");
    let said = check(&["/usr/bin/env", "-a"]).denied();
    assert!(said.contains("denied by") && said.contains("dpu.toml:3 (exec rule 1)"), "{said}");
    assert!(check(&["/usr/bin/id"]).denied().contains("not with these arguments"));
    assert!(check(&["/nonexistent"]).stderr.contains("not found"));
    assert!(host.farside(&["policy", "check", "nobody", "exec", "/bin/ls"]).stderr.contains("not trusted"));
}

#[test]
fn a_command_is_judged_by_what_it_is_and_not_by_what_it_is_called() {
    let host = with_policy("[[exec]]\nallow = \"/usr/bin/id\"\n");
    let bin = host.path("bin");
    fs::create_dir(&bin).unwrap();
    for (name, target) in [("id", "/bin/sh"), ("mine", "/usr/bin/id")] {
        symlink(target, bin.join(name)).unwrap();
    }
    let check = |command: &str| host.farside(&["policy", "check", "dpu", "exec", command]);
    let linked = bin.join("id");
    let said = check(linked.to_str().unwrap()).denied();
    assert!(said.contains(" is /usr/bin/"), "{said}");
    check(bin.join("mine").to_str().unwrap()).ok();
    check("/usr/bin/../../bin/sh").denied();
    check("/proc/self/root/bin/sh").denied();
    check("/proc/self/root/usr/bin/id").ok();
    assert!(host.shell_with_path(&bin, "farside policy check dpu exec id").denied().contains(" is /usr/bin/"));
}

#[test]
fn sockets_and_directories_are_checked_too() {
    let host = with_policy(
        "[[uds]]\nallow = \"/var/run/x/**\"\n[[uds]]\nallow = \"@vm-*\"\n[[fs]]\nallow = \"/srv\"\naccess = \"ro\"\n",
    );
    let check = |words: &[&str]| host.farside(&[&["policy", "check", "dpu"], words].concat());
    check(&["uds", "/run/x/sock"]).ok();
    check(&["uds", "/run/x/../sock"]).denied();
    check(&["uds", "@vm-1"]).ok();
    check(&["uds", "@other"]).denied();
    assert!(check(&["fs", "/srv/x"]).denied().contains("[[export]]"));
    fs::write(host.path("node.toml"), "[[export]]\npath = \"/srv\"\n").unwrap();
    check(&["fs", "/srv/x"]).ok();
    assert!(check(&["fs", "--write", "/srv/x"]).denied().contains("read-only"));
    check(&["fs", "/etc"]).denied();
}

#[test]
fn the_machines_lists_narrow_and_a_bad_one_stops_everything() {
    let host = with_policy("[[exec]]\nallow = \"/usr/bin/*\"\n");
    let check = |command: &str| host.farside(&["policy", "check", "dpu", "exec", command]);
    check("/usr/bin/id").ok();
    host.list("rexec", "/usr/bin/env\n", 0o400);
    assert!(check("/usr/bin/id").denied().contains("does not list it"));
    check("/usr/bin/env").ok();
    host.list("rexec", "/usr/bin/env\n", 0o644);
    let said = check("/usr/bin/env").denied();
    assert!(said.contains("chmod 400") && said.contains("no peer may run commands"), "{said}");
    host.list("rexec", "env\n", 0o400);
    assert!(check("/usr/bin/env").denied().contains("whitelist:1: "));
    let host = with_policy("[[fs]]\nallow = \"/\"\naccess = \"rw\"\n");
    fs::write(host.path("node.toml"), "[[export]]\npath = \"/\"\n").unwrap();
    host.list("qtfs", "[Mount]\nPath=/srv\n[Write]\nPath=/srv/w\n", 0o644);
    let check = |words: &[&str]| host.farside(&[&["policy", "check", "dpu", "fs"], words].concat());
    check(&["/srv/x"]).ok();
    check(&["/etc/x"]).denied();
    assert!(check(&["--write", "/srv/x"]).denied().contains("[Write]"));
    check(&["--write", "/srv/w/x"]).ok();
}

#[test]
fn a_mistake_in_a_policy_is_said_by_line() {
    let host = with_policy("[[exec]]\nalow = \"/bin/ls\"\n");
    let said = host.farside(&["peers"]).refused();
    assert!(said.contains("peers.d/dpu.toml:3: ") && said.contains("alow"), "{said}");
}
