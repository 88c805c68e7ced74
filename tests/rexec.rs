//! rexec's promises, kept by real processes on two machines: each test is a promise.
//!
//! What the calling side may rely on is asserted by `rexec/near.py`, in the function named like the test; what happens
//! to the lab meanwhile, and what must not be left on the other machine, is here.

mod lab;
#[path = "rexec/talk.rs"]
mod talk;

use std::time::{Duration, Instant};

use lab::{DPU_ADDR, Dpu, HOST_ADDR, Host, Lab, Machine, Running, bin, eventually, repository, shim};
use talk::Talk;

const PORT: u16 = 7777;

/// A lab with a rexec_server on one machine and callers on the other.
struct Pair {
    lab: Lab,
    server: Option<Running>,
    /// Where the server runs, and where the callers do.
    far: Machine,
    near: Machine,
    before: Standing,
}

/// What a server holds.
#[derive(Debug, Clone, Copy, Default)]
struct Standing {
    fds: usize,
    threads: usize,
}

impl Pair {
    #[track_caller]
    fn on_the_host() -> Self {
        Self::on(Host)
    }

    #[track_caller]
    fn on(far: Machine) -> Self {
        let near = if far == Host { Dpu } else { Host };
        let mut pair = Self { lab: Lab::up(), server: None, far, near, before: Standing::default() };
        pair.serve();
        pair
    }

    #[track_caller]
    fn serve(&mut self) {
        let env = [("CMD_NET_ADDR", &*format!("tcp://0.0.0.0:{PORT}"))];
        let server = self.lab.spawn_with(self.far, &env, &[bin("rexec_server")]);
        server.wait_for("serving on");
        self.server = Some(server);
        // Once through, so that what is made at the first command is there.
        assert_eq!(self.lab.run_with(self.near, &self.env(), &[bin("rexec"), "echo", "up"]).ok(), "up\n");
        self.before = self.standing();
    }

    fn env(&self) -> [(&str, &'static str); 3] {
        let addr = match self.far {
            Host => HOST_ADDR,
            Dpu => DPU_ADDR,
        };
        let addr = String::leak(format!("tcp://{addr}:{PORT}"));
        let shim = String::leak(shim().to_str().unwrap().to_string());
        [("CMD_NET_ADDR", addr), ("REXEC", bin("rexec")), ("SHIM", shim)]
    }

    fn talk(&self, promise: &str, args: &[&str]) -> Talk {
        let script = repository().join("tests/rexec/near.py");
        let words = [&["/usr/bin/python3", script.to_str().unwrap(), promise], args].concat();
        let mut command = self.lab.raw(self.near, &words);
        command.envs(self.env());
        Talk::start(command, promise)
    }

    /// The promise by its name in near.py, and then nothing is left of it.
    #[track_caller]
    fn keeps(&self, promise: &str, args: &[&str]) {
        self.talk(promise, args).ends();
        self.nothing_is_left();
    }

    fn log(&self) -> String {
        self.server.as_ref().map(Running::said).unwrap_or_default()
    }

    #[track_caller]
    fn standing(&self) -> Standing {
        let count = "p=$(pgrep -x rexec_server); ls /proc/$p/fd | wc -l; ls /proc/$p/task | wc -l";
        let said = self.lab.sh(self.far, count).ok();
        let mut numbers = said.split_whitespace().map(|n| n.parse().expect("a count"));
        Standing { fds: numbers.next().expect("fds"), threads: numbers.next().expect("threads") }
    }

    /// Supervisors, zombies and processes with an argument of the test's, on the far machine.
    fn processes(&self) -> String {
        self.lab.sh(self.far, "ps -eo pid,ppid,stat,comm,args | awk '$3 ~ /Z/ || $4 == \"rexec-superviso\"'").out()
    }

    /// The server's fds have returned, nobody waits for its reaper, /run is as it was.
    #[track_caller]
    fn nothing_is_left(&self) {
        self.nothing_is_left_but_the_daemon();
        for machine in [Host, Dpu] {
            // The lab shows the repository at its own path, which may be below /tmp.
            let repository = env!("CARGO_MANIFEST_DIR");
            let find = format!(
                "find /run/farside -mindepth 1 2>/dev/null; \
                 find /tmp -path '{repository}' -prune -o -name '*farside*' -print 2>/dev/null || true"
            );
            let left = self.lab.sh(machine, &find).out();
            assert_eq!(left, "", "left on {machine:?}");
        }
    }

    #[track_caller]
    fn nothing_is_left_but_the_daemon(&self) {
        let within = Duration::from_secs(10);
        eventually("no supervisor and no zombie is left", within, || self.processes().is_empty(), || self.processes());
        let fds = || self.standing().fds <= self.before.fds + 1;
        let shown = || {
            let list = self.lab.sh(self.far, "ls -l /proc/$(pgrep -x rexec_server)/fd").out();
            format!("{:?}, {:?} at the start\n{list}\n{}", self.standing(), self.before, self.log())
        };
        eventually("the server's fds return", within, fds, shown);
    }

    #[track_caller]
    fn no_process_with(&self, mark: &str) {
        let find = || self.lab.sh(self.far, &format!("pgrep -af 'sleep {mark}' | grep -v pgrep || true")).out();
        eventually("no process of the command is left there", Duration::from_secs(20), || find().is_empty(), find);
    }

    #[track_caller]
    fn processes_with(&self, mark: &str) -> usize {
        self.lab.sh(self.far, &format!("pgrep -fx 'sleep {mark}' | wc -l")).ok().trim().parse().expect("a count")
    }
}

macro_rules! promises {
    ($($name:ident)+) => {
        $(#[test]
        fn $name() {
            Pair::on_the_host().keeps(stringify!($name), &[]);
        })+
    };
}

promises! {
    the_exit_status_is_the_commands
    death_by_signal_n_is_128_and_n
    what_cannot_be_run_is_127_or_126_with_one_line
    a_script_without_a_shebang_is_the_shells
    without_a_server_255_and_one_line_soon
    bulk_both_ways_with_a_slow_reader_while_small_requests_are_answered
    a_reader_that_stands_still_stops_the_command_and_nobody_else
    stdin_ends_and_may_be_anything
    a_closed_standard_fd_is_dev_null_there
    an_append_log_keeps_every_byte_of_every_writer
    stdout_and_stderr_of_one_pipe_keep_their_order
    both_ways_at_once_without_a_deadlock
    a_reader_that_goes_away_ends_the_command_by_sigpipe
    a_qemu_that_fails_says_so_and_leaves_no_stand_in
    output_is_whole_however_soon_the_command_exits
    arguments_arrive_exactly
    the_environment_arrives_exactly_but_for_what_is_the_links
    the_working_directory_and_the_umask_are_carried
    a_command_never_runs_in_another_directory_than_its_callers
    sockets_of_socket_activation_are_for_the_command
    what_a_process_leaves_to_its_programs_is_carried
    signals_of_the_client_reach_the_command
    a_background_process_left_behind_does_not_hold_the_client
    fifty_commands_at_once
    a_client_that_was_stopped_for_long_goes_on
    one_pipe_at_two_numbers_is_one_pipe
    an_inherited_pipe_is_there_at_its_number
    a_listening_socket_is_served_there_with_its_waiting_client
    a_file_open_for_writing_is_refused_by_name_before_anything_runs
    a_locked_pid_file_stays_here_and_locked
}

#[test]
#[ignore = "a command's stdout is moved in pieces that end anywhere, so lines of several writers of one log may be torn"]
fn an_append_log_keeps_lines_whole() {
    Pair::on_the_host().keeps("an_append_log_keeps_lines_whole", &[]);
}

#[test]
fn either_machine_may_be_the_server() {
    let pair = Pair::on(Dpu);
    for promise in [
        "death_by_signal_n_is_128_and_n",
        "stdin_ends_and_may_be_anything",
        "stdout_and_stderr_of_one_pipe_keep_their_order",
        "signals_of_the_client_reach_the_command",
        "a_listening_socket_is_served_there_with_its_waiting_client",
        "fifty_commands_at_once",
    ] {
        pair.keeps(promise, &[]);
    }
}

/// A daemon of the caller's machine with a session to the very server that rexec names.
#[track_caller]
fn carrying(pair: &Pair, users: &str) -> Running {
    carrying_with(pair, &format!("[local]\nusers = {users}\n"))
}

fn carrying_with(pair: &Pair, config: &str) -> Running {
    pair.lab.write(pair.near, "/etc/farside/node.toml", config);
    let port = PORT.to_string();
    let daemon =
        pair.lab.spawn(pair.near, &[bin("udsproxyd"), "1", DPU_ADDR, "7776", HOST_ADDR, &port, "--log", "debug"]);
    daemon.wait_for("session up");
    daemon
}

fn carried(daemon: &Running) -> usize {
    daemon.said().matches("carries a command").count()
}

#[test]
fn a_daemon_with_a_session_carries_the_commands_and_the_promises_are_the_same() {
    let mut pair = Pair::on_the_host();
    let daemon = carrying(&pair, "['nobody', '64055']");
    // Its links are there to stay.
    pair.before = pair.standing();
    let mut before = 0;
    for promise in [
        "the_exit_status_is_the_commands",
        "death_by_signal_n_is_128_and_n",
        "what_cannot_be_run_is_127_or_126_with_one_line",
        "bulk_both_ways_with_a_slow_reader_while_small_requests_are_answered",
        "a_reader_that_stands_still_stops_the_command_and_nobody_else",
        "stdin_ends_and_may_be_anything",
        "a_closed_standard_fd_is_dev_null_there",
        "stdout_and_stderr_of_one_pipe_keep_their_order",
        "both_ways_at_once_without_a_deadlock",
        "a_reader_that_goes_away_ends_the_command_by_sigpipe",
        "output_is_whole_however_soon_the_command_exits",
        "arguments_arrive_exactly",
        "the_environment_arrives_exactly_but_for_what_is_the_links",
        "the_working_directory_and_the_umask_are_carried",
        "signals_of_the_client_reach_the_command",
        "a_background_process_left_behind_does_not_hold_the_client",
        "fifty_commands_at_once",
        "one_pipe_at_two_numbers_is_one_pipe",
        "an_inherited_pipe_is_there_at_its_number",
        "a_listening_socket_is_served_there_with_its_waiting_client",
        "the_command_is_who_its_caller_is_and_can_do_no_more",
    ] {
        pair.talk(promise, &[]).ends();
        let now = carried(&daemon);
        assert!(now > before, "{promise} went another way: {}", daemon.said());
        before = now;
    }
    pair.nothing_is_left_but_the_daemon();
}

#[test]
fn who_may_not_ask_and_what_is_no_pipe_go_their_own_way() {
    let pair = Pair::on_the_host();
    let daemon = carrying(&pair, "['nobody']");
    let sh = |script: &str| pair.lab.run_with(pair.near, &pair.env(), &["sh", "-c", script]).ok();
    assert_eq!(sh("$REXEC echo carried | cat"), "carried\n");
    assert_eq!(carried(&daemon), 1);
    // What a command does not get stays its caller's.
    assert_eq!(sh("(sleep 1; echo rest) | { $REXEC /nonexistent 2>/dev/null; cat; }"), "rest\n");
    assert_eq!(carried(&daemon), 2);
    // Files are this process's own to read and write.
    assert_eq!(
        sh("echo from a file > /tmp/in; $REXEC cat < /tmp/in > /tmp/out; cat /tmp/out; rm /tmp/in /tmp/out"),
        "from a file\n"
    );
    assert_eq!(carried(&daemon), 2);
    assert_eq!(sh("FARSIDE_CARRY=no $REXEC echo alone | cat"), "alone\n");
    assert_eq!(carried(&daemon), 2);
    let other = ["setpriv", "--reuid", "1234", "--regid", "1234", "--clear-groups", bin("rexec"), "true"];
    let said = pair.lab.run_with(pair.near, &pair.env(), &other).refused();
    assert!(said.contains("user 1234 may not"), "{said}");
    // Another server than that of the session.
    let elsewhere = [("CMD_NET_ADDR", "tcp://192.168.10.10:7778")];
    let second = pair.lab.spawn_with(pair.far, &[("CMD_NET_ADDR", "tcp://0.0.0.0:7778")], &[bin("rexec_server")]);
    second.wait_for("serving on");
    assert_eq!(pair.lab.run_with(pair.near, &elsewhere, &[bin("rexec"), "echo", "there"]).ok(), "there\n");
    assert_eq!(carried(&daemon), 2);
}

#[test]
fn a_carried_command_ends_with_its_client_its_daemon_or_its_link() {
    let pair = Pair::on_the_host();
    // With a grace time it outlives both, for so long.
    let config = "[session]\ngrace = 0\n";
    let daemon = carrying_with(&pair, config);
    let mut near = pair.talk("killing_the_client_kills_the_whole_tree", &["70011"]);
    near.hear("READY");
    let alive = || pair.processes_with("70011") == 4;
    eventually("four processes there", Duration::from_secs(5), alive, || pair.processes());
    near.say("go");
    near.hear("KILLED");
    pair.no_process_with("70011");
    near.say("go");
    near.ends();
    assert_eq!(carried(&daemon), 1);
    let mut near = pair.talk("losing_the_other_machine_ends_the_client_with_255", &["70012", "5"]);
    near.hear("READY");
    pair.lab.dpu(&["pkill", "-KILL", "-x", "udsproxyd"]).ok();
    near.say("go");
    near.hear("ENDED");
    pair.no_process_with("70012");
    near.say("go");
    near.ends();
    drop(daemon);
    let _daemon = carrying_with(&pair, config);
    let mut near = pair.talk("losing_the_other_machine_ends_the_client_with_255", &["70013", "20"]);
    near.hear("READY");
    pair.lab.cut("drop");
    near.say("go");
    near.hear("ENDED");
    pair.no_process_with("70013");
    near.say("go");
    near.ends();
    pair.lab.restore();
}

#[test]
fn killing_the_client_kills_the_whole_tree() {
    let pair = Pair::on_the_host();
    let mut near = pair.talk("killing_the_client_kills_the_whole_tree", &["70001"]);
    near.hear("READY");
    let alive = || pair.processes_with("70001") == 4;
    eventually("four processes there", Duration::from_secs(5), alive, || pair.processes());
    near.say("go");
    near.hear("KILLED");
    pair.no_process_with("70001");
    near.say("go");
    near.ends();
    pair.nothing_is_left();
}

#[test]
fn a_killed_server_ends_the_client_and_leaves_no_process_of_the_command() {
    let mut pair = Pair::on_the_host();
    let mut near = pair.talk("losing_the_other_machine_ends_the_client_with_255", &["70002", "5"]);
    near.hear("READY");
    pair.lab.host(&["pkill", "-KILL", "-x", "rexec_server"]).ok();
    near.say("go");
    near.hear("ENDED");
    pair.no_process_with("70002");
    near.say("go");
    near.ends();
    // And a new one can start at once, at the same address.
    pair.server = None;
    pair.serve();
    pair.nothing_is_left();
}

#[test]
fn a_link_that_is_cut_ends_the_client_with_255() {
    let pair = Pair::on_the_host();
    let mut near = pair.talk("losing_the_other_machine_ends_the_client_with_255", &["70003", "20"]);
    near.hear("READY");
    pair.lab.cut("drop");
    near.say("go");
    near.hear("ENDED");
    pair.no_process_with("70003");
    near.say("go");
    near.ends();
    pair.lab.restore();
    pair.nothing_is_left();
    pair.keeps("death_by_signal_n_is_128_and_n", &[]);
}

#[test]
fn a_server_told_to_end_lets_a_command_finish_and_cuts_what_does_not() {
    let mut pair = Pair::on_the_host();
    let mut near = pair.talk("losing_the_other_machine_ends_the_client_with_255", &["70004", "12"]);
    near.hear("READY");
    let begun = Instant::now();
    pair.lab.host(&["pkill", "-TERM", "-x", "rexec_server"]).ok();
    near.say("go");
    near.hear("ENDED");
    assert!(begun.elapsed() > Duration::from_secs(3), "the command had no time to finish: {:?}", begun.elapsed());
    pair.no_process_with("70004");
    let mut server = pair.server.take().unwrap();
    eventually("the server has ended", Duration::from_secs(5), || server.ended().is_some(), String::new);
    near.say("go");
    near.ends();
}

#[test]
fn qemu_that_daemonizes_leaves_a_stand_in() {
    let pair = Pair::on_the_host();
    let mut near = pair.talk("qemu_that_daemonizes_leaves_a_stand_in", &["/var/tmp/probe-1"]);
    let far_pid = near.hear("FAR").trim_start_matches("FAR ").to_string();
    let name = pair.lab.host(&["cat", &format!("/proc/{far_pid}/comm")]).ok();
    assert!(name.starts_with("qemu-system"), "the far pid file names {name}");
    near.say("go");
    near.hear("ENDED");
    pair.lab.host(&["cat", &format!("/proc/{far_pid}/comm")]).refused();
    near.say("go");
    near.ends();
    pair.nothing_is_left();
}

#[test]
fn thirty_probes_in_a_row_leave_nothing() {
    let pair = Pair::on_the_host();
    pair.keeps("probes_in_a_row_leave_nothing", &["/var/tmp/probe-30", "30"]);
    assert_eq!(pair.lab.host(&["pgrep", "-a", "qemu"]).out(), "", "QEMUs that are left");
}

#[test]
fn a_signal_reaches_a_daemon_whose_parent_has_not_ended_yet() {
    let pair = Pair::on_the_host();
    pair.keeps("a_signal_reaches_a_daemon_whose_parent_has_not_ended_yet", &["/var/tmp/slow"]);
    pair.nothing_is_left();
}

#[test]
fn strangers_harm_nobody() {
    let pair = Pair::on_the_host();
    let said = pair.talk("strangers_harm_nobody", &[]).ends();
    pair.nothing_is_left();
    let port = said.lines().find_map(|l| l.strip_prefix("HTTP from ")).expect("the port of the HTTP request");
    let log = pair.log();
    let http: Vec<&str> = log.lines().filter(|l| l.ends_with(&format!(":{port}"))).collect();
    assert!(http.len() == 1 && http[0].contains("no TLS"), "one clear line about the HTTP request: {http:#?}");
    assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
}

#[test]
fn noise_behind_a_good_hello_ends_that_connection_alone() {
    let pair = Pair::on_the_host();
    pair.keeps("noise_behind_a_good_hello_ends_that_connection_alone", &[]);
    let log = pair.log();
    assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
}

#[test]
fn killing_the_stand_in_kills_its_qemu() {
    let pair = Pair::on_the_host();
    pair.keeps("killing_the_stand_in_kills_its_qemu", &["/var/tmp/probe-kill"]);
    let left = || pair.lab.host(&["pgrep", "-a", "qemu"]).out();
    eventually("no QEMU is left", Duration::from_secs(10), || left().is_empty(), left);
}

/// A daemon of the caller's own machine that vouches for these users of it.
#[track_caller]
fn vouching(pair: &Pair, users: &str) -> Running {
    pair.lab.write(pair.near, "/etc/farside/node.toml", &format!("[local]\nusers = {users}\n"));
    let server = pair.lab.spawn_with(
        pair.near,
        &[("CMD_NET_ADDR", "tcp://127.0.0.1:7999")],
        &[bin("rexec_server"), "--log", "debug"],
    );
    server.wait_for("serving on");
    server
}

#[test]
fn the_command_is_who_its_caller_is_and_can_do_no_more() {
    let pair = Pair::on_the_host();
    let _daemon = vouching(&pair, "['nobody', '64055']");
    pair.keeps("the_command_is_who_its_caller_is_and_can_do_no_more", &[]);
}

#[test]
fn a_user_may_not_raise_its_priority_there() {
    let pair = Pair::on_the_host();
    let _daemon = vouching(&pair, "['nobody']");
    pair.keeps("a_user_may_not_raise_its_priority_there", &[]);
    assert!(pair.log().contains("without its caller's priority: not permitted"), "{}", pair.log());
}

/// What this server has to give is the most that a command may have there.
#[test]
fn no_limit_is_above_the_servers_own() {
    let mut pair = Pair::on_the_host();
    drop(pair.server.take());
    let env = [("CMD_NET_ADDR", &*format!("tcp://0.0.0.0:{PORT}"))];
    let limited =
        ["prlimit", "--core=1000:2000", "--stack=4194304:5242880", "--", bin("rexec_server"), "--log", "debug"];
    let server = pair.lab.spawn_with(pair.far, &env, &limited);
    server.wait_for("serving on");
    pair.server = Some(server);
    let ask = |limits: &[&str]| {
        let ask = "ulimit -c; ulimit -Hc; ulimit -s; ulimit -Hs";
        let words = [&["prlimit"], limits, &["--", bin("rexec"), "bash", "-c", ask]].concat();
        pair.lab.run_with(pair.near, &pair.env(), &words).ok()
    };
    assert_eq!(ask(&["--core=unlimited:unlimited", "--stack=8388608:unlimited"]), "1\n1\n5120\n5120\n");
    assert_eq!(ask(&["--core=0:0", "--stack=4194304:4194304"]), "0\n0\n4096\n4096\n");
    let log = pair.log();
    assert!(log.contains("RLIMIT_STACK: 8388608 asked for, 5242880 is the most"), "{log}");
}

const NOBODY: [&str; 6] = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];

#[test]
fn who_may_not_read_the_key_is_vouched_for_or_refused_by_name() {
    let pair = Pair::on_the_host();
    let whoami = [&NOBODY[..], &[bin("rexec"), "id", "-u"]].concat();
    let said = pair.lab.run_with(pair.near, &pair.env(), &whoami).refused();
    assert!(said.contains("no farside daemon runs here") && said.lines().count() == 1, "{said}");
    let daemon = vouching(&pair, "['daemon']");
    let said = pair.lab.run_with(pair.near, &pair.env(), &whoami).refused();
    assert!(said.contains("user 65534 may not") && said.contains("[local]"), "{said}");
    drop(daemon);
    let daemon = vouching(&pair, "['nobody']");
    assert_eq!(pair.lab.run_with(pair.near, &pair.env(), &whoami).ok(), "65534\n");
    daemon.wait_for("vouched for");
    // A user namespace makes nobody more than it is.
    let inside = [
        &NOBODY[..],
        &["unshare", "-U", "-r", bin("rexec"), "grep", "-E", "^(Uid|CapPrm|CapBnd)", "/proc/self/status"],
    ];
    let said = pair.lab.run_with(pair.near, &pair.env(), &inside.concat()).ok();
    let zero = "0000000000000000";
    assert_eq!(said, format!("Uid:\t65534\t65534\t65534\t65534\nCapPrm:\t{zero}\nCapBnd:\t{zero}\n"));
}

#[test]
fn a_server_without_root_runs_its_own_users_commands_only() {
    let mut pair = Pair { lab: Lab::up(), server: None, far: Host, near: Dpu, before: Standing::default() };
    let addr = format!("tcp://0.0.0.0:{PORT}");
    // It has a key of its own, and trusts the caller's machine by itself.
    let own = [("FARSIDE_CONFIG_DIR", "/tmp/nobody"), ("CMD_NET_ADDR", &*addr)];
    let as_nobody = |words: &[&str]| pair.lab.run_with(Host, &own, &[&NOBODY[..], words].concat()).ok();
    let caller = pair.lab.dpu(&[bin("farside"), "key"]).ok();
    as_nobody(&[bin("farside"), "trust", "dpu", caller.trim_end(), "--allow", "exec"]);
    let key = as_nobody(&[bin("farside"), "key"]);
    pair.lab.dpu(&[bin("farside"), "trust", "nobody", key.trim_end()]).ok();
    let server = pair.lab.spawn_with(Host, &own, &[&NOBODY[..], &[bin("rexec_server")]].concat());
    server.wait_for("serving on");
    pair.server = Some(server);
    let _daemon = vouching(&pair, "['nobody']");
    let whoami = [bin("rexec"), "id", "-u"];
    assert_eq!(pair.lab.run_with(Dpu, &pair.env(), &[&NOBODY[..], &whoami].concat()).ok(), "65534\n");
    let root = pair.lab.run_with(Dpu, &pair.env(), &whoami);
    assert_eq!(root.status.code(), Some(126), "{root:?}");
    let said = root.refused();
    assert!(said.lines().count() == 1 && said.contains("uid 65534"), "one line: {said}");
}

#[test]
fn after_everything_the_server_holds_what_it_held_at_its_start() {
    let pair = Pair::on_the_host();
    pair.keeps("a_bit_of_everything", &[]);
    // Idle helper threads stay for ten seconds.
    let back = || {
        let now = pair.standing();
        now.threads <= pair.before.threads + 1 && now.fds <= pair.before.fds
    };
    let shown = || format!("{:?}, {:?} at the start", pair.standing(), pair.before);
    eventually("fds and threads return", Duration::from_secs(20), back, shown);
}
