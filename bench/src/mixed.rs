//! Small requests at a fixed rate beside bulk that takes all it can get: how long one waits behind the other.

use clap::Args;

use crate::latency::{Rate, closed_or_paced};
use crate::load::{Common, Window, all_threads};
use crate::outcome::Outcome;
use crate::pattern::megabytes_per_s;
use crate::serve::{ECHO, SINK, connect};
use crate::target::{Stream, Target};
use crate::throughput::{Carried, send};

#[derive(Debug, Clone, Args)]
pub(crate) struct Mixed {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Small requests a second; an answer's time counts from when its request was meant to leave
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) rate: u32,
    /// Bytes of a small request
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) size: u32,
    /// Connections with bulk
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) bulk: u16,
}

enum Part {
    Times(hdrhistogram::Histogram<u64>),
    Carried(Carried),
}

pub(crate) fn once(args: &Mixed, target: &Target) -> Result<Outcome, String> {
    let small = connect(target, ECHO, args.size)?;
    let bulk: Vec<Stream> = (0..args.bulk).map(|_| connect(target, SINK, 1 << 18)).collect::<Result<_, _>>()?;
    let window = Window::starting(&args.common)?;
    let (size, rate) = (args.size as usize, Rate { per_s: args.rate, connections: 1 });
    let mut jobs: Vec<Box<dyn FnOnce() -> Result<Part, String> + Send>> = Vec::new();
    let its = window.clone();
    jobs.push(Box::new(move || closed_or_paced(small, size, &rate, &its).map(Part::Times)));
    for stream in bulk {
        let its = window.clone();
        jobs.push(Box::new(move || send(stream, 64 << 10, &its).map(Part::Carried)));
    }
    let (parts, seen) = all_threads(&args.common, &window, jobs.into_iter())?;
    let mut outcome = Outcome::new("mixed", target);
    let (mut bytes, mut seconds, mut requests) = (0, 0.0_f64, 0);
    for part in &parts {
        match part {
            Part::Times(times) => {
                outcome.set_times("", times);
                requests = times.len();
            }
            Part::Carried(carried) => (bytes, seconds) = (bytes + carried.bytes, seconds.max(carried.seconds)),
        }
    }
    outcome.set("mb_per_s", megabytes_per_s(bytes, seconds));
    seen.put(&mut outcome, requests);
    Ok(outcome)
}

pub(crate) fn text(args: &Mixed, outcome: &Outcome) -> String {
    let f = |name| outcome.shown(name);
    format!(
        "mixed: {} requests/s of {} B beside {} bulk: p50 {:.1} us, p99 {:.1} us; {:.0} MB/s",
        args.rate,
        args.size,
        args.bulk,
        f("p50_us"),
        f("p99_us"),
        f("mb_per_s")
    )
}
