//! Ten thousand asks leave nothing behind; and what one costs.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use farside::sys::unix::{self, SocketKind};

use crate::lab::{Answer, Attach, Lab, lab, open_fds, serve, soon};

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn ten_thousand_asks_leave_nothing() {
    let Some(lab) = lab("leaks") else { return };
    let ended = Arc::new(AtomicUsize::new(0));
    let path = lab.far_path("x");
    serve(path.as_os_str().as_encoded_bytes(), SocketKind::Stream, 0o666, Answer::Count(ended.clone()));
    *lab.far.attach.lock().unwrap() = Attach::Drop;
    // The heap has reached its usual size after some thousands.
    lab.run(&["bench", &lab.near("x"), "16", "400"]);
    soon("the ends", || ended.load(Ordering::SeqCst) == 6400);
    let (fds, memory) = (open_fds(), resident_kib());
    lab.run(&["bench", &lab.near("x"), "16", "600"]);
    for n in 0..200 {
        assert_eq!(lab.run(&["errno", &lab.near(&format!("missing {n}"))]), "ENOENT\n");
        assert_eq!(lab.run(&["errno", &lab.near("x"), "dgram"]), "EPROTOTYPE\n");
    }
    soon("the ends", || ended.load(Ordering::SeqCst) == 16_000);
    soon("the fds' return", || open_fds() <= fds);
    let grown = resident_kib().saturating_sub(memory);
    assert!(grown < 4096, "{grown} KiB more than before");
}

#[test]
fn many_names_do_not_fill_the_private_directories() {
    let Some(lab) = lab("names") else { return };
    *lab.far.attach.lock().unwrap() = Attach::Nowhere;
    for n in 0..100 {
        std::fs::create_dir_all(lab.dir.join(format!("near/{n}"))).unwrap();
        assert_eq!(lab.run(&["errno", &lab.near(&format!("{n}/s"))]), "OK\n");
    }
    let listeners = std::fs::read_dir(lab.dir.join("ctl/uds.d")).unwrap().count() - 1;
    assert!(listeners <= 64, "{listeners} listeners kept");
    std::thread::sleep(std::time::Duration::from_millis(10_500));
    let listeners = std::fs::read_dir(lab.dir.join("ctl/uds.d")).unwrap().count() - 1;
    assert_eq!(listeners, 0, "listeners kept for ever");
}

/// Connects a second, elapsed and CPU microseconds for each, the daemon's and the program's together.
fn rate(lab: &Lab, name: &str, threads: &str) -> String {
    let before = cpu_us();
    let said = lab.run(&["bench", &lab.near(name), threads, "3000"]);
    let connects = 3000 * threads.parse::<i64>().unwrap();
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{said} cpu-us {}", (cpu_us() - before) / connects)
}

fn cpu_us() -> i64 {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    let of = |who| {
        let usage = getrusage(who).unwrap();
        usage.user_time().num_microseconds() + usage.system_time().num_microseconds()
    };
    of(UsageWho::RUSAGE_SELF) + of(UsageWho::RUSAGE_CHILDREN)
}

/// Not a promise, a figure: `cargo test --release --test shim what_a -- --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn what_a_connect_costs() {
    let Some(lab) = lab("cost") else { return };
    let floor = unix::socket(SocketKind::Stream, false).unwrap();
    unix::bind(floor.as_fd(), lab.near("floor").as_bytes()).unwrap();
    unix::listen(floor.as_fd(), 256).unwrap();
    std::thread::spawn(move || while unix::accept(floor.as_fd()).is_ok() {});
    let far = unix::socket(SocketKind::Stream, false).unwrap();
    unix::bind(far.as_fd(), lab.far_path("x").as_os_str().as_encoded_bytes()).unwrap();
    unix::listen(far.as_fd(), 256).unwrap();
    std::thread::spawn(move || while unix::accept(far.as_fd()).is_ok() {});
    for threads in ["1", "16"] {
        *lab.far.attach.lock().unwrap() = Attach::Nowhere;
        eprintln!("{threads} at once, local socket:        {}", rate(&lab, "floor", threads));
        eprintln!("{threads} at once, shim and near side:  {}", rate(&lab, "x", threads));
        *lab.far.attach.lock().unwrap() = Attach::Drop;
        eprintln!("{threads} at once, with the far side:   {}", rate(&lab, "x", threads));
    }
}
