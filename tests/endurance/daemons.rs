//! The lab with udsproxyd on both machines and the servers on the host, and what can be seen of the daemons from outside.

use std::time::{Duration, Instant};

use crate::lab::{DPU_ADDR, Dpu, HOST_ADDR, Host, Lab, Machine, Running, Said, bin, eventually, repository, shim};
use crate::talk::Talk;

const PORT: &str = "12121";
pub(crate) const DIR: &str = "/var/tmp/far";
/// As a usual service has it: 9,000 connections must fit.
const FDS: &str = "--nofile=20000:20000";

pub(crate) struct Daemons {
    pub(crate) lab: Lab,
    daemons: [Running; 2],
    _servers: Running,
}

/// Proportional set sizes, in KiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    host: u64,
    dpu: u64,
}

impl Memory {
    pub(crate) fn total(self) -> u64 {
        self.host + self.dpu
    }
}

fn path(of: &str) -> String {
    repository().join("tests/endurance").join(of).display().to_string()
}

impl Daemons {
    #[track_caller]
    pub(crate) fn up() -> Self {
        let lab = Lab::up();
        for machine in [Host, Dpu] {
            lab.run(machine, &["mkdir", "-p", DIR]).ok();
        }
        let servers = lab.spawn(Host, &["prlimit", FDS, "/usr/bin/python3", &path("far.py"), DIR]);
        servers.wait_for("READY");
        // The caller's environment goes along: FARSIDE_ENGINE and RUST_LOG among it.
        let start = |machine, own, peer| {
            let words = ["prlimit", FDS, bin("udsproxyd"), "1", own, PORT, peer, PORT];
            lab.spawn(machine, &words)
        };
        let daemons = [start(Host, HOST_ADDR, DPU_ADDR), start(Dpu, DPU_ADDR, HOST_ADDR)];
        daemons.iter().for_each(|daemon| daemon.wait_for("session up"));
        Self { lab, daemons, _servers: servers }
    }

    fn said(&self, machine: Machine) -> String {
        self.daemons[usize::from(machine == Dpu)].said()
    }

    pub(crate) fn talk(&self, promise: &str, args: &[&str]) -> Talk {
        let (preload, script) = (format!("LD_PRELOAD={}", shim().display()), path("near.py"));
        let program = ["prlimit", FDS, "/usr/bin/env", &preload, "/usr/bin/python3", &script, promise, DIR];
        Talk::start(self.lab.raw(Dpu, &[&program, args].concat()), promise)
    }

    #[track_caller]
    pub(crate) fn keeps(&self, promise: &str, args: &[&str]) -> String {
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.talk(promise, args).ends()));
        ran.unwrap_or_else(|_| {
            panic!("{promise}, see above\nhost: {:?}\ndpu: {:?}", self.complaints(Host), self.complaints(Dpu))
        })
    }

    /// A node of its own on the DPU that speaks to the host's daemon.
    #[track_caller]
    pub(crate) fn raw_node(&self, role: &str, case: &[&str]) -> Said {
        let tunnel = std::path::Path::new(bin("farside")).with_file_name("examples").join("raw_link");
        assert!(tunnel.exists(), "{} is missing: cargo build --example raw_link", tunnel.display());
        let tunnel = format!("RAW_LINK={}", tunnel.display());
        let words = ["/usr/bin/env", &tunnel, "/usr/bin/python3", &path("raw.py"), HOST_ADDR, PORT, role];
        self.lab.run(Dpu, &[&words, case].concat())
    }

    /// A daemon's lines of level WARN or above.
    pub(crate) fn complaints(&self, machine: Machine) -> Vec<String> {
        let loud = |line: &&str| [" WARN ", "ERROR ", "panicked"].iter().any(|word| line.contains(word));
        self.said(machine).lines().filter(loud).map(String::from).collect()
    }

    #[track_caller]
    pub(crate) fn say_nothing_of_panics(&self) {
        for machine in [Host, Dpu] {
            let said = self.said(machine);
            assert!(!said.contains("panicked"), "{said}");
        }
    }

    #[track_caller]
    fn of_daemon<T: std::str::FromStr>(&self, machine: Machine, script: &str) -> T {
        let said = self.lab.sh(machine, &format!("p=/proc/$(pgrep -x udsproxyd); {script}")).ok();
        said.trim().parse().unwrap_or_else(|_| panic!("no number: {said}"))
    }

    /// Of the host's and the DPU's daemon.
    #[track_caller]
    pub(crate) fn fds(&self) -> (usize, usize) {
        let of = |machine| self.of_daemon(machine, "ls $p/fd | wc -l");
        (of(Host), of(Dpu))
    }

    #[track_caller]
    pub(crate) fn memory(&self) -> Memory {
        let of = |machine| self.of_daemon(machine, "awk '/^Pss:/ { print $2 }' $p/smaps_rollup");
        Memory { host: of(Host), dpu: of(Dpu) }
    }

    /// Waits until both daemons together hold no more than that. Buffers cool, and the allocator is trimmed, some time after
    /// a burst; on a busy machine later than on a quiet one.
    #[track_caller]
    pub(crate) fn memory_falls_to(&self, what: &str, most_kib: u64) -> Memory {
        let begun = Instant::now();
        let low = || self.memory().total() <= most_kib;
        let shown = || format!("{:?}, {most_kib} KiB at most\n{}", self.memory(), self.maps());
        eventually(&format!("the memory of {what} is at its bound"), Duration::from_secs(120), low, shown);
        let now = self.memory();
        println!("{what}: {now:?} after {:?}, {most_kib} KiB at most", begun.elapsed());
        now
    }

    /// The largest parts of both daemons' memory.
    fn maps(&self) -> String {
        let parts = "awk '/^[0-9a-f]+-/ { name = $1 \" \" $6 } /^Pss:/ && $2 > 200 { print $2, name }' \
                     /proc/$(pgrep -x udsproxyd)/smaps | sort -rn | head -n 20";
        [Host, Dpu].map(|machine| self.lab.sh(machine, parts).out()).join("\n")
    }

    /// Slab memory of the whole kernel, in KiB: an upper bound of what connections cost there.
    #[track_caller]
    pub(crate) fn kernel_kb(&self) -> u64 {
        self.of_daemon(Host, "awk '/^Slab:/ { print $2 }' /proc/meminfo")
    }

    #[track_caller]
    pub(crate) fn fds_return(&self, before: (usize, usize)) {
        let back = || {
            let now = self.fds();
            now.0 <= before.0 && now.1 <= before.1
        };
        let open = |machine| {
            self.lab.sh(machine, "ls -l /proc/$(pgrep -x udsproxyd)/fd | sed 's/.* -> //' | sort | uniq -c").out()
        };
        let shown = || format!("{:?} now, {before:?} before\n{}\n{}", self.fds(), open(Host), open(Dpu));
        eventually("the fds of both daemons return", Duration::from_secs(20), back, shown);
    }

    /// The servers have no connection left.
    #[track_caller]
    pub(crate) fn all_end(&self) {
        let none = || self.keeps("opened", &[]).contains("NOW 0");
        eventually("every connection has ended at its server", Duration::from_secs(10), none, String::new);
    }

    /// Beside the programs; `cargo build --workspace` builds it.
    fn bench_path() -> String {
        let path = std::path::Path::new(bin("farside")).with_file_name("proxy-bench");
        assert!(path.exists(), "{} is missing: cargo build -p proxy-bench", path.display());
        path.display().to_string()
    }

    #[track_caller]
    pub(crate) fn bench_server(&self, target: &str) -> Running {
        let server = self.lab.spawn(Host, &[&Self::bench_path(), "serve", target]);
        server.wait_for("serving on");
        server
    }

    /// On the DPU, under the shim: a TCP address is none of its business.
    #[track_caller]
    pub(crate) fn bench(&self, words: &[&str]) -> Running {
        let bench = Self::bench_path();
        self.lab.spawn_with(
            Dpu,
            &[],
            &[&["/usr/bin/env", &format!("LD_PRELOAD={}", shim().display()), &bench], words].concat(),
        )
    }
}
