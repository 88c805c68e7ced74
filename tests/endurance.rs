//! udsproxyd for long, under load, and with peers that break the rules: each test is a promise.
//!
//! Python programs that know nothing of a proxy (`endurance/near.py` on the DPU, `endurance/far.py` on the host), a node
//! that speaks wrongly (`endurance/raw.py`), and proxy-bench. What is measured is printed (`--nocapture`); what is asserted
//! leaves room for a busy machine. FARSIDE_BIN_DIR names a release build to measure.

#[path = "endurance/daemons.rs"]
mod daemons;
mod lab;
#[path = "rexec/talk.rs"]
mod talk;

use std::sync::RwLock;
use std::time::{Duration, Instant};

use daemons::{DIR, Daemons};
use lab::{Dpu, HOST_ADDR, Host, Running, eventually};
use talk::Talk;

/// What measures times or memory runs alone; the others run beside each other.
static QUIET: RwLock<()> = RwLock::new(());

fn beside_others() -> std::sync::RwLockReadGuard<'static, ()> {
    QUIET.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn alone() -> std::sync::RwLockWriteGuard<'static, ()> {
    QUIET.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Listeners and buffers kept for the next connection are given back after some seconds of rest.
const REST: Duration = Duration::from_secs(12);

#[test]
fn a_thousand_connections_at_random_keep_their_bytes_though_programs_are_killed() {
    let _lock = beside_others();
    let proxied = Daemons::up();
    proxied.keeps("at_random", &["1"]);
    proxied.all_end();
    proxied.keeps("churn", &["10"]);
    proxied.say_nothing_of_panics();
}

/// Both daemons together, for one idle connection.
const IDLE_BYTES_MAX: u64 = 2048;
/// And for one that has been closed: buffers kept for the next ones, shared by all, are most of it.
const CLOSED_BYTES_MAX: u64 = 512;
const IDLE: u64 = 9000;

#[test]
fn nine_thousand_idle_connections_cost_little_answer_and_give_all_back() {
    let _lock = alone();
    let proxied = Daemons::up();
    // What the first connections cost once is not the price of a connection.
    proxied.keeps("churn", &["600"]);
    std::thread::sleep(REST);
    let (fds, before, kernel) = (proxied.fds(), proxied.memory(), proxied.kernel_kb());
    let mut near = proxied.talk("hold", &[&IDLE.to_string()]);
    near.hear("HELD");
    let with = |bytes: u64| before.total() + bytes * IDLE / 1024;
    let held = proxied.memory_falls_to("idle connections", with(IDLE_BYTES_MAX));
    let held_kernel = proxied.kernel_kb();
    let each = held.total().saturating_sub(before.total()) * 1024 / IDLE;
    println!("{IDLE} idle: {before:?} before: {each} bytes each in both daemons");
    let kernel_each = held_kernel.saturating_sub(kernel) * 1024 / IDLE;
    println!(
        "kernel, the programs' own sockets included: {kernel_each} bytes each; fds {fds:?}, then {:?}",
        proxied.fds()
    );
    near.say("go");
    near.hear("ANSWERED");
    proxied.memory_falls_to("connections that have been answered", with(IDLE_BYTES_MAX));
    near.say("go");
    near.hear("CLOSED");
    near.say("go");
    println!("{}", near.ends());
    proxied.fds_return(fds);
    proxied.say_nothing_of_panics();
    proxied.memory_falls_to("closed connections", with(CLOSED_BYTES_MAX));
}

#[test]
fn ten_thousand_connections_leave_neither_fds_nor_memory() {
    let _lock = beside_others();
    let proxied = Daemons::up();
    proxied.keeps("churn", &["2000"]);
    std::thread::sleep(REST);
    let (fds, before) = (proxied.fds(), proxied.memory());
    println!("{}", proxied.keeps("churn", &["10000"]));
    proxied.fds_return(fds);
    let after = proxied.memory();
    println!("fds {fds:?}; {before:?} before, {after:?} after");
    let grown = after.total().saturating_sub(before.total());
    assert!(grown < 3 << 10, "{grown} KiB more after 10,000 connections: {before:?}, {after:?}");
}

#[test]
fn ends_of_killed_programs_show_at_once() {
    let _lock = beside_others();
    println!("{}", Daemons::up().keeps("ends_show_at_once", &[]));
}

#[test]
fn a_close_with_something_unread_is_a_reset_for_the_other_program() {
    let _lock = beside_others();
    Daemons::up().keeps("unread_is_a_reset", &[]);
}

/// Connections that have nothing to do with what follows.
fn others(proxied: &Daemons) -> Talk {
    let mut near = proxied.talk("hold", &["20"]);
    near.hear("HELD");
    near
}

/// They are all answered, and then closed.
fn go_on(mut near: Talk) {
    for done in ["ANSWERED", "CLOSED"] {
        near.say("go");
        near.hear(done);
    }
    near.say("go");
    near.ends();
}

/// What a peer that breaks the protocol does: the connection ends, one line says why, nobody else notices.
fn one_line_and_all_others_go_on(role: &str) {
    let _lock = beside_others();
    let proxied = Daemons::up();
    let mut wrong = Vec::new();
    let others = others(&proxied);
    for (case, words) in [
        ("garbage", "frame of type 255"),
        ("zeros", "frame of type 0"),
        ("truncated", "closed the link"),
        ("over_credit", "past the credit"),
        ("unknown_type", "frame of type 77"),
        ("unknown_flags", "flags 0x80"),
        ("too_long", "frame of 1048576 bytes"),
        ("a_stream_that_never_was", "stream 5"),
        ("a_number_that_is_not_its_own", "stream 2"),
        ("a_second_hello", "HELLO"),
        ("ping_flood", "frame of type 78"),
        ("another_version", "version 1"),
        ("http", "no HELLO"),
        ("words_behind_the_hello", "behind the HELLO"),
        ("a_hello_with_more_in_it", "4 bytes too many"),
    ] {
        let before = proxied.complaints(Host).len();
        let said = proxied.raw_node(role, &[case]);
        // The line comes from another thread than the connection's end; and the log has ten of one source in ten seconds.
        std::thread::sleep(Duration::from_millis(1_100));
        let new = proxied.complaints(Host).split_off(before);
        println!("{case}: {}", new.join(" | "));
        if !said.status.success() {
            wrong.push(format!("{case}: {}", said.err()));
        }
        if new.len() != 1 || !new[0].contains(words) {
            wrong.push(format!("{case}: not one line with '{words}': {new:#?}"));
        }
    }
    go_on(others);
    proxied.say_nothing_of_panics();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_node_that_breaks_the_protocol_is_one_line_and_all_others_go_on() {
    one_line_and_all_others_go_on("peer");
}

#[test]
fn a_command_that_breaks_the_protocol_is_one_line_and_all_others_go_on() {
    one_line_and_all_others_go_on("client");
}

#[test]
fn a_node_that_says_anything_at_all_ends_no_daemon_and_leaves_nothing_behind() {
    let _lock = beside_others();
    let proxied = Daemons::up();
    proxied.keeps("churn", &["100"]);
    std::thread::sleep(REST / 2);
    let fds = proxied.fds();
    let others = others(&proxied);
    for seed in ["1", "2", "3"] {
        proxied.raw_node("peer", &["anything", seed]).ok();
    }
    go_on(others);
    proxied.say_nothing_of_panics();
    proxied.all_end();
    proxied.fds_return(fds);
}

#[test]
fn a_listener_that_crossed_goes_with_its_stream() {
    let _lock = beside_others();
    let proxied = Daemons::up();
    proxied.keeps("churn", &["100"]);
    std::thread::sleep(REST / 2);
    let fds = proxied.fds();
    proxied.raw_node("peer", &["ended_listeners"]).ok();
    proxied.fds_return(fds);
}

#[test]
fn files_whose_file_system_never_answers_hold_up_nobody() {
    let _lock = beside_others();
    let proxied = Daemons::up();
    proxied.keeps("churn", &["100"]);
    std::thread::sleep(REST / 2);
    let fds = proxied.fds();
    // 1,800 fds and a duplicate of most: above what is kept open for closers that hang.
    let mut near = proxied.talk("pass_silent_files", &["600"]);
    near.hear("PASSED");
    let (_, held) = proxied.fds();
    assert!(proxied.complaints(Dpu).iter().any(|line| line.contains("can't be closed")), "the bound was not reached");
    assert!(held < fds.1 + 1500, "{held} fds stay open, above the bound");
    near.say("go");
    near.hear("ENDED");
    near.say("go");
    println!("{held} fds while it was silent; {}", near.ends());
    proxied.fds_return(fds);
    proxied.say_nothing_of_panics();
}

// ---- times --------------------------------------------------------------------------------------------------------

/// The figure before `unit` in proxy-bench's line, behind `name`.
#[track_caller]
fn figure(line: &str, name: &str, unit: &str) -> f64 {
    let behind = line.split(name).nth(1).unwrap_or_else(|| panic!("no '{name}' in: {line}"));
    behind.split(unit).next().and_then(|n| n.trim().parse().ok()).unwrap_or_else(|| panic!("no figure in: {line}"))
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// p99 of small requests in microseconds, and the bulk beside them in MB/s.
fn requests_beside_bulk(proxied: &Daemons, target: &str) -> (f64, f64) {
    let mut bulk = proxied.bench(&["throughput", "--connect", target, "--seconds", "3.4"]);
    std::thread::sleep(Duration::from_millis(400));
    let paced = ["latency", "--connect", target, "--rate", "500", "--seconds", "2.2", "--warm-up", "0.3"];
    let line = proxied.bench(&paced);
    let p99 = figure(&finished(line), "p99 ", "us");
    let deadline = Instant::now() + Duration::from_secs(20);
    while bulk.ended().is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    (p99, figure(&bulk.said(), "connections: ", "MB/s"))
}

#[track_caller]
fn finished(mut bench: Running) -> String {
    let shown = || String::new();
    eventually("proxy-bench has ended", Duration::from_secs(30), || bench.ended().is_some(), shown);
    bench.said()
}

#[test]
fn small_requests_beside_bulk_on_one_gigabit_wait_hardly_longer_than_over_bare_tcp() {
    let _lock = alone();
    let proxied = Daemons::up();
    let tcp = format!("{HOST_ADDR}:7000");
    let unix = format!("{DIR}/bench");
    let _bare = proxied.bench_server(&tcp);
    let _behind = proxied.bench_server(&unix);
    for machine in [Host, Dpu] {
        let words =
            ["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "1gbit", "burst", "64kb", "latency", "50ms"];
        proxied.lab.run(machine, &words).ok();
    }
    let rounds = std::env::var("FARSIDE_ROUNDS").map_or(5, |n| n.parse().expect("FARSIDE_ROUNDS is a number"));
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // Turn by turn, and each first every second time: a machine that gets busier favours neither.
        for first in [round % 2 == 0, round % 2 != 0] {
            let (target, into) = if first { (&unix, &mut ours) } else { (&tcp, &mut bare) };
            into.push(requests_beside_bulk(&proxied, target));
        }
    }
    println!("(p99 us, MB/s) ours {ours:?}\n              bare {bare:?}");
    let of =
        |all: &[(f64, f64)]| (median(all.iter().map(|r| r.0).collect()), median(all.iter().map(|r| r.1).collect()));
    let (ours, bare) = (of(&ours), of(&bare));
    let (slower, share) = (ours.0 / bare.0, ours.1 / bare.1);
    println!(
        "medians: p99 {:.0} us, bare {:.0} us: {slower:.2}; bulk {:.0}, bare {:.0} MB/s: {share:.2}",
        ours.0, bare.0, ours.1, bare.1
    );
    assert!(slower < 5.0 && share >= 0.5, "p99 {slower:.2} times bare TCP's, bulk {share:.2} of it");
}

#[test]
fn one_that_stops_reading_delays_no_other() {
    let _lock = alone();
    let proxied = Daemons::up();
    let unix = format!("{DIR}/bench");
    let _behind = proxied.bench_server(&unix);
    let before = figure(&finished(proxied.bench(&["latency", "--connect", &unix, "--seconds", "2"])), "p99 ", "us");
    let mut near = proxied.talk("stuck", &[]);
    near.hear("STUCK");
    let beside = figure(&finished(proxied.bench(&["latency", "--connect", &unix, "--seconds", "2"])), "p99 ", "us");
    println!("p99 {before:.0} us alone, {beside:.0} us beside one that is not read");
    assert!(beside < 50_000.0, "p99 {beside} us beside one that is not read");
    near.say("go");
    near.ends();
}
