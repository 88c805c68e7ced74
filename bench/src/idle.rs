//! What an idle connection costs: memory and fds of the proxies on both sides, with many connections and without.

use std::io::{Read, Write};
use std::time::Duration;

use clap::Args;

use crate::load::Common;
use crate::outcome::{Outcome, float};
use crate::serve::BYTE;
use crate::target::{Stream, Target};
use crate::usage::{Held, held};

#[derive(Debug, Clone, Args)]
pub(crate) struct Idle {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Connections; each has carried a byte there and back before it idles
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub(crate) connections: u32,
    /// Seconds of rest before the proxies are looked at
    #[arg(long, default_value_t = 2.5)]
    pub(crate) rest: f64,
}

/// Names the proxies by `--watch`; `--seconds` and `--warm-up` have no meaning here.
pub(crate) fn once(args: &Idle, target: &Target) -> Result<Outcome, String> {
    if args.common.watch.is_empty() {
        return Err("idle: whose memory? name the proxies by --watch NAME=PID".into());
    }
    let rest = Duration::try_from_secs_f64(args.rest).map_err(|e| format!("--rest {}: {e}", args.rest))?;
    let look = || args.common.watch.iter().map(held).collect::<Result<Vec<Held>, String>>();
    // The first connection makes what all share.
    let mut streams = vec![greet(target)?];
    std::thread::sleep(rest);
    let before = look()?;
    for _ in 1..=args.connections {
        streams.push(greet(target)?);
    }
    std::thread::sleep(rest);
    let after = look()?;
    // None of them may have been given up meanwhile.
    for stream in &mut streams {
        echo(stream)?;
    }
    let (mut outcome, count) = (Outcome::new("idle", target), f64::from(args.connections));
    let (mut memory, mut fds) = (0.0, 0.0);
    for ((watch, before), after) in args.common.watch.iter().zip(before).zip(after) {
        let each = |a: u64, b: u64| (float(a) - float(b)) / count;
        let (kib, fd) = (each(after.memory, before.memory) / 1024.0, each(after.fds, before.fds));
        outcome.set(&format!("kib_per_connection:{}", watch.name), kib);
        outcome.set(&format!("fds_per_connection:{}", watch.name), fd);
        outcome.set(&format!("processes_per_connection:{}", watch.name), each(after.processes, before.processes));
        (memory, fds) = (memory + kib, fds + fd);
    }
    outcome.set("kib_per_connection", memory);
    outcome.set("fds_per_connection", fds);
    outcome.set("connections", count);
    Ok(outcome)
}

fn greet(target: &Target) -> Result<Stream, String> {
    let mut stream = Stream::connect(target).map_err(|e| format!("connect to {target}: {e}"))?;
    stream.be_impatient().map_err(|e| format!("{target}: {e}"))?;
    echo(&mut stream)?;
    Ok(stream)
}

fn echo(stream: &mut Stream) -> Result<(), String> {
    let mut got = [0];
    stream.write_all(&[BYTE]).and_then(|()| stream.read_exact(&mut got)).map_err(|e| format!("an echo: {e}"))?;
    if got == [BYTE] { Ok(()) } else { Err(format!("{got:?} came back instead of {BYTE}")) }
}

pub(crate) fn text(args: &Idle, outcome: &Outcome) -> String {
    format!(
        "idle: {} connections: {:.2} KiB and {:.2} fds a connection",
        args.connections,
        outcome.shown("kib_per_connection"),
        outcome.shown("fds_per_connection")
    )
}
