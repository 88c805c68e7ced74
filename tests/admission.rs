//! Permission before resources: who may do nothing costs nothing, and nobody who waits for a file makes others wait.

mod lab;

use std::time::{Duration, Instant};

use lab::{DPU_ADDR, Dpu, HOST_ADDR, Host, Lab, Machine, Running, bin, eventually, repository, shim};

const PORT: &str = "12121";

fn script(name: &str) -> String {
    repository().join("tests/admission").join(name).display().to_string()
}

/// udsproxyd on both machines, and a server on the host at /var/tmp/far.
struct Daemons {
    lab: Lab,
    host: Running,
    dpu: Running,
    _server: Running,
}

impl Daemons {
    #[track_caller]
    fn up(lab: Lab) -> Self {
        let server = lab.spawn(Host, &["/usr/bin/python3", &script("near.py"), "serve", "/var/tmp/far"]);
        server.wait_for("READY");
        let start = |machine: Machine, own: &str, peer: &str| {
            lab.spawn(machine, &[bin("udsproxyd"), "1", own, PORT, peer, PORT])
        };
        let (host, dpu) = (start(Host, HOST_ADDR, DPU_ADDR), start(Dpu, DPU_ADDR, HOST_ADDR));
        [&host, &dpu].iter().for_each(|daemon| daemon.wait_for("session up"));
        Self { lab, host, dpu, _server: server }
    }

    /// What a client on the DPU says.
    #[track_caller]
    fn near(&self, words: &[&str]) -> String {
        let (preload, script) = (format!("LD_PRELOAD={}", shim().display()), script("near.py"));
        let program = ["/usr/bin/env", &preload, "/usr/bin/python3", &script];
        self.lab.dpu(&[&program, words].concat()).ok()
    }
}

fn number(line: &str, name: &str) -> f64 {
    let mut words = line.split_whitespace();
    words.find(|word| *word == name).unwrap_or_else(|| panic!("no {name}: {line}"));
    words.next().and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no number behind {name}: {line}"))
}

#[test]
fn streams_do_not_wait_while_the_files_of_etc_farside_answer_slowly() {
    let lab = Lab::up();
    let slow: Vec<Running> = [Host, Dpu]
        .into_iter()
        .map(|machine| {
            let words = ["/usr/bin/python3", &script("slow_etc.py"), "/etc/farside", "/tmp/slow"];
            let slow = lab.spawn(machine, &words);
            slow.wait_for("MOUNTED");
            slow
        })
        .collect();
    let daemons = Daemons::up(lab);
    for machine in [Host, Dpu] {
        daemons.lab.sh(machine, "echo 2 >/tmp/slow").ok();
    }
    let said = daemons.near(&["beats", "/var/tmp/far", "12"]);
    println!("{said}");
    assert!(number(&said, "WORST") < 1.0, "{said}\n{}\n{}", daemons.host.said(), daemons.dpu.said());
    assert_eq!(number(&said, "FAILED"), 0.0, "{said}");
    drop(slow);
}

/// `farside host` on the host, for a DPU that may do no more than that.
fn host_for(grants: &[&str]) -> (Lab, Running) {
    let lab = Lab::strangers();
    let key = |machine| lab.run(machine, &[bin("farside"), "key"]).ok().trim_end().to_owned();
    lab.run(Host, &[&[bin("farside"), "trust", "dpu", &key(Dpu)], grants].concat()).ok();
    lab.run(Dpu, &[bin("farside"), "trust", "host", &key(Host), "--allow", "uds"]).ok();
    lab.write(Host, "/etc/farside/node.toml", "listen = '0.0.0.0:12121'\n[[export]]\npath = '/home/VMs'\n");
    let node = lab.spawn(Host, &[bin("farside"), "host"]);
    node.wait_for("serving on");
    (lab, node)
}

/// The DPU asks for so many; what it got.
fn crowd(lab: &Lab, what: &str, count: &str) -> (Running, f64, String) {
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_farside")).with_file_name("examples").join("crowd");
    assert!(program.exists(), "{} is missing: cargo build --example crowd", program.display());
    let words =
        ["prlimit", "--nofile=20000:20000", program.to_str().unwrap(), &format!("{HOST_ADDR}:{PORT}"), what, count];
    let crowd = lab.spawn(Dpu, &words);
    eventually("the crowd has its answers", Duration::from_secs(60), || crowd.said().contains("HELD"), || crowd.said());
    let said = crowd.said();
    (crowd, number(&said, "HELD"), said)
}

/// Threads of the host's node.
fn threads(lab: &Lab) -> usize {
    let said = lab.sh(Host, "ls /proc/$(pgrep -x farside)/task | wc -l").ok();
    said.trim().parse().unwrap()
}

/// Somebody else's command: of the host itself, which may do everything there.
#[track_caller]
fn others_run(lab: &Lab, node: &Running) {
    let began = Instant::now();
    let said = lab.run_with(Host, &[("CMD_NET_ADDR", "tcp://127.0.0.1:12121")], &[bin("rexec"), "echo", "in"]);
    assert_eq!(said.out(), "in\n", "{}\n{}", said.err(), node.said());
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

fn lines(node: &Running, what: &str) -> usize {
    node.said().lines().filter(|line| line.contains(what)).count()
}

#[test]
fn a_peer_that_may_run_nothing_takes_no_place_for_a_command() {
    let (lab, node) = host_for(&["--allow", "uds"]);
    let before = threads(&lab);
    let (_crowd, held, said) = crowd(&lab, "exec", "1100");
    assert!(held == 0.0 && said.contains("{13: 1100}"), "EACCES to each: {said}");
    assert!(threads(&lab) <= before + 8, "{before} threads before, {} after", threads(&lab));
    assert_eq!(lines(&node, "no exec rule of /etc/farside/peers.d/dpu.toml"), 1, "{}", node.said());
    others_run(&lab, &node);
}

#[test]
fn a_peer_at_its_share_of_commands_leaves_the_others_theirs() {
    let (lab, node) = host_for(&["--allow", "exec"]);
    let (_crowd, held, said) = crowd(&lab, "exec", "1100");
    assert!(held == 512.0 && said.contains("{11: 588}"), "EAGAIN to the rest: {said}");
    assert_eq!(lines(&node, "too many commands"), 1, "{}", node.said());
    others_run(&lab, &node);
}

#[test]
fn a_peer_that_may_mount_nothing_has_no_file_link_and_others_have_a_deadline() {
    let (lab, node) = host_for(&["--allow", "uds"]);
    let before = threads(&lab);
    let (first, held, said) = crowd(&lab, "files", "200");
    assert!(held == 0.0 && said.contains("no fs rule"), "{said}");
    assert!(threads(&lab) <= before + 2, "{before} threads before, {} after", threads(&lab));
    assert!((1..20).contains(&lines(&node, "no fs rule")), "{}", node.said());
    drop(first);
    let rules = lab.read(Host, "/etc/farside/peers.d/dpu.toml") + "\n[[fs]]\nallow = '/home/VMs'\naccess = 'rw'\n";
    lab.write(Host, "/etc/farside/peers.d/dpu.toml", &rules);
    node.wait_for("keys and peers read");
    let (_second, held, said) = crowd(&lab, "files", "100");
    assert!(held == 64.0 && said.contains("64 at once are the most for one"), "{said}");
    assert!(threads(&lab) <= before + 64 + 2, "one thread each: {before} before, {} now", threads(&lab));
    let gone = || threads(&lab) <= before + 2;
    eventually("those that mount nothing end", Duration::from_secs(10), gone, || node.said());
    // Said, and not by all of them: the log is measured.
    assert!((1..20).contains(&lines(&node, "it mounted nothing within 5000 ms")), "{}", node.said());
}

#[test]
fn a_peer_that_may_do_nothing_has_no_session_unless_this_machine_dials_it() {
    let (lab, node) = host_for(&[]);
    let (_crowd, held, said) = crowd(&lab, "sessions", "20");
    assert!(held == 0.0 && said.contains("no rule allows it anything here"), "{said}");
    drop(node);
    // The host dials it: the DPU's sockets are for programs of the host, and not the other way round.
    let daemons = Daemons::up(lab);
    let said = daemons.lab.sh(Dpu, &format!("python3 {} serve /var/tmp/near >/tmp/log 2>&1 &", script("near.py")));
    said.ok();
    let reached = || {
        let preload = format!("LD_PRELOAD={}", shim().display());
        let words = ["/usr/bin/env", &preload, "/usr/bin/python3", &script("near.py"), "beats", "/var/tmp/near", "0.1"];
        daemons.lab.host(&words).status.success()
    };
    eventually("a program of the host reaches the DPU", Duration::from_secs(10), reached, || daemons.host.said());
}

#[test]
fn a_key_has_so_many_sessions_and_no_more() {
    let (lab, node) = host_for(&["--allow", "exec"]);
    let (_crowd, held, said) = crowd(&lab, "sessions", "1100");
    assert!(held == 1024.0 && said.contains("sessions of this machine are the most"), "{said}");
    others_run(&lab, &node);
}

/// A user of the DPU's, besides root, who may reach the host; and who says nothing on so many connections to `socket`.
fn holder(lab: &Lab, socket: &str) -> Running {
    let words = ["/usr/bin/python3", &script("near.py"), "hold", socket, "1500"];
    let who = ["setpriv", "--reuid", "65534", "--regid", "65534", "--init-groups", "prlimit", "--nofile=4096:4096"];
    let holder = lab.spawn(Dpu, &[&who[..], &words].concat());
    holder.wait_for("HOLDING");
    std::thread::sleep(Duration::from_secs(1));
    holder
}

#[test]
fn a_user_who_holds_the_shims_socket_delays_no_other() {
    let lab = Lab::up();
    lab.sh(Dpu, "groupadd farside && usermod -a -G farside nobody").ok();
    let daemons = Daemons::up(lab);
    let quiet = daemons.near(&["connects", "/var/tmp/far", "30"]);
    let _holder = holder(&daemons.lab, "/run/farside/uds.sock");
    let said = daemons.near(&["connects", "/var/tmp/far", "30"]);
    println!("{quiet}{said}");
    assert!(number(&said, "P90") < 0.3, "{quiet}{said}");
}

#[test]
fn a_user_who_holds_the_vouchers_socket_delays_no_other() {
    let lab = Lab::up();
    lab.sh(Dpu, "groupadd farside && usermod -a -G farside nobody && usermod -a -G farside games").ok();
    let server = lab.spawn_with(Host, &[("CMD_NET_ADDR", "tcp://0.0.0.0:7777")], &[bin("rexec_server")]);
    let vouching = lab.spawn_with(Dpu, &[("CMD_NET_ADDR", "tcp://127.0.0.1:7999")], &[bin("rexec_server")]);
    [&server, &vouching].iter().for_each(|daemon| daemon.wait_for("serving on"));
    let socket = lab.sh(Dpu, "ls -d /run/farside-vouch/*").ok();
    let _holder = holder(&lab, socket.trim());
    for _ in 0..3 {
        let who = ["setpriv", "--reuid", "5", "--regid", "60", "--init-groups", bin("rexec"), "id", "-u"];
        let began = Instant::now();
        let said = lab.run_with(Dpu, &[("CMD_NET_ADDR", "tcp://192.168.10.10:7777")], &who);
        assert_eq!(said.out(), "5\n", "{}\n{}", said.err(), vouching.said());
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
}

#[test]
fn a_daemon_without_fds_says_so_to_programs_and_in_its_log() {
    let lab = Lab::up();
    let server = lab.spawn(Host, &["/usr/bin/python3", &script("near.py"), "serve", "/var/tmp/far"]);
    server.wait_for("READY");
    let _host = lab.spawn(Host, &[bin("udsproxyd"), "1", HOST_ADDR, PORT, DPU_ADDR, PORT]);
    // What the daemon has no fd for is another step with each limit.
    for limit in 98..102 {
        let nofile = format!("--nofile={limit}:{limit}");
        let few = ["prlimit", &nofile, bin("udsproxyd"), "1", DPU_ADDR, PORT, HOST_ADDR, PORT];
        let dpu = lab.spawn(Dpu, &few);
        dpu.wait_for("session up");
        let preload = format!("LD_PRELOAD={}", shim().display());
        let words = ["/usr/bin/env", &preload, "/usr/bin/python3", &script("near.py"), "until_full", "/var/tmp/far"];
        let said = lab.dpu(&words).ok();
        println!("{limit}: {said}");
        assert!(said.contains("MET EMFILE\n"), "{limit}: {said}\n{}", dpu.said());
        let log = dpu.said();
        let lines = log.lines().filter(|line| line.contains(&format!("RLIMIT_NOFILE {limit}"))).count();
        assert!(lines == 1 && !log.contains("too many fds"), "{log}");
    }
}
