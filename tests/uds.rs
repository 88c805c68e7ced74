//! udsproxyd and libudsproxy.so between two machines: each test is a promise.
//!
//! Python programs that know nothing of a proxy connect on the DPU (`uds/near.py`, in the function named like the test)
//! to Python servers on the host (`uds/far.py`). Both daemons keep every promise on each engine (`uds/tiers.rs`).

mod lab;
#[path = "rexec/talk.rs"]
mod talk;
#[path = "uds/tiers.rs"]
mod tiers;

use std::time::{Duration, Instant};

use lab::{DPU_ADDR, Dpu, HOST_ADDR, Host, Lab, Machine, Running, bin, eventually, repository, shim};
use talk::Talk;
use tiers::{Tier, in_every_tier};

const PORT: &str = "12121";
/// Where the servers are; the directory is on both machines.
const DIR: &str = "/var/tmp/far";

struct Proxied {
    lab: Lab,
    tier: Tier,
    threads: &'static str,
    host: Option<Running>,
    dpu: Option<Running>,
    /// The servers' machine and handle.
    far: Machine,
    servers: Option<Running>,
}

impl Proxied {
    /// The lab and the servers, no daemon yet.
    #[track_caller]
    fn lab_only(threads: &'static str, far: Machine) -> Self {
        let lab = Lab::up();
        for machine in [Host, Dpu] {
            lab.run(machine, &["mkdir", "-p", DIR]).ok();
        }
        let mut proxied = Self { lab, tier: Tier::of_this_test(), threads, host: None, dpu: None, far, servers: None };
        proxied.start_servers();
        proxied
    }

    #[track_caller]
    fn up() -> Self {
        Self::up_with("1")
    }

    /// A session ends with its link, and so do programs' connections. (tests/resume.rs has what goes on.)
    #[track_caller]
    fn up_without_grace() -> Self {
        let mut proxied = Self::lab_only("1", Host);
        for machine in [Host, Dpu] {
            proxied.lab.write(machine, "/etc/farside/node.toml", "[session]\ngrace = 0\n");
            proxied.start(machine);
        }
        proxied.session();
        proxied
    }

    #[track_caller]
    fn up_with(threads: &'static str) -> Self {
        let mut proxied = Self::lab_only(threads, Host);
        proxied.start(Host);
        proxied.start(Dpu);
        proxied.session();
        proxied
    }

    #[track_caller]
    fn start_servers(&mut self) {
        self.servers = None;
        self.lab.run(self.far, &["find", DIR, "-type", "s", "-delete"]).ok();
        let script = repository().join("tests/uds/far.py");
        let servers = self.lab.spawn(self.far, &["/usr/bin/python3", script.to_str().unwrap(), DIR]);
        servers.wait_for("READY");
        self.servers = Some(servers);
    }

    fn daemon(&mut self, machine: Machine) -> &mut Option<Running> {
        match machine {
            Host => &mut self.host,
            Dpu => &mut self.dpu,
        }
    }

    #[track_caller]
    fn start(&mut self, machine: Machine) {
        let (own, peer) = match machine {
            Host => (HOST_ADDR, DPU_ADDR),
            Dpu => (DPU_ADDR, HOST_ADDR),
        };
        let words = [bin("udsproxyd"), self.threads, own, PORT, peer, PORT, "--uid", "65534"];
        let daemon = self.lab.spawn_with(machine, &[self.tier.wish()], &words);
        daemon.wait_for(self.tier.line());
        daemon.wait_for("serving on");
        *self.daemon(machine) = Some(daemon);
    }

    /// Both have a session with the other.
    #[track_caller]
    fn session(&self) {
        for daemon in [&self.host, &self.dpu] {
            daemon.as_ref().unwrap().wait_for("session up");
        }
    }

    fn signal(&self, machine: Machine, signal: &str) {
        self.lab.run(machine, &["pkill", signal, "-x", "udsproxyd"]).ok();
    }

    #[track_caller]
    fn kill(&mut self, machine: Machine) {
        self.signal(machine, "-KILL");
        *self.daemon(machine) = None;
    }

    fn talk(&self, promise: &str, args: &[&str]) -> Talk {
        let near = if self.far == Host { Dpu } else { Host };
        let preload = format!("LD_PRELOAD={}", shim().display());
        let script = repository().join("tests/uds/near.py");
        let program = ["/usr/bin/env", &preload, "/usr/bin/python3", script.to_str().unwrap(), promise, DIR];
        Talk::start(self.lab.raw(near, &[&program, args].concat()), promise)
    }

    #[track_caller]
    fn keeps(&self, promise: &str, args: &[&str]) {
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.talk(promise, args).ends()));
        if ran.is_err() {
            panic!("{promise}, see above; {}", self.logs());
        }
    }

    fn logs(&self) -> String {
        let said = |d: &Option<Running>| {
            let all = d.as_ref().map(Running::said).unwrap_or_default();
            let lines: Vec<&str> = all.lines().collect();
            lines[lines.len().saturating_sub(15)..].join("\n")
        };
        format!("host's daemon:\n{}\ndpu's daemon:\n{}", said(&self.host), said(&self.dpu))
    }

    #[track_caller]
    fn fds(&self, machine: Machine) -> usize {
        let said = self.lab.sh(machine, "ls /proc/$(pgrep -x udsproxyd)/fd | wc -l").ok();
        said.trim().parse().expect("a count")
    }
}

fn the_two_start_in_any_order_and_either_may_have_the_servers() {
    for (first, second, far) in [(Host, Dpu, Dpu), (Dpu, Host, Host)] {
        let mut proxied = Proxied::lab_only("1", far);
        proxied.start(first);
        proxied.start(second);
        proxied.session();
        proxied.keeps("a_request_gets_its_answer", &[]);
    }
}

fn two_threads_keep_the_same_promises() {
    let proxied = Proxied::up_with("2");
    for promise in [
        "a_request_gets_its_answer",
        "either_side_may_end_its_half_first",
        "one_that_is_never_read_holds_up_nobody",
        "sixty_four_may_connect_at_once",
        "bulk_both_ways_with_a_slow_reader_while_others_are_answered",
        "the_far_errno_is_the_callers_and_the_fd_stays_good",
    ] {
        proxied.keeps(promise, &[]);
    }
    proxied.keeps("fds_cross", &["7"]);
}

fn an_fd_comes_with_the_byte_it_was_sent_with() {
    Proxied::up().keeps("an_fd_comes_with_the_byte_it_was_sent_with", &[]);
}

fn one_fd_crosses_either_way() {
    Proxied::up().keeps("fds_cross", &["1"]);
}

fn as_many_fds_as_a_message_holds_cross_either_way() {
    Proxied::up().keeps("fds_cross", &["253"]);
}

fn a_killed_server_is_an_end_at_once() {
    let mut proxied = Proxied::up();
    let mut near = proxied.talk("a_killed_server_is_an_end_at_once", &[]);
    near.hear("READY");
    proxied.lab.host(&["pkill", "-KILL", "-f", "uds/far.py"]).ok();
    near.say("go");
    near.ends();
    // A new server at the same path.
    proxied.start_servers();
    proxied.keeps("a_request_gets_its_answer", &[]);
}

fn without_the_other_machine_a_local_errno_soon_and_later_it_works() {
    let mut proxied = Proxied::lab_only("1", Host);
    proxied.start(Dpu);
    let mut near = proxied.talk("without_the_other_machine_a_local_errno_soon_and_later_it_works", &[]);
    near.hear("READY");
    proxied.start(Host);
    near.say("go");
    near.ends();
}

/// What a daemon's sudden end does to old connections and new ones.
fn a_daemon_that_is_killed_and_started_again(machine: Machine) {
    let mut proxied = Proxied::up();
    let mut near = proxied.talk("a_new_connect_works_after", &["3", "8"]);
    near.hear("READY");
    proxied.kill(machine);
    near.say("go");
    near.hear("ENDED");
    proxied.start(machine);
    near.say("go");
    near.ends();
}

fn the_hosts_daemon_may_be_killed_and_started_again() {
    a_daemon_that_is_killed_and_started_again(Host);
}

fn the_dpus_daemon_may_be_killed_and_started_again() {
    a_daemon_that_is_killed_and_started_again(Dpu);
}

fn a_link_that_was_cut_comes_back_by_itself() {
    let proxied = Proxied::up_without_grace();
    let mut near = proxied.talk("a_new_connect_works_after", &["15", "12"]);
    near.hear("READY");
    proxied.lab.cut("drop");
    near.say("go");
    near.hear("ENDED");
    proxied.lab.restore();
    near.say("go");
    near.ends();
}

fn a_link_that_was_reset_comes_back_by_itself() {
    let proxied = Proxied::up_without_grace();
    let mut near = proxied.talk("a_new_connect_works_after", &["3", "5"]);
    near.hear("READY");
    proxied.lab.cut("rst");
    near.say("go");
    near.hear("ENDED");
    near.say("go");
    near.ends();
}

fn connections_come_and_go_and_leave_nothing() {
    let proxied = Proxied::up();
    proxied.keeps("sixty_four_may_connect_at_once", &[]);
    // Listeners kept for the next ask of a name go after five seconds.
    let settled = || (proxied.fds(Host), proxied.fds(Dpu));
    let idle = Duration::from_secs(13);
    std::thread::sleep(idle);
    let before = settled();
    proxied.keeps("two_thousand_come_and_go", &[]);
    let back = || {
        let now = settled();
        now.0 <= before.0 && now.1 <= before.1
    };
    eventually("the fds of both daemons return", Duration::from_secs(20), back, || {
        format!("{:?} now, {before:?} before", settled())
    });
}

/// SIGTERM with a connection that will not end by itself.
fn sigterm_ends_a_daemon_in_time(machine: Machine) {
    let mut proxied = Proxied::up();
    let mut near = proxied.talk("an_idle_connection_waits", &[]);
    near.hear("READY");
    let begun = Instant::now();
    proxied.signal(machine, "-TERM");
    let mut daemon = proxied.daemon(machine).take().unwrap();
    eventually("it has ended", Duration::from_secs(8), || daemon.ended().is_some(), String::new);
    println!("ended after {:?}", begun.elapsed());
    assert!(daemon.ended().is_some_and(|s| s.success()), "{:?}\n{}", daemon.ended(), daemon.said());
    let left = proxied.lab.sh(machine, "find /run/farside -mindepth 1 ! -name '*.lock' 2>/dev/null || true").out();
    assert_eq!(left, "", "left in /run/farside");
    near.say("go");
    near.hear("ENDED");
    proxied.start(machine);
    near.say("go");
    near.ends();
}

fn sigterm_ends_the_dpus_daemon_in_time_and_it_starts_again_at_once() {
    sigterm_ends_a_daemon_in_time(Dpu);
}

fn sigterm_ends_the_hosts_daemon_in_time_and_it_starts_again_at_once() {
    sigterm_ends_a_daemon_in_time(Host);
}

in_every_tier! {
    // The function of near.py is all there is to them.
    plain {
        a_request_gets_its_answer
        either_side_may_end_its_half_first
        one_that_is_never_read_holds_up_nobody
        sixty_four_may_connect_at_once
        bulk_both_ways_with_a_slow_reader_while_others_are_answered
        the_far_errno_is_the_callers_and_the_fd_stays_good
        nobody_is_nobody_there_too
        the_caller_sees_who_listens_there
        urgent_data_keeps_nobody_busy
        a_user_who_may_not_ask_gets_the_local_errno
        an_eventfd_ends_the_stream
        a_socket_that_crossed_carries_bytes_and_fds_itself
        many_fds_in_many_messages_all_arrive_whole
        a_client_that_is_killed_is_an_end_for_its_server
    }
    own {
        the_two_start_in_any_order_and_either_may_have_the_servers
        two_threads_keep_the_same_promises
        an_fd_comes_with_the_byte_it_was_sent_with
        one_fd_crosses_either_way
        as_many_fds_as_a_message_holds_cross_either_way
        a_killed_server_is_an_end_at_once
        without_the_other_machine_a_local_errno_soon_and_later_it_works
        the_hosts_daemon_may_be_killed_and_started_again
        the_dpus_daemon_may_be_killed_and_started_again
        a_link_that_was_cut_comes_back_by_itself
        a_link_that_was_reset_comes_back_by_itself
        connections_come_and_go_and_leave_nothing
        sigterm_ends_the_dpus_daemon_in_time_and_it_starts_again_at_once
        sigterm_ends_the_hosts_daemon_in_time_and_it_starts_again_at_once
    }
}
