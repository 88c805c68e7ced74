//! proxy-bench: how long a request takes, and how much passes, through a unix socket.

mod latency;
mod serve;
mod target;
mod throughput;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use target::Target;

/// Measures what a program sees through a unix socket: directly, or through a proxy.
///
/// Start `proxy-bench serve PATH` on the machine that has the socket. On the other one run a measurement; through
/// udsproxyd: `LD_PRELOAD=libudsproxy.so proxy-bench latency --connect PATH`. Every answer is checked, and an error ends
/// the measurement with a non-zero status.
#[derive(Debug, Parser)]
#[command(name = "proxy-bench", version)]
struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Answer the measurements on a unix socket or a TCP address (ADDR:PORT), until SIGINT or SIGTERM
    Serve { target: Target },
    /// Round trips of small requests, closed loop: each connection waits for its answer before it asks again
    Latency(Load),
    /// Bytes one way, as fast as they are taken
    Throughput(Load),
}

#[derive(Debug, Clone, Args)]
struct Load {
    /// The server's socket; ADDR:PORT: the same over bare TCP, to compare with
    #[arg(long, value_name = "PATH")]
    connect: Target,
    /// Connections at once, a thread each
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=4096))]
    connections: u16,
    /// Bytes of a request and of its answer, or of a write
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=16 << 20))]
    size: u32,
    /// Seconds that count
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Requests a second of each connection, at even times; 0: the next one as soon as the last is answered. Beside a
    /// load that comes in bursts a closed loop asks most often when nothing is in its way, and its percentiles say so
    #[arg(long, default_value_t = 0)]
    rate: u32,
    /// Seconds before, that do not count
    #[arg(long, default_value_t = 0.5)]
    warm_up: f64,
}

impl Load {
    fn times(&self) -> Result<(Duration, Duration), String> {
        let one = |name: &str, v: f64| {
            Duration::try_from_secs_f64(v).map_err(|_| format!("--{name} {v}: seconds must be 0 or more"))
        };
        Ok((one("warm-up", self.warm_up)?, one("seconds", self.seconds)?))
    }
}

fn main() -> ExitCode {
    let result = match Bench::parse().what {
        What::Serve { target } => serve::run(&target),
        What::Latency(load) => latency::run(&load),
        What::Throughput(load) => throughput::run(&load),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            eprintln!("proxy-bench: {line}");
            ExitCode::FAILURE
        }
    }
}
