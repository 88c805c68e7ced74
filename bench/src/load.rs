//! What all measurements share: their options, their window of time, and rounds over several targets.
//!
//! ```text
//!   begun ──warm-up──▶ counted ───────────────▶ over
//!                      │ processor time, calls │      of the watched processes: exactly while requests count
//! ```

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Args;

use crate::outcome::{Outcome, median, short};
use crate::target::Target;
use crate::usage::{Counted, Seen, Watch, Watching};

#[derive(Debug, Clone, Args)]
pub(crate) struct Common {
    /// The server's socket, or ADDR:PORT for the same over bare TCP; given more than once, they take turns
    #[arg(long, value_name = "PATH", required = true)]
    pub(crate) connect: Vec<Target>,
    /// Seconds that count
    #[arg(long, default_value_t = 3.0)]
    pub(crate) seconds: f64,
    /// Seconds before, that do not count
    #[arg(long, default_value_t = 0.5)]
    pub(crate) warm_up: f64,
    /// Rounds; each one measures every target once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// A proxy whose processor time is measured, with its children: a name and a process; may be given more than once
    #[arg(long, value_name = "NAME=PID")]
    pub(crate) watch: Vec<Watch>,
    /// Also count the system calls of watched proxies. It slows every call of the machine: not for times
    #[arg(long)]
    pub(crate) count_calls: bool,
    /// One line of JSON a measurement, instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// When a measurement begins and ends; the same for all of its threads.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    begun: Instant,
    warm_up: Duration,
    end: Duration,
}

impl Window {
    /// # Errors
    /// Times below zero.
    pub(crate) fn starting(common: &Common) -> Result<Self, String> {
        let one = |name: &str, v: f64| {
            Duration::try_from_secs_f64(v).map_err(|_| format!("--{name} {v}: seconds must be 0 or more"))
        };
        let (warm_up, counted) = (one("warm-up", common.warm_up)?, one("seconds", common.seconds)?);
        Ok(Self { begun: Instant::now(), warm_up, end: warm_up + counted })
    }

    pub(crate) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(crate) fn counts(&self, at: Duration) -> bool {
        at >= self.warm_up && at < self.end
    }

    pub(crate) fn is_over(&self, at: Duration) -> bool {
        at >= self.end
    }

    pub(crate) fn seconds(&self) -> f64 {
        (self.end - self.warm_up).as_secs_f64()
    }

    /// Nanoseconds since then, as a histogram takes them.
    pub(crate) fn since(&self, at: Duration) -> u64 {
        u64::try_from((self.now() - at).as_nanos()).unwrap_or(u64::MAX)
    }

    fn sleep_until(&self, at: Duration) {
        std::thread::sleep(at.saturating_sub(self.now()));
    }

    /// Sleeps through the window and measures what the watched processes use in it.
    fn observe(&self, common: &Common) -> Result<Seen, String> {
        if common.count_calls {
            // By then every connection has been served, and every thread and process for it is there; and as early as
            // that, since a counter for each takes its time.
            self.sleep_until(self.warm_up / 2);
        }
        let calls = Counted::prepare(&common.watch, common.count_calls);
        let late = self.now().saturating_sub(self.warm_up);
        self.sleep_until(self.warm_up);
        let watching = Watching::start(&common.watch, calls.in_time(late))?;
        self.sleep_until(self.end);
        watching.stop()
    }
}

/// Runs each job on a thread of its own while the window is observed.
///
/// # Errors
/// The first job's that failed.
pub(crate) fn all_threads<T: Send + 'static, J>(
    common: &Common,
    window: &Window,
    jobs: impl Iterator<Item = J>,
) -> Result<(Vec<T>, Seen), String>
where
    J: FnOnce() -> Result<T, String> + Send + 'static,
{
    let threads: Vec<JoinHandle<Result<T, String>>> = jobs.map(std::thread::spawn).collect();
    let seen = window.observe(common);
    let mut all = Vec::new();
    for thread in threads {
        all.push(thread.join().map_err(|_| "a thread panicked")??);
    }
    Ok((all, seen?))
}

/// Measures every target once a round, each first in its turn, and prints what was found.
///
/// # Errors
/// The first measurement's that failed: what was found before it is printed.
pub(crate) fn rounds(
    common: &Common,
    text: impl Fn(&Outcome) -> String,
    mut once: impl FnMut(&Target) -> Result<Outcome, String>,
) -> Result<(), String> {
    let mut found: Vec<Vec<Outcome>> = vec![Vec::new(); common.connect.len()];
    for round in 0..common.rounds as usize {
        for turn in 0..common.connect.len() {
            let which = (round + turn) % common.connect.len();
            let outcome = once(&common.connect[which])?;
            if common.json {
                println!("{}", outcome.json());
            } else if found.len() == 1 && common.rounds == 1 {
                println!("{}", text(&outcome));
                outcome.not_measured.iter().for_each(|why| println!("  not measured: {why}"));
            }
            found[which].push(outcome);
        }
    }
    if !common.json && (found.len() > 1 || common.rounds > 1) {
        print_medians(&found);
    }
    Ok(())
}

/// A row a figure, a column a target: the median, and the lowest and highest round.
fn print_medians(found: &[Vec<Outcome>]) {
    let Some(first) = found.first().and_then(|rounds| rounds.first()) else { return };
    let cell = |rounds: &[Outcome], name: &str| {
        let values: Vec<f64> = rounds.iter().filter_map(|o| o.figure(name)).collect();
        if values.is_empty() {
            return "-".to_string();
        }
        let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
        format!("{} ({}..{})", short(median(&values)), short(low), short(high))
    };
    let mut rows = vec![vec![first.what.clone()]];
    rows[0].extend(found.iter().map(|rounds| rounds[0].on.clone()));
    for name in first.figures.keys() {
        let mut row = vec![name.clone()];
        row.extend(found.iter().map(|rounds| cell(rounds, name)));
        rows.push(row);
    }
    print!("{}", table(&rows));
    let mut missing: Vec<&String> = found.iter().flatten().flat_map(|o| &o.not_measured).collect();
    missing.sort();
    missing.dedup();
    missing.iter().for_each(|why| println!("not measured: {why}"));
}

/// Columns as wide as their widest cell; the first to the left, the others to the right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|t| t.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(c, (cell, w))| if c == 0 { format!("{cell:<w$}") } else { format!("{cell:>w$}") })
            .collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}
