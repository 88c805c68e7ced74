//! Records, datagrams, exports and the daemon's own manners between two machines: each test is a promise.
//!
//! The clients (`uds/records_near.py`, in the function named like the test) are on the DPU, the servers
//! (`uds/records_far.py`) on the host.

mod lab;
#[path = "rexec/talk.rs"]
mod talk;

use std::time::Duration;

use lab::{DPU_ADDR, Dpu, HOST_ADDR, Host, Lab, Machine, Running, bin, eventually, repository, shim};
use talk::Talk;

const PORT: &str = "12121";
const DIR: &str = "/var/tmp/far";

struct Two {
    lab: Lab,
    dpu: Running,
    host: Running,
    servers: Option<Running>,
}

fn script(name: &str) -> String {
    repository().join("tests/uds").join(name).to_str().unwrap().to_owned()
}

fn serve(lab: &Lab) -> Running {
    lab.run(Host, &["mkdir", "-p", DIR]).ok();
    lab.run(Dpu, &["mkdir", "-p", DIR]).ok();
    let servers = lab.spawn(Host, &["/usr/bin/python3", &script("records_far.py"), DIR]);
    servers.wait_for("READY");
    servers
}

fn start(lab: &Lab, machine: Machine, env: &[(&str, &str)], more: &[&str]) -> Running {
    let (own, peer) = if machine == Host { (HOST_ADDR, DPU_ADDR) } else { (DPU_ADDR, HOST_ADDR) };
    let words = [&[bin("udsproxyd"), "1", own, PORT, peer, PORT], more].concat();
    let daemon = lab.spawn_with(machine, env, &words);
    daemon.wait_for("serving on");
    daemon
}

impl Two {
    #[track_caller]
    fn up() -> Self {
        Self::up_with(Lab::up(), &[], &[])
    }

    #[track_caller]
    fn up_with(lab: Lab, env: &[(&str, &str)], dpu: &[&str]) -> Self {
        let servers = Some(serve(&lab));
        let host = start(&lab, Host, &[], &[]);
        let dpu = start(&lab, Dpu, env, dpu);
        dpu.wait_for("session up");
        host.wait_for("session up");
        Self { lab, dpu, host, servers }
    }

    fn talk(&self, promise: &str, args: &[&str]) -> Talk {
        let script = script("records_near.py");
        let preload = format!("LD_PRELOAD={}", shim().display());
        // What is exported needs no library.
        let env: &[&str] = if args.is_empty() { &["/usr/bin/env", &preload] } else { &["/usr/bin/env"] };
        let program = [env, &["/usr/bin/python3", &script, promise, DIR], args].concat();
        Talk::start(self.lab.raw(Dpu, &program), promise)
    }

    #[track_caller]
    fn keeps(&self, promise: &str, args: &[&str]) {
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.talk(promise, args).ends()));
        assert!(ran.is_ok(), "{promise}, see above; {}", self.logs());
    }

    fn logs(&self) -> String {
        let servers = self.servers.as_ref().map(Running::said).unwrap_or_default();
        format!("host:\n{}\ndpu:\n{}\nservers:\n{servers}", self.host.said(), self.dpu.said())
    }

    #[track_caller]
    fn fds(&self, machine: Machine) -> usize {
        let said = self.lab.sh(machine, "ls /proc/$(pgrep -x udsproxyd)/fd | wc -l").ok();
        said.trim().parse().expect("a count")
    }

    fn signal(&self, signal: &str) {
        self.lab.run(Dpu, &["pkill", signal, "-x", "udsproxyd"]).ok();
    }
}

macro_rules! promises {
    ($($name:ident)+) => {
        $(#[test]
        fn $name() {
            Two::up().keeps(stringify!($name), &[]);
        })+
    };
}

promises! {
    seqpacket_records_stay_apart
    records_stay_apart_where_the_server_speaks_first
    datagrams_are_answered
    datagrams_keep_their_order
    records_sent_just_before_a_close_arrive
    fds_come_with_their_record
    a_syslog_over_there_hears_programs_here
    children_and_threads_do_it_too
}

#[test]
fn a_server_that_was_killed_refuses() {
    let mut two = Two::up();
    let mut near = two.talk("a_server_that_was_killed_refuses", &[]);
    near.hear("READY");
    two.lab.host(&["pkill", "-KILL", "-f", "uds/records_far.py"]).ok();
    near.say("go");
    near.ends();
    two.servers = Some(serve(&two.lab));
    two.keeps("datagrams_are_answered", &[]);
}

#[test]
fn what_a_rule_denies_is_denied_to_the_other_machine_too() {
    let lab = Lab::up();
    let _servers = serve(&lab);
    let host = start(&lab, Host, &[], &["--rule", &format!("deny:{DIR}/seq")]);
    let dpu = start(&lab, Dpu, &[], &[]);
    dpu.wait_for("session up");
    host.wait_for("session up");
    let script = "import errno, socket, sys
s = socket.socket(socket.AF_UNIX, int(sys.argv[2]))
print(errno.errorcode.get(s.connect_ex(sys.argv[1]), 'OK'))";
    let connect = |name: &str, kind: &str| {
        let (preload, path) = (format!("LD_PRELOAD={}", shim().display()), format!("{DIR}/{name}"));
        lab.run(Dpu, &["/usr/bin/env", &preload, "/usr/bin/python3", "-c", script, &path, kind]).ok()
    };
    assert_eq!((connect("seq", "5"), connect("stream", "1")), ("EACCES\n".into(), "OK\n".into()));
    assert!(host.said().contains("refused: by a rule"), "{}", host.said());
    lab.write(Host, "/etc/farside/node.toml", &format!("[uds]\nrules = ['deny:{DIR}']\n"));
    lab.run(Host, &["pkill", "-HUP", "-x", "udsproxyd"]).ok();
    host.wait_for("reloaded");
    assert_eq!(connect("stream", "1"), "EACCES\n");
}

#[test]
fn sockets_come_and_go_and_leave_nothing() {
    let two = Two::up();
    two.keeps("sockets_come_and_go", &[]);
    std::thread::sleep(Duration::from_secs(13));
    let before = (two.fds(Host), two.fds(Dpu));
    two.keeps("sockets_come_and_go", &[]);
    let now = || (two.fds(Host), two.fds(Dpu));
    let back = || now().0 <= before.0 && now().1 <= before.1;
    eventually("the fds return", Duration::from_secs(20), back, || format!("{:?}, {before:?} before", now()));
}

#[test]
fn a_node_program_knows_nothing() {
    let two = Two::up();
    let preload = format!("LD_PRELOAD={}", shim().display());
    let path = format!("{DIR}/stream");
    let said = two.lab.run(Dpu, &["/usr/bin/env", &preload, "/usr/bin/node", &script("client.js"), &path]);
    assert_eq!(said.ok(), "fine\n", "{}", two.logs());
}

#[test]
fn exports_are_found_without_a_library_and_follow_node_toml() {
    let lab = Lab::up();
    let entry =
        |at: &str| format!("[[uds.export]]\nlocal = '/run/{at}'\nfar = '{DIR}/stream'\nmode = '0662'\ngid = 107\n");
    lab.write(Dpu, "/etc/farside/node.toml", &entry("from-file"));
    let typed = format!("/run/typed={DIR}/stream");
    let two = Two::up_with(lab, &[], &["--export", &typed]);
    let toml = |text: &str| two.lab.write(Dpu, "/etc/farside/node.toml", text);
    let reaches = |at: &str, expected: &str| {
        two.keeps("an_exported_socket_needs_no_library", &[&format!("/run/{at}"), expected]);
    };
    reaches("from-file", "OK");
    reaches("typed", "OK");
    // Whatever the daemon's umask.
    let modes = two.lab.sh(Dpu, "stat -c '%a %g' /run/from-file /run/typed").ok();
    assert_eq!(modes, "662 107\n600 0\n");
    toml(&entry("renamed"));
    two.signal("-HUP");
    two.dpu.wait_for("reloaded");
    reaches("renamed", "OK");
    reaches("typed", "OK");
    reaches("from-file", "ENOENT");
    toml(&(entry("third") + "kind = 'packets'\n"));
    two.signal("-HUP");
    two.dpu.wait_for("not reloaded, all stays as it is");
    assert!(two.dpu.said().contains("line 6"), "{}", two.dpu.said());
    reaches("renamed", "OK");
    two.signal("-TERM");
    let gone = || two.lab.run(Dpu, &["pgrep", "-x", "udsproxyd"]).out().is_empty();
    eventually("the end", Duration::from_secs(8), gone, || two.dpu.said());
    let left = two.lab.sh(Dpu, "ls -d /run/typed /run/renamed /run/farside /run/qtfs 2>/dev/null || true").ok();
    assert_eq!(left, "");
}

/// A receiver of notifications that prints each on one line.
const RECEIVER: &str = "
import os, socket, sys
name = sys.argv[1]
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind('\\0' + name[1:] if name[0] == '@' else name)
print('BOUND', flush=True)
while True:
    print(s.recv(1000).decode().replace('\\n', ' '), flush=True)";

#[test]
fn systemd_is_told_when_it_is_ready_reloads_and_stops() {
    for name in ["/run/notify-test", "@notify test"] {
        let lab = Lab::up();
        let receiver = lab.spawn(Dpu, &["/usr/bin/python3", "-c", RECEIVER, name]);
        receiver.wait_for("BOUND");
        let daemon = start(&lab, Dpu, &[("NOTIFY_SOCKET", name)], &[]);
        receiver.wait_for("READY=1 STATUS=serving on");
        receiver.wait_for(&format!("connecting to {HOST_ADDR}:{PORT}"));
        let host = start(&lab, Host, &[], &[]);
        receiver.wait_for("session up with host (");
        lab.run(Host, &["pkill", "-x", "udsproxyd"]).ok();
        let again = || receiver.said().rsplit("session up").next().is_some_and(|s| s.contains("connecting to"));
        eventually("the status shows the end", Duration::from_secs(8), again, || receiver.said());
        drop(host);
        let link = lab.run(Dpu, &["readlink", "/var/run/qtfs/remote_uds.sock"]).ok();
        assert_eq!(link, "/run/farside/uds.sock\n");
        for (signal, said) in [("-HUP", "RELOADING=1 MONOTONIC_USEC="), ("-TERM", "STOPPING=1")] {
            lab.run(Dpu, &["pkill", signal, "-x", "udsproxyd"]).ok();
            receiver.wait_for(said);
        }
        assert_eq!(receiver.said().matches("READY=1").count(), 2, "{}", receiver.said());
        drop(daemon);
    }
}

#[test]
fn addresses_may_be_ipv6_and_names() {
    let lab = Lab::up();
    let _servers = serve(&lab);
    lab.sh(Host, "ip link set lo up; printf '127.0.0.1 localhost\\n::1 localhost\\n::1 six\\n' >/etc/hosts").ok();
    for (one, other) in [("::1", "six"), ("localhost", "127.0.0.1"), ("six", "localhost")] {
        let daemon = |dir: &str, own: [&str; 2], peer: [&str; 2]| {
            let socket = format!("/run/{dir}/uds.sock");
            let words = [bin("udsproxyd"), "1", own[0], own[1], peer[0], peer[1], "--log", "info", "--socket", &socket];
            lab.spawn(Host, &words)
        };
        let near = daemon("near", [one, "2001"], [other, "2002"]);
        near.wait_for("no session yet");
        let far = daemon("far", [other, "2002"], [one, "2001"]);
        for daemon in [&near, &far] {
            daemon.wait_for("session up");
        }
        lab.run(Host, &["pkill", "-x", "udsproxyd"]).ok();
        let gone = || lab.run(Host, &["pgrep", "-x", "udsproxyd"]).out().is_empty();
        eventually("the end", Duration::from_secs(8), gone, String::new);
    }
}
