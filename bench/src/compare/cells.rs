//! What is measured of each entrant: one row of subcommands, the same words for everybody.

use super::entrants::{Entrant, Kind};

/// One measurement of a round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cell {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    /// The subcommand and its words.
    words: &'static [&'static str],
    /// Figures that the table for people shows.
    pub(super) shown: &'static [(&'static str, &'static str)],
    who: Who,
    /// How many of `--seconds` it takes.
    pub(super) seconds: f64,
}

/// Who takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    All,
    /// Everybody with processes to watch.
    Proxies,
    /// By a pair started for it alone.
    Fresh,
    /// Direct TCP and ours, at 1 Gbit/s.
    Shaped,
    /// Those that carry fds.
    Fds,
}

/// Warm-up where system calls are counted: four hundred counters in half of it.
const COUNTERS_S: f64 = 1.2;
/// Idle connections rest five times as long as a measurement takes: with the usual half second past the time that ours
/// keeps a buffer for a connection that may go on.
const REST: f64 = 5.0;
const CPU_100K: (&str, &str) = ("cpu_s_per_100k", "CPU s/100k");

pub(super) const CELLS: [Cell; 11] = [
    Cell {
        name: "rt1",
        title: "round trips of 64 B, 1 connection",
        words: &["latency", "--connections", "1", "--size", "64"],
        shown: &[("p50_us", "p50 us"), ("p99_us", "p99 us"), CPU_100K],
        who: Who::All,
        seconds: 1.0,
    },
    Cell {
        name: "rt64",
        title: "round trips of 64 B, 64 connections",
        words: &["latency", "--connections", "64", "--size", "64"],
        shown: &[("requests_per_s", "requests/s"), ("p50_us", "p50 us"), ("p99_us", "p99 us"), CPU_100K],
        who: Who::All,
        seconds: 1.0,
    },
    Cell {
        name: "bulk1",
        title: "bulk, 1 connection",
        words: &["throughput", "--connections", "1"],
        shown: &[("mb_per_s", "MB/s"), ("cpu_s_per_gb", "CPU s/GB")],
        who: Who::All,
        seconds: 1.0,
    },
    Cell {
        name: "bulk16",
        title: "bulk, 16 connections",
        words: &["throughput", "--connections", "16"],
        shown: &[("mb_per_s", "MB/s"), ("cpu_s_per_gb", "CPU s/GB")],
        who: Who::All,
        seconds: 1.0,
    },
    Cell {
        name: "churn1",
        title: "connect, 1 byte echoed, close: one at a time",
        words: &["churn", "--connections", "1"],
        shown: &[("connections_per_s", "connections/s"), ("p99_us", "p99 us")],
        who: Who::All,
        seconds: 1.0,
    },
    Cell {
        name: "churn16",
        title: "connect, 1 byte echoed, close: 16 at once",
        words: &["churn", "--connections", "16"],
        shown: &[("connections_per_s", "connections/s"), ("p99_us", "p99 us")],
        who: Who::All,
        seconds: 1.0,
    },
    Cell {
        name: "calls64",
        title: "system calls a round trip, 64 connections",
        words: &["latency", "--connections", "64", "--size", "64", "--count-calls"],
        shown: &[("calls_per_request:near", "near"), ("calls_per_request:far", "far")],
        who: Who::Proxies,
        seconds: 0.5,
    },
    Cell {
        name: "fds1",
        title: "a pipe a message, 1 connection",
        words: &["fds", "--connections", "1"],
        shown: &[("messages_per_s", "messages/s"), ("p99_us", "p99 us")],
        who: Who::Fds,
        seconds: 1.0,
    },
    Cell {
        name: "fds16",
        title: "a pipe a message, 16 connections",
        words: &["fds", "--connections", "16"],
        shown: &[("messages_per_s", "messages/s"), ("p99_us", "p99 us")],
        who: Who::Fds,
        seconds: 1.0,
    },
    Cell {
        name: "mixed",
        title: "500 small requests/s beside bulk, 1 Gbit/s by tbf on both eth0",
        words: &["mixed", "--rate", "500"],
        shown: &[("p50_us", "p50 us"), ("p99_us", "p99 us"), ("mb_per_s", "MB/s")],
        who: Who::Shaped,
        seconds: 4.0,
    },
    Cell {
        name: "idle",
        title: "idle connections",
        words: &["idle"],
        shown: &[("kib_per_connection", "KiB"), ("fds_per_connection", "fds"), ("connections", "connections")],
        who: Who::Fresh,
        seconds: 1.0,
    },
];

impl Cell {
    pub(super) fn is_fresh(&self) -> bool {
        self.who == Who::Fresh
    }

    pub(super) fn is_shaped(&self) -> bool {
        self.who == Who::Shaped
    }

    /// Churn: ours is entered by the exported socket and by the shim too.
    pub(super) fn has_shim(&self) -> bool {
        self.words[0] == "churn"
    }

    pub(super) fn takes(&self, entrant: &Entrant, round: u32) -> bool {
        let ours = matches!(entrant.kind, Kind::Ours { .. });
        let best = matches!(entrant.kind, Kind::Ours { engine, .. } if engine != "epoll");
        match self.who {
            Who::All => true,
            Who::Proxies => !matches!(entrant.kind, Kind::Unix | Kind::Tcp),
            // What others hold is compared with nothing, and hardly differs from round to round.
            Who::Fresh => best || (round == 0 && entrant.idle_max > 0),
            Who::Shaped => best || entrant.kind == Kind::Tcp,
            Who::Fds => ours || entrant.kind == Kind::Unix,
        }
    }

    /// The words behind `proxy-bench`, but for the target and whom to watch.
    pub(super) fn words(&self, entrant: &Entrant, seconds: f64, idle: u32) -> Vec<String> {
        let mut words: Vec<String> = self.words.iter().map(ToString::to_string).collect();
        if self.is_fresh() {
            words.extend(["--connections".into(), idle.min(entrant.idle_max).to_string()]);
            words.extend(["--rest".into(), (seconds * REST).to_string()]);
        } else {
            let seconds = seconds * self.seconds;
            // A counter for each thread of each proxy takes its time.
            let warm_up = if self.words.contains(&"--count-calls") { COUNTERS_S } else { seconds / 4.0 };
            words.extend(["--seconds".into(), seconds.to_string(), "--warm-up".into(), warm_up.to_string()]);
        }
        words
    }
}
