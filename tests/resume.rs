//! What outlives a link: with real daemons, real programs, and a link that is cut in every way there is.

mod lab;

use std::time::{Duration, Instant};

use lab::{DPU_ADDR, Dpu, HOST_ADDR, Host, Lab, Running, bin, eventually, repository, shim};

const DIR: &str = "/var/tmp/far";
const PORT: &str = "7777";

struct Pair {
    lab: Lab,
    host: Running,
    dpu: Running,
    _servers: Running,
}

fn script(name: &str) -> String {
    repository().join("tests/resume").join(name).to_str().unwrap().to_owned()
}

/// The DPU dials the host. `config`: of both.
fn up(config: &str) -> Pair {
    let lab = Lab::up();
    for machine in [Host, Dpu] {
        lab.run(machine, &["mkdir", "-p", DIR]).ok();
        if !config.is_empty() {
            lab.write(machine, "/etc/farside/node.toml", config);
        }
    }
    let servers = lab.spawn(Host, &["/usr/bin/python3", &script("far.py"), DIR]);
    servers.wait_for("READY");
    let host = lab.spawn(Host, &[bin("udsproxyd"), "2", HOST_ADDR, PORT, DPU_ADDR, PORT]);
    let dpu = lab.spawn(Dpu, &[bin("udsproxyd"), "2", DPU_ADDR, PORT, HOST_ADDR, PORT]);
    for daemon in [&host, &dpu] {
        daemon.wait_for("session up");
    }
    Pair { lab, host, dpu, _servers: servers }
}

impl Pair {
    fn programs(&self, seconds: u64) -> Running {
        let preload = format!("LD_PRELOAD={}", shim().display());
        let words = ["/usr/bin/env", &preload, "/usr/bin/python3", &script("near.py"), DIR, &seconds.to_string()];
        let near = self.lab.spawn(Dpu, &words);
        near.wait_for("READY");
        near
    }

    fn logs(&self, near: &Running) -> String {
        format!("{}\nhost: {}\ndpu: {}", near.said(), self.host.said(), self.dpu.said())
    }
}

/// The numbers of `near.py`'s last line: bytes, records, fds, longest wait, failures.
#[track_caller]
fn ledger(pair: &Pair, near: &Running) -> [f64; 5] {
    let is_there = || near.said().contains("failures");
    eventually("the ledger", Duration::from_secs(40), is_there, || pair.logs(near));
    let said = near.said();
    let line = said.lines().find(|line| line.starts_with("LEDGER")).unwrap();
    println!("{line}");
    let numbers: Vec<f64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().unwrap_or_else(|_| panic!("{said}"))
}

#[test]
fn streams_records_and_fds_go_on_over_links_that_are_cut() {
    let pair = up("");
    let near = pair.programs(14);
    let begun = Instant::now();
    let mut cuts = 0;
    while begun.elapsed() < Duration::from_secs(12) {
        for how in ["rst", "drop", "rst", "link"] {
            pair.lab.cut(how);
            std::thread::sleep(Duration::from_millis(150));
            pair.lab.restore();
            std::thread::sleep(Duration::from_millis(600));
            cuts += 1;
        }
    }
    let [bytes, records, fds, longest, failures] = ledger(&pair, &near);
    assert_eq!(failures, 0.0, "after {cuts} cuts: {}", pair.logs(&near));
    assert!(
        bytes > 1e6 && records > 20.0 && fds > 20.0,
        "{bytes} bytes, {records} records, {fds} fds: {}",
        pair.logs(&near)
    );
    assert!(longest < 12.0, "{longest} s: {}", pair.logs(&near));
    assert!(pair.dpu.said().contains("session resumed after"), "{}", pair.logs(&near));
    assert!(!pair.dpu.said().contains("session over"), "{}", pair.logs(&near));
}

#[test]
fn without_grace_a_session_ends_with_its_link() {
    let pair = up("[session]\ngrace = 0\n");
    let near = pair.programs(5);
    std::thread::sleep(Duration::from_secs(1));
    pair.lab.cut("rst");
    let [.., failures] = ledger(&pair, &near);
    assert!(failures > 0.0, "{}", pair.dpu.said());
    assert!(!pair.dpu.said().contains("resumed"), "{}", pair.dpu.said());
}

#[test]
fn what_is_cut_for_longer_than_the_grace_ends_and_says_so() {
    let pair = up("[session]\ngrace = 2\n");
    let near = pair.programs(8);
    std::thread::sleep(Duration::from_secs(1));
    pair.lab.cut("drop");
    let [.., failures] = ledger(&pair, &near);
    assert!(failures > 0.0, "{}", pair.dpu.said());
    pair.dpu.wait_for("no new link within the grace time");
    pair.lab.restore();
}

#[test]
fn a_daemon_that_is_gone_for_good_is_not_waited_for() {
    let pair = up("");
    let near = pair.programs(30);
    std::thread::sleep(Duration::from_secs(1));
    let begun = Instant::now();
    pair.lab.run(Host, &["pkill", "-KILL", "-x", "udsproxyd"]).ok();
    let [.., failures] = ledger(&pair, &near);
    assert!(failures > 0.0 && begun.elapsed() < Duration::from_secs(6), "{:?}: {}", begun.elapsed(), pair.dpu.said());
}
