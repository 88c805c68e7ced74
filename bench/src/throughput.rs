//! Bytes one way, as fast as they are taken. What counts is what the server says it got, and that they were the right
//! ones.

use std::io::{Read, Write};
use std::time::Duration;

use clap::Args;

use crate::load::{Common, Window, all_threads};
use crate::outcome::{Outcome, float};
use crate::pattern::{PIECE_MAX, Pattern, megabytes_per_s};
use crate::serve::{END, SINK, WRONG, connect};
use crate::target::{Stream, Target};

#[derive(Debug, Clone, Args)]
pub(crate) struct Throughput {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Connections at once, a thread each
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) connections: u16,
    /// Bytes of a write
    #[arg(long, default_value_t = 64 << 10, value_parser = clap::value_parser!(u32).range(1..=PIECE_MAX as i64))]
    pub(crate) size: u32,
}

/// What one connection carried: within the window, and the seconds from its beginning until the server had all.
pub(crate) struct Carried {
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
}

/// Bytes are counted from the warm-up's end, and until the server says that it has them all: nothing that is still in a
/// buffer counts as carried.
pub(crate) fn send(mut stream: Stream, size: usize, window: &Window) -> Result<Carried, String> {
    let (pattern, mut sent, mut before) = (Pattern::new(), 0_u64, None);
    loop {
        let now = window.now();
        if window.is_over(now) {
            break;
        }
        if before.is_none() && window.counts(now) {
            before = Some((sent, now));
        }
        stream.write_all(pattern.at(sent, size)).map_err(|e| format!("write: {e}"))?;
        sent += size as u64;
    }
    stream.write_all(&[END]).map_err(|e| format!("write: {e}"))?;
    let mut got = [0; 8];
    stream.read_exact(&mut got).map_err(|e| format!("read: {e}"))?;
    match u64::from_le_bytes(got) {
        WRONG => return Err("other bytes arrived than were sent".into()),
        got if got != sent => return Err(format!("{sent} bytes were sent and {got} arrived")),
        _ => {}
    }
    let (at_first, since) = before.unwrap_or((0, Duration::ZERO));
    Ok(Carried { bytes: sent - at_first, seconds: (window.now() - since).as_secs_f64() })
}

pub(crate) fn once(args: &Throughput, target: &Target) -> Result<Outcome, String> {
    let streams: Vec<Stream> =
        (0..args.connections).map(|_| connect(target, SINK, 1 << 18)).collect::<Result<_, _>>()?;
    let window = Window::starting(&args.common)?;
    let size = args.size as usize;
    let one = |stream: Stream| {
        let window = window.clone();
        move || send(stream, size, &window)
    };
    let (all, seen) = all_threads(&args.common, &window, streams.into_iter().map(one))?;
    let bytes: u64 = all.iter().map(|c| c.bytes).sum();
    let seconds = all.iter().map(|c| c.seconds).fold(0.0, f64::max);
    let mut outcome = Outcome::new("throughput", target);
    let rate = megabytes_per_s(bytes, seconds);
    outcome.set("mb_per_s", rate);
    seen.put(&mut outcome, 0);
    if !args.common.watch.is_empty() {
        // The processors were watched for the window alone, the bytes a little longer: by their rate they fit.
        outcome.figures.remove("cpu_s_per_100k");
        outcome.set("cpu_s_per_gb", seen.cpu_seconds() / (rate * window.seconds() / 1000.0));
    }
    outcome.set("gb", float(bytes) / 1e9);
    Ok(outcome)
}

pub(crate) fn text(args: &Throughput, outcome: &Outcome) -> String {
    let mut line = format!("throughput: {} connections: {:.0} MB/s", args.connections, outcome.shown("mb_per_s"));
    if let Some(cpu) = outcome.figure("cpu_s_per_gb") {
        line += &format!(", {cpu:.2} CPU s per GB");
    }
    line
}
