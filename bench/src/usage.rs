//! What proxies use: processor time, memory, fds and system calls of processes and all of their children.
//!
//! Processor time is each process's own clock (clock_getcpuclockid(3)): nanoseconds, all threads, also those that have
//! ended. A child that begins and ends within the window is not seen; the proxies' children last as long as a connection.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::str::FromStr;
use std::time::Duration;

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

use crate::calls::Calls;
use crate::outcome::{Outcome, float};

/// A process that is one side of a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Watch {
    pub(crate) name: String,
    pub(crate) pid: i32,
}

impl FromStr for Watch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, pid) = text.split_once('=').ok_or("NAME=PID")?;
        let pid = pid.parse().map_err(|_| format!("{pid:?} is no process id"))?;
        if pid <= 0 || name.is_empty() { Err("NAME=PID".into()) } else { Ok(Self { name: name.into(), pid }) }
    }
}

impl std::fmt::Display for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.name, self.pid)
    }
}

/// The process and everything below it.
fn family(root: i32) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name between the brackets may hold anything.
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let Some(parent) = rest.split(' ').nth(1).and_then(|p| p.parse().ok()) else { continue };
        children.entry(parent).or_default().push(pid);
    }
    let mut all = vec![root];
    let mut next = 0;
    while let Some(pid) = all.get(next) {
        all.extend(children.get(pid).cloned().unwrap_or_default());
        next += 1;
    }
    all
}

/// The threads of all of these.
fn threads(family: &[i32]) -> HashSet<i32> {
    let of = |pid: &i32| fs::read_dir(format!("/proc/{pid}/task"));
    family
        .iter()
        .flat_map(|p| of(p).into_iter().flatten().flatten())
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect()
}

/// `None`: it has ended.
fn processor_time(pid: i32) -> Option<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid)).ok()?;
    Some(clock.now().ok()?.into())
}

/// What the watched processes used within a window.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// A name, seconds of processor time, and system calls where they were counted.
    sides: Vec<(String, f64, Option<u64>)>,
    not_measured: Vec<String>,
}

impl Seen {
    /// `cpu_s:NAME` and `cpu_s`, calls likewise, and both a request.
    pub(crate) fn put(&self, outcome: &mut Outcome, requests: u64) {
        outcome.not_measured.extend(self.not_measured.iter().cloned());
        if self.sides.is_empty() {
            return;
        }
        let requests = float(requests.max(1));
        let all: f64 = self.sides.iter().map(|s| s.1).sum();
        outcome.set("cpu_s", all);
        outcome.set("cpu_s_per_100k", all / requests * 1e5);
        for (name, seconds, calls) in &self.sides {
            outcome.set(&format!("cpu_s:{name}"), *seconds);
            if let Some(calls) = calls {
                outcome.set(&format!("calls:{name}"), float(*calls));
                outcome.set(&format!("calls_per_request:{name}"), float(*calls) / requests);
            }
        }
    }

    pub(crate) fn cpu_seconds(&self) -> f64 {
        self.sides.iter().map(|s| s.1).sum()
    }
}

/// Counters of each watched process, or why there are none.
pub(crate) struct Counted(Result<Vec<Option<Calls>>, String>);

impl Counted {
    pub(crate) fn prepare(watched: &[Watch], wanted: bool) -> Self {
        let one = |watch: &Watch| wanted.then(|| Calls::count(&threads(&family(watch.pid)))).transpose();
        Self(watched.iter().map(one).collect())
    }

    /// Counters that came too late would miss calls of requests that count.
    pub(crate) fn in_time(self, late: Duration) -> Self {
        let has_any = matches!(&self.0, Ok(all) if all.iter().any(Option::is_some));
        if late.is_zero() || !has_any {
            return self;
        }
        Self(Err(format!("the counters were ready {late:?} after the warm-up: make it longer")))
    }
}

pub(crate) struct Watching {
    sides: Vec<(Watch, HashMap<i32, Duration>, Option<Calls>)>,
    not_measured: Vec<String>,
}

impl Watching {
    /// # Errors
    /// A process that is not there.
    pub(crate) fn start(watched: &[Watch], counted: Counted) -> Result<Self, String> {
        let (counters, not_measured) = match counted.0 {
            Ok(counters) => (counters, Vec::new()),
            Err(why) => (Vec::new(), vec![format!("system calls: {why}")]),
        };
        let mut counters = counters.into_iter();
        let mut sides = Vec::new();
        for watch in watched {
            let times: HashMap<i32, Duration> =
                family(watch.pid).iter().filter_map(|pid| Some((*pid, processor_time(*pid)?))).collect();
            if !times.contains_key(&watch.pid) {
                return Err(format!("{watch}: there is no such process"));
            }
            let mut calls = counters.next().flatten();
            calls.as_mut().map(Calls::begin).transpose()?;
            sides.push((watch.clone(), times, calls));
        }
        Ok(Self { sides, not_measured })
    }

    /// # Errors
    /// A process that has ended meanwhile.
    pub(crate) fn stop(self) -> Result<Seen, String> {
        let mut seen = Seen { sides: Vec::new(), not_measured: self.not_measured };
        for (watch, before, calls) in self.sides {
            let calls = calls.map(Calls::stop).transpose()?;
            let now: Vec<(i32, Duration)> =
                family(watch.pid).iter().filter_map(|pid| Some((*pid, processor_time(*pid)?))).collect();
            if !now.iter().any(|(pid, _)| *pid == watch.pid) {
                return Err(format!("{watch}: it has ended"));
            }
            let used: f64 = now
                .iter()
                .map(|(pid, time)| time.saturating_sub(before.get(pid).copied().unwrap_or_default()).as_secs_f64())
                .sum();
            seen.sides.push((watch.name, used, calls));
        }
        Ok(seen)
    }
}

/// Memory and fds of a process and its children.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Held {
    /// Bytes; a page that several share counts in parts (PSS).
    pub(crate) memory: u64,
    pub(crate) fds: u64,
    pub(crate) processes: u64,
}

/// # Errors
/// The process is not there, or may not be looked at.
pub(crate) fn held(watch: &Watch) -> Result<Held, String> {
    let mut all = Held::default();
    for pid in family(watch.pid) {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            // A child that has just ended, or ends.
            Err(_) if pid != watch.pid => continue,
            Err(e) => return Err(format!("{watch}: {path}: {e}")),
        };
        let pss = text.lines().find_map(|l| l.strip_prefix("Pss:")).and_then(|l| l.split_whitespace().next());
        let pss: u64 = pss.and_then(|n| n.parse().ok()).ok_or_else(|| format!("{path}: no Pss"))?;
        all.memory += pss * 1024;
        all.fds += fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count) as u64;
        all.processes += 1;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_child_counts() {
        let mut child = std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let watch = Watch { name: "me".into(), pid: std::process::id().cast_signed() };
        let watching = Watching::start(std::slice::from_ref(&watch), Counted(Ok(Vec::new()))).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let seen = watching.stop().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(seen.cpu_seconds() > 0.0);
        assert!(held(&watch).unwrap().fds > 2);
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        let watch: Watch = format!("x={}", gone.id()).parse().unwrap();
        assert!(Watching::start(&[watch], Counted(Ok(Vec::new()))).is_err());
        assert!("x".parse::<Watch>().is_err() && "x=-1".parse::<Watch>().is_err());
    }
}
