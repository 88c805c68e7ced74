//! Nobody gets in who does not belong: two machines in a lab, and what each is told and logs.

mod lab;
#[path = "trust/logs.rs"]
mod logs;
#[path = "trust/rules.rs"]
mod rules;

use std::time::{Duration, Instant};

use lab::{DPU_ADDR, Dpu, HOST_ADDR, Host, Lab, Machine, Running, bin, eventually, repository, shim};

const PORT: &str = "7777";
const UDS: &str = "12121";

fn addr() -> [(&'static str, &'static str); 1] {
    [("CMD_NET_ADDR", "tcp://192.168.10.10:7777")]
}

#[track_caller]
fn serve(lab: &Lab) -> Running {
    let log = ("RUST_LOG", "farside::rexec=debug,info");
    let server = lab.spawn_with(Host, &[("CMD_NET_ADDR", "tcp://0.0.0.0:7777"), log], &[bin("rexec_server")]);
    server.wait_for("serving on");
    server
}

#[track_caller]
fn key(lab: &Lab, machine: Machine) -> String {
    lab.run(machine, &[bin("farside"), "key"]).ok().trim_end().to_owned()
}

#[track_caller]
fn trust(lab: &Lab, machine: Machine, words: &[&str]) {
    lab.run(machine, &[&[bin("farside"), "trust"], words].concat()).ok();
}

fn rexec(lab: &Lab, words: &[&str]) -> lab::Said {
    lab.run_with(Dpu, &addr(), &[&[bin("rexec")], words].concat())
}

/// A file that a command would have made.
#[track_caller]
fn nothing_ran(lab: &Lab) {
    assert!(!lab.host(&["test", "-e", "/tmp/ran"]).status.success(), "a command of a stranger's ran");
}

#[test]
fn strangers_are_refused_in_one_line_on_both_sides_and_the_servers_line_lets_them_in() {
    let lab = Lab::strangers();
    let server = serve(&lab);
    // Neither knows the other: the caller's own machine refuses first, and says how that is changed.
    let said = rexec(&lab, &["touch", "/tmp/ran"]).refused();
    let host = key(&lab, Host);
    let base64 = host.split(' ').nth(1).unwrap();
    assert!(said.lines().count() == 1 && said.contains("not trusted here") && said.contains(base64), "{said}");
    // The caller trusts the host, and not the other way round.
    trust(&lab, Dpu, &["host", &host]);
    let said = rexec(&lab, &["touch", "/tmp/ran"]).refused();
    assert!(said.lines().count() == 1 && said.contains("refused") && said.contains("is not trusted here"), "{said}");
    nothing_ran(&lab);
    let line = || server.said().lines().rfind(|l| l.contains("farside trust")).map(str::to_owned);
    eventually("the server's line", Duration::from_secs(5), || line().is_some(), || server.said());
    let line = line().unwrap();
    assert!(line.contains(DPU_ADDR) && line.contains(key(&lab, Dpu).split(' ').nth(1).unwrap()), "{line}");
    // The very command of the log, by a shell.
    let command = &line[line.find("farside trust").unwrap()..];
    let command = command.split(" addr=").next().unwrap().replacen("farside", bin("farside"), 1);
    lab.sh(Host, &command).ok();
    assert_eq!(rexec(&lab, &["echo", "in"]).ok(), "in\n");
    let peers = lab.host(&[bin("farside"), "peers"]).ok();
    assert!(peers.contains("SHA256:") && peers.contains(DPU_ADDR), "{peers}");
}

/// The host's log names the one right that the stranger has asked for. The DPU only dials, and is told of none.
#[test]
fn the_command_for_a_stranger_grants_what_it_asked_for_and_no_more() {
    let lab = Lab::strangers();
    lab.write(Host, "/etc/farside/node.toml", "listen = '0.0.0.0:7777'\n[[export]]\npath = '/home/VMs'\n");
    lab.dpu(&["mkdir", "-p", "/mnt/there"]).ok();
    let at = format!("host={HOST_ADDR}:{PORT}");
    let mount = || lab.dpu(&[bin("mount_qtfs"), "/home/VMs", "/mnt/there", "-o", &at]).refused();
    let hint = |server: &Running| {
        let line = || server.said().lines().rfind(|l| l.contains("farside trust")).map(str::to_owned);
        eventually("the server's line", Duration::from_secs(5), || line().is_some(), || server.said());
        line().unwrap().split(" addr=").next().unwrap().to_owned()
    };
    let node = lab.spawn(Host, &[bin("farside"), "host"]);
    node.wait_for("serving on");
    // Neither trusts the other: the DPU goes before it has said what it wants.
    let said = mount();
    assert!(said.lines().count() == 1 && said.contains("farside trust") && !said.contains("--allow"), "{said}");
    assert!(hint(&node).ends_with("', with --allow and what it may do here, of exec,uds,fs"), "{}", node.said());
    trust(&lab, Dpu, &["host", &key(&lab, Host)]);
    let said = mount();
    assert!(said.lines().count() == 1 && said.contains("refused: your key") && !said.contains("--allow"), "{said}");
    eventually("the right", Duration::from_secs(5), || hint(&node).ends_with("' --allow fs"), || node.said());
    rexec(&lab, &["true"]).refused();
    eventually("the right", Duration::from_secs(5), || hint(&node).ends_with("' --allow exec"), || node.said());
}

#[test]
fn a_revoked_key_is_out_at_once_and_what_it_had_ends() {
    let lab = Lab::up();
    let server = serve(&lab);
    let mut running = lab.spawn_with(Dpu, &addr(), &[bin("rexec"), "sleep", "1000"]);
    let there = || lab.host(&["pgrep", "-fx", "sleep 1000"]).status.success();
    eventually("the command runs", Duration::from_secs(5), there, || server.said());
    lab.host(&[bin("farside"), "revoke", "dpu"]).ok();
    eventually("its stand-in ends", Duration::from_secs(5), || running.ended().is_some(), || server.said());
    assert_eq!(running.ended().unwrap().code(), Some(255), "{}", running.said());
    eventually("and the command", Duration::from_secs(5), || !there(), || server.said());
    server.wait_for("not trusted any more");
    rexec(&lab, &["touch", "/tmp/ran"]).refused();
    nothing_ran(&lab);
}

#[test]
fn a_right_key_gets_no_other_service_than_its_own() {
    let lab = Lab::strangers();
    let (host, dpu) = (key(&lab, Host), key(&lab, Dpu));
    trust(&lab, Host, &["dpu", &dpu, "--allow", "uds"]);
    trust(&lab, Dpu, &["host", &host, "--allow", "uds"]);
    lab.write(Host, "/etc/farside/node.toml", "listen = '0.0.0.0:7777'\n[[export]]\npath = '/home/VMs'\n");
    let node = lab.spawn(Host, &[bin("farside"), "host"]);
    node.wait_for("serving on");
    let said = rexec(&lab, &["touch", "/tmp/ran"]);
    assert!(said.status.code() == Some(126) && said.err().contains("not allowed there"), "{said:?}");
    nothing_ran(&lab);
    let at = format!("host={HOST_ADDR}:{PORT}");
    lab.dpu(&["mkdir", "-p", "/mnt/there"]).ok();
    let said = lab.dpu(&[bin("mount_qtfs"), "/home/VMs", "/mnt/there", "-o", &at]).refused();
    assert!(said.contains("no fs rule"), "{said}");
    let log = node.said();
    assert!(log.contains("no exec rule of /etc/farside/peers.d/dpu.toml"), "{log}");
    assert!(log.contains("no fs rule of /etc/farside/peers.d/dpu.toml"), "{log}");
}

#[test]
fn two_machines_with_one_key_refuse_each_other_and_one_machine_needs_no_set_up() {
    let lab = Lab::strangers();
    let server = serve(&lab);
    let alone = [("CMD_NET_ADDR", "tcp://127.0.0.1:7777")];
    assert_eq!(lab.run_with(Host, &alone, &[bin("rexec"), "echo", "here"]).ok(), "here\n");
    let own = [("CMD_NET_ADDR", "tcp://192.168.10.10:7777")];
    assert_eq!(lab.run_with(Host, &own, &[bin("rexec"), "echo", "here"]).ok(), "here\n");
    // A golden image, on machines that nothing tells apart.
    let secret = lab.read(Host, "/etc/farside/host.key");
    lab.write(Dpu, "/etc/farside/host.key", &secret);
    lab.dpu(&["chmod", "600", "/etc/farside/host.key"]).ok();
    let said = rexec(&lab, &["touch", "/tmp/ran"]).refused();
    assert!(said.contains("two machines with one key"), "{said}");
    nothing_ran(&lab);
    drop(server);
}

#[test]
fn policy_is_about_what_runs_and_not_about_what_was_written() {
    let lab = Lab::up();
    lab.write(
        Host,
        "/etc/farside/peers.d/dpu.toml",
        &format!(
            "keys = [\"{}\"]\n[[exec]]\nallow = '/usr/bin/echo'\nusers = ['nobody', 'root']\nenv = ['PATH', 'LC_*']\n\
         [[exec]]\nallow = '/usr/bin/cat'\nargs = ['/etc/hostname']\nusers = ['root']\ncapabilities = 'none'\n\
         [[exec]]\nallow = '/usr/bin/env'\nenv = ['PATH', 'LC_*']\n\
         [[exec]]\nallow = '/usr/bin/prlimit'\nargs = ['**']\nusers = ['root']\n\
         [[exec]]\nallow = '/var/tmp/mine/*'\nusers = ['root']\n",
            key(&lab, Dpu)
        ),
    );
    let server = serve(&lab);
    assert_eq!(rexec(&lab, &["echo", "by PATH"]).ok(), "by PATH\n");
    assert_eq!(rexec(&lab, &["/usr/bin/../bin/echo", "by a way"]).ok(), "by a way\n");
    assert_eq!(rexec(&lab, &["cat", "/etc/hostname"]).ok(), "host\n");
    for words in [
        &["cat", "/etc/shadow"][..],
        &["cat", "/etc/hostname", "/etc/shadow"],
        &["/usr/bin/id"],
        &["/proc/self/root/usr/bin/id"],
        &["/usr/bin/echo/../id"],
        &["sh", "-c", "id"],
    ] {
        let said = rexec(&lab, words);
        assert!(matches!(said.status.code(), Some(126 | 127)), "{words:?}: {said:?}");
        assert!(said.out().is_empty(), "{said:?}");
    }
    // A link is what it leads to.
    lab.sh(
        Host,
        "mkdir -p /var/tmp/mine && ln -sf /usr/bin/id /var/tmp/mine/echo && cp /usr/bin/id /var/tmp/mine/id && \
                  printf '#!/bin/sh\\nid\\n' >/var/tmp/mine/script && chmod 755 /var/tmp/mine/script",
    )
    .ok();
    assert_eq!(rexec(&lab, &["/var/tmp/mine/echo"]).status.code(), Some(126));
    // What others may change is run as the very file that was judged; a script there is not.
    assert!(rexec(&lab, &["/var/tmp/mine/id", "-u"]).ok() == "0\n");
    assert_eq!(rexec(&lab, &["/var/tmp/mine/script"]).status.code(), Some(126));
    let said = lab.run_with(Dpu, &[addr()[0], ("SECRET", "x"), ("LC_ALL", "C")], &[bin("rexec"), "env"]).ok();
    assert!(said.contains("LC_ALL=C") && !said.contains("SECRET"), "{said}");
    // Of what the caller inherits nothing crosses that could lead the one program astray.
    let limited = ["prlimit", "--core=7:7", "--fsize=9:9", "--nofile=100:100", "--", bin("rexec"), "prlimit", "--raw"];
    let limits = [&limited[..], &["--noheadings", "-o", "RESOURCE,SOFT", "--core", "--fsize", "--nofile"]].concat();
    let said = lab.run_with(Dpu, &addr(), &limits).ok();
    let soft = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).map(String::from);
    assert_eq!((soft("CORE"), soft("FSIZE")), (Some("7".into()), Some("unlimited".into())), "{said}");
    assert!(soft("NOFILE").is_some_and(|limit| limit != "100"), "{said}");
    let log = server.said();
    assert!(log.contains("exec echo \"by PATH\": allowed by /etc/farside/peers.d/dpu.toml:3 (exec rule 1)"), "{log}");
    assert!(log.contains("exec cat /etc/shadow: refused: denied"), "{log}");
    // What `policy check` says is what happens.
    let check = |words: &[&str]| lab.host(&[&[bin("farside"), "policy", "check", "dpu", "exec"], words].concat());
    assert!(check(&["/usr/bin/echo", "x"]).status.success());
    assert_eq!(check(&["/usr/bin/id"]).status.code(), Some(1));
}

#[test]
fn a_policy_with_a_mistake_changes_nothing_and_is_said_by_its_line() {
    let lab = Lab::up();
    let server = serve(&lab);
    let file = "/etc/farside/peers.d/dpu.toml";
    let good = lab.read(Host, file);
    assert_eq!(rexec(&lab, &["echo", "1"]).ok(), "1\n");
    lab.write(Host, file, &format!("{good}\n[[exec]]\nalow = '/usr/bin/id'\n"));
    lab.host(&["pkill", "-HUP", "-x", "rexec_server"]).ok();
    server.wait_for("stay as they were");
    let line = good.lines().count() + 3;
    assert!(server.said().contains(&format!("{file}:{line}")), "{}", server.said());
    assert_eq!(rexec(&lab, &["echo", "2"]).ok(), "2\n", "what was good goes on");
    let keys = good.lines().find(|l| l.starts_with("keys")).unwrap();
    lab.write(Host, file, &format!("{keys}\n[[exec]]\nallow = '/usr/bin/true'\n"));
    lab.host(&["pkill", "-HUP", "-x", "rexec_server"]).ok();
    server.wait_for("keys and peers read");
    assert_eq!(rexec(&lab, &["echo", "3"]).status.code(), Some(126));
    rexec(&lab, &["true"]).ok();
}

#[test]
fn the_group_may_and_others_may_not() {
    let lab = Lab::up();
    let _server = serve(&lab);
    lab.sh(Dpu, "groupadd farside && usermod -a -G farside nobody").ok();
    let vouching = lab.spawn_with(Dpu, &[("CMD_NET_ADDR", "tcp://127.0.0.1:7999")], &[bin("rexec_server")]);
    vouching.wait_for("serving on");
    let as_user = |flags: &[&str]| {
        let who = ["setpriv", "--reuid", "65534", "--regid", "65534"];
        lab.run_with(Dpu, &addr(), &[&who, flags, &[bin("rexec"), "id", "-u"]].concat())
    };
    assert_eq!(as_user(&["--init-groups"]).ok(), "65534\n");
    let said = as_user(&["--clear-groups"]).refused();
    assert!(said.contains("group `farside`"), "{said}");
}

/// Without /etc/passwd the name service answers nothing, which is not the answer that there is no such user.
#[test]
fn a_deny_rule_holds_while_the_name_service_fails() {
    let lab = Lab::up();
    let rules = "[[exec]]\ndeny = '/usr/bin/id'\nusers = ['daemon']\n[[exec]]\ndeny = '/usr/bin/env'\nusers = ['nosuch']\n\
                 [[exec]]\nallow = '/**'\n";
    let file = "/etc/farside/peers.d/dpu.toml";
    lab.write(Host, file, &format!("keys = [\"{}\"]\n{rules}", key(&lab, Dpu)));
    lab.sh(Host, "echo 'passwd: files' >/etc/nsswitch.conf").ok();
    let server = serve(&lab);
    let id = |uid: &str| {
        let who = ["setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", "--inh-caps=-all"];
        lab.run_with(Dpu, &addr(), &[&who[..], &[bin("rexec"), "id", "-u"]].concat())
    };
    let check = |uid: &str| {
        let said = lab.host(&[bin("farside"), "policy", "check", "dpu", "exec", "--user", uid, "/usr/bin/id"]);
        (said.status.code(), said.out())
    };
    lab.sh(Dpu, "mkdir -p /etc/farside && printf '[local]\\nusers = [\"1\", \"2\"]\\n' >/etc/farside/node.toml").ok();
    let vouching = lab.spawn_with(Dpu, &[("CMD_NET_ADDR", "tcp://127.0.0.1:7999")], &[bin("rexec_server")]);
    vouching.wait_for("serving on");
    assert_eq!((id("1").status.code(), id("2").ok().as_str()), (Some(126), "2\n"), "{}", server.said());
    assert_eq!((check("1").0, check("2").0), (Some(1), Some(0)));
    lab.sh(Host, "mv /etc/passwd /etc/passwd.away").ok();
    for uid in ["1", "2"] {
        let said = id(uid);
        assert_eq!(said.status.code(), Some(126), "user {uid}: {said:?}");
        let (code, verdict) = check(uid);
        assert!(code == Some(1) && verdict.contains(&format!("{file}:3 (exec rule 1) may be about it")), "{verdict}");
    }
    let log = server.said();
    let line = log.lines().rfind(|l| l.contains("refused: denied")).unwrap_or_default();
    assert!(line.contains(&format!("{file}:3 (exec rule 1)")) && line.contains("user daemon"), "{log}");
    lab.sh(Host, "mv /etc/passwd.away /etc/passwd").ok();
    assert_eq!(id("2").ok(), "2\n");
    server.wait_for(&format!("{file}:6 (exec rule 2) denies user nosuch, but this machine has no such user"));
}

/// A link that is swapped as fast as a machine can, between a program that may run and one that may not.
#[test]
fn a_link_that_is_swapped_meanwhile_runs_nothing_that_is_not_allowed() {
    let lab = Lab::up();
    lab.write(
        Host,
        "/etc/farside/peers.d/dpu.toml",
        &format!(
            "keys = [\"{}\"]\n[[exec]]\nallow = '/var/tmp/swap/good'\n[[exec]]\nallow = '/usr/bin/true'\n",
            key(&lab, Dpu)
        ),
    );
    lab.sh(
        Host,
        "mkdir -p /var/tmp/swap && cp /usr/bin/echo /var/tmp/swap/good && cp /usr/bin/id /var/tmp/swap/bad && \
                  ln -s good /var/tmp/swap/way",
    )
    .ok();
    let _server = serve(&lab);
    let swap = "while :; do ln -sfn bad /var/tmp/swap/way; ln -sfn good /var/tmp/swap/way; done";
    let _swapping = lab.spawn(Host, &["sh", "-c", swap]);
    // It was met both ways, often, and so it was swapped between looks.
    let (mut ran, mut refused, until) = (0, 0, Instant::now() + Duration::from_secs(60));
    while (ran < 20 || refused < 20) && Instant::now() < until {
        let said = rexec(&lab, &["/var/tmp/swap/way", "-u"]);
        // echo prints its argument, id the number.
        match said.out().as_str() {
            "-u\n" => ran += 1,
            "" => refused += 1,
            _ => panic!("{said:?}"),
        }
    }
    assert!(ran >= 20 && refused >= 20, "it ran {ran} times and was refused {refused} times");
}

#[test]
fn sockets_and_directories_are_judged_by_what_they_are() {
    let lab = Lab::up();
    lab.sh(Host, "mkdir -p /var/tmp/open /var/tmp/closed /home/VMs/ro /home/VMs/rw").ok();
    let rules = "[[uds]]\ndeny = '/var/tmp/open/secret'\n[[uds]]\nallow = '/var/tmp/open/**'\n\
                 [[fs]]\nallow = '/home/VMs/ro'\naccess = 'ro'\n[[fs]]\nallow = '/home/VMs/rw'\naccess = 'rw'\n";
    lab.write(Host, "/etc/farside/peers.d/dpu.toml", &format!("keys = [\"{}\"]\n{rules}", key(&lab, Dpu)));
    lab.write(Host, "/etc/farside/node.toml", "[[export]]\npath = '/home/VMs'\n");
    let script = repository().join("tests/trust/sockets.py");
    let script = script.to_str().unwrap();
    let servers = lab.spawn(Host, &["/usr/bin/python3", script, "serve"]);
    servers.wait_for("READY");
    let host = lab.spawn(Host, &[bin("engine"), "4", "1", HOST_ADDR, UDS, DPU_ADDR, UDS]);
    let dpu = lab.spawn(Dpu, &[bin("udsproxyd"), "1", DPU_ADDR, UDS, HOST_ADDR, UDS]);
    dpu.wait_for("session up");
    host.wait_for("session up");
    let preload = format!("LD_PRELOAD={}", shim().display());
    let said = lab.dpu(&["/usr/bin/env", &preload, "/usr/bin/python3", script, "ask"]).ok();
    assert_eq!(
        said,
        "yes 0\nlink-to-yes 0\nsecret 13\nlink-to-secret 13\nclosed 13\nway-to-closed 13\n",
        "{}",
        host.said()
    );
    let log = host.said();
    assert!(log.contains("denied by /etc/farside/peers.d/dpu.toml:3 (uds rule 1)"), "{log}");
    let mount = |dir: &str| {
        lab.dpu(&["mkdir", "-p", "/mnt/there"]).ok();
        lab.dpu(&[bin("mount_qtfs"), dir, "/mnt/there", "-o", &format!("host={HOST_ADDR}:{UDS}")])
    };
    let said = mount("/home/VMs").refused();
    assert!(said.contains("no fs rule"), "{said}");
    mount("/home/VMs/rw").ok();
    lab.dpu(&["touch", "/mnt/there/x"]).ok();
    lab.dpu(&["umount", "/mnt/there"]).ok();
    mount("/home/VMs/ro").ok();
    assert!(lab.dpu(&["touch", "/mnt/there/x"]).refused().contains("Read-only"));
    lab.dpu(&["umount", "/mnt/there"]).ok();
}

/// Whoever of two has the smaller number keeps the session that it has dialled: which one that is differs from start to start.
#[test]
fn a_host_with_two_addresses_is_the_peer_that_is_dialled_whichever_it_dials_from() {
    let lab = Lab::up();
    lab.sh(Host, "mkdir -p /var/tmp/open /var/tmp/closed").ok();
    lab.sh(
        Host,
        "ip addr add 192.168.10.20/24 dev eth0 && ip route replace 192.168.10.0/24 dev eth0 src 192.168.10.20",
    )
    .ok();
    let script = repository().join("tests/trust/sockets.py");
    let servers = lab.spawn(Host, &["/usr/bin/python3", script.to_str().unwrap(), "serve"]);
    servers.wait_for("READY");
    let ask = format!("import socket; socket.socket(socket.AF_UNIX).connect('{}')", "/var/tmp/open/yes");
    let preload = format!("LD_PRELOAD={}", shim().display());
    let connects = || lab.dpu(&["/usr/bin/env", &preload, "/usr/bin/python3", "-c", &ask]).status.success();
    for round in 0..6 {
        let dpu = lab.spawn(Dpu, &[bin("udsproxyd"), "1", DPU_ADDR, UDS, HOST_ADDR, UDS]);
        dpu.wait_for("no session yet");
        let host = lab.spawn(Host, &[bin("udsproxyd"), "1", "0.0.0.0", UDS, DPU_ADDR, UDS]);
        host.wait_for("session up");
        eventually("a program reaches the host", Duration::from_secs(5), connects, || {
            format!("round {round}\n{}\n{}", host.said(), dpu.said())
        });
        let lines = dpu.said().lines().filter(|line| line.contains("has a session with this node already")).count();
        assert!(lines <= 1, "{}", dpu.said());
    }
}

/// Ten thousand connections that say nothing, and a thousand handshakes a second that are none, from the very address of
/// the machine that is trusted.
#[test]
fn a_trusted_peer_gets_in_through_a_flood() {
    let lab = Lab::up();
    let server = serve(&lab);
    rexec(&lab, &["true"]).ok();
    let memory = || -> u64 {
        let said =
            lab.host(&["sh", "-c", "awk '/^Pss:/ { print $2 }' /proc/$(pgrep -x rexec_server)/smaps_rollup"]).ok();
        said.trim().parse().unwrap()
    };
    let before = memory();
    let script = repository().join("tests/trust/flood.py");
    let flood = ["prlimit", "--nofile=20000:20000", "/usr/bin/python3", script.to_str().unwrap(), HOST_ADDR, PORT];
    let mut flood = lab.spawn(Dpu, &flood);
    flood.wait_for("FLOODING");
    let mut took = Vec::new();
    for _ in 0..11 {
        let began = std::time::Instant::now();
        assert_eq!(rexec(&lab, &["echo", "in"]).ok(), "in\n");
        took.push(began.elapsed());
    }
    took.sort();
    let (usual, slowest) = (took[took.len() / 2], took[took.len() - 1]);
    let grown = memory().saturating_sub(before);
    flood.wait_for("DONE");
    assert!(flood.ended().is_none_or(|s| s.success()), "{}", flood.said());
    let lines = server.said().lines().filter(|l| l.contains("closed: ")).count();
    println!("commands {usual:?}, the slowest {slowest:?}, {grown} KiB more, {lines} lines; {}", flood.said());
    // The two machines share their processors with the flood, and perhaps with other tests.
    assert!(usual < Duration::from_secs(1) && slowest < Duration::from_secs(3), "{usual:?}, {slowest:?}");
    assert!(grown < 16 << 10, "{grown} KiB");
    assert!(lines < 100, "{lines} lines of the log");
}

#[test]
fn plaintext_is_no_word_of_a_normal_build() {
    if cfg!(feature = "plaintext") {
        return;
    }
    for program in ["udsproxyd", "rexec_server", "engine"] {
        let help = std::process::Command::new(bin(program)).arg("--help").output().unwrap();
        assert!(!String::from_utf8_lossy(&help.stdout).contains("plaintext"), "{program}");
    }
    let asked = std::process::Command::new(bin("udsproxyd"))
        .args(["1", "127.0.0.1", "1", "127.0.0.1", "2", "--insecure-plaintext"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&asked.stderr).contains("unexpected argument"));
    // The variable changes nothing: a stranger is one.
    let lab = Lab::strangers();
    let plain = ("FARSIDE_INSECURE_PLAINTEXT", "1");
    let server = lab.spawn_with(Host, &[plain, ("CMD_NET_ADDR", "tcp://0.0.0.0:7777")], &[bin("rexec_server")]);
    server.wait_for("serving on");
    let said = lab.run_with(Dpu, &[addr()[0], plain], &[bin("rexec"), "touch", "/tmp/ran"]).refused();
    assert!(said.contains("not trusted here"), "{said}");
    nothing_ran(&lab);
}
