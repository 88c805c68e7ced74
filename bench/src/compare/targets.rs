//! What ours is to reach, once and as data. The metrics and bounds are agreed on and not for tuning.

/// A figure of an entrant's cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Metric {
    pub(super) cell: &'static str,
    pub(super) entrant: &'static str,
    pub(super) figure: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// Ours against a number, or, round by round, against somebody else in the same round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Goal {
    pub(super) what: &'static str,
    pub(super) ours: Metric,
    pub(super) beside: Option<Metric>,
    pub(super) bound: Bound,
    /// 1 of the figure's unit in the table: KiB for bytes, and the like.
    pub(super) unit: &'static str,
}

/// Ours with encryption and the best engine; its client connects by the shim; without encryption.
const OURS: &str = "ours";
pub(super) const SHIM: &str = "ours+shim";
const PLAIN: &str = "ours-plain";

const fn goal(
    what: &'static str,
    (cell, figure): (&'static str, &'static str),
    ours: &'static str,
    beside: Option<&'static str>,
    bound: Bound,
    unit: &'static str,
) -> Goal {
    let beside = match beside {
        Some(entrant) => Some(Metric { cell, entrant, figure }),
        None => None,
    };
    Goal { what, ours: Metric { cell, entrant: ours, figure }, beside, bound, unit }
}

use Bound::{AtLeast, AtMost};

const P50: (&str, &str) = ("rt1", "p50_us");
const RATE_64: (&str, &str) = ("rt64", "requests_per_s");
const CPU_64: (&str, &str) = ("rt64", "cpu_s_per_100k");
const CHURN_16: (&str, &str) = ("churn16", "connections_per_s");

pub(super) const GOALS: [Goal; 24] = [
    goal("64 B, 1 connection, p50: plain / haproxy", P50, PLAIN, Some("haproxy"), AtMost(1.0), "x"),
    goal("64 B, 1 connection, p50: encrypted / haproxy", P50, OURS, Some("haproxy"), AtMost(1.1), "x"),
    goal("64 B, 1 connection, p50: plain / bare chain", P50, PLAIN, Some("bare"), AtMost(1.2), "x"),
    goal("64 B, 1 connection, p50: encrypted / bare chain", P50, OURS, Some("bare"), AtMost(1.2), "x"),
    goal("64 B, 64 connections, requests/s / ssh", RATE_64, OURS, Some("ssh"), AtLeast(2.0), "x"),
    goal("64 B, 64 connections, requests/s / haproxy", RATE_64, OURS, Some("haproxy"), AtLeast(2.5), "x"),
    goal("64 B, 64 connections, p99 / nginx", ("rt64", "p99_us"), OURS, Some("nginx"), AtMost(0.5), "x"),
    goal("CPU a 100k round trips, 64 connections: plain", CPU_64, PLAIN, None, AtMost(0.45), "s"),
    goal("CPU a 100k round trips, 64 connections: encrypted", CPU_64, OURS, None, AtMost(0.6), "s"),
    goal("bulk, 1 connection: plain / nginx", ("bulk1", "mb_per_s"), PLAIN, Some("nginx"), AtLeast(1.5), "x"),
    goal("bulk, 16 connections: plain / nginx", ("bulk16", "mb_per_s"), PLAIN, Some("nginx"), AtLeast(1.5), "x"),
    goal("bulk, 1 connection: encrypted / ssh", ("bulk1", "mb_per_s"), OURS, Some("ssh"), AtLeast(1.8), "x"),
    goal("bulk, 16 connections: encrypted / ssh", ("bulk16", "mb_per_s"), OURS, Some("ssh"), AtLeast(1.8), "x"),
    goal("CPU a GB, 1 connection: encrypted / nginx", ("bulk1", "cpu_s_per_gb"), OURS, Some("nginx"), AtMost(1.0), "x"),
    goal(
        "CPU a GB, 16 connections: encrypted / nginx",
        ("bulk16", "cpu_s_per_gb"),
        OURS,
        Some("nginx"),
        AtMost(1.0),
        "x",
    ),
    goal(
        "connections/s by the shim, one at a time / nginx",
        ("churn1", "connections_per_s"),
        SHIM,
        Some("nginx"),
        AtLeast(1.5),
        "x",
    ),
    goal("connections/s by the shim, 16 at once / nginx", CHURN_16, SHIM, Some("nginx"), AtLeast(1.5), "x"),
    goal("the same, provisional (1.5x counts)", CHURN_16, SHIM, Some("nginx"), AtLeast(2.5), "x"),
    goal("memory of both sides an idle connection", ("idle", "kib_per_connection"), OURS, None, AtMost(2.0), "KiB"),
    goal("p99 beside bulk at 1 Gbit/s / two bare sockets", ("mixed", "p99_us"), OURS, Some("tcp"), AtMost(1.5), "x"),
    goal(
        "bulk beside requests at 1 Gbit/s / bare sockets",
        ("mixed", "mb_per_s"),
        OURS,
        Some("tcp"),
        AtLeast(0.9),
        "x",
    ),
    goal(
        "system calls a round trip, 64 connections, near",
        ("calls64", "calls_per_request:near"),
        OURS,
        None,
        AtMost(0.1),
        "",
    ),
    goal(
        "system calls a round trip, 64 connections, far",
        ("calls64", "calls_per_request:far"),
        OURS,
        None,
        AtMost(0.1),
        "",
    ),
    goal("fds: a pipe a message, 16 connections", ("fds16", "messages_per_s"), OURS, None, AtLeast(5000.0), "/s"),
];

#[cfg(test)]
mod tests {
    use super::super::cells::CELLS;
    use super::*;

    #[test]
    fn every_goal_is_of_a_cell_that_is_measured() {
        for goal in &GOALS {
            let metrics = [Some(goal.ours), goal.beside];
            for metric in metrics.into_iter().flatten() {
                let cell = CELLS.iter().find(|c| c.name == metric.cell).expect(goal.what);
                assert!(cell.shown.iter().any(|(figure, _)| *figure == metric.figure), "{}", goal.what);
            }
        }
    }
}
