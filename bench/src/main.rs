//! proxy-bench: how long a request takes, and how much passes, through a unix socket.

#![forbid(unsafe_code)]

mod calls;
mod churn;
mod compare;
mod exec;
mod fds;
mod files;
mod idle;
mod latency;
mod load;
mod mixed;
mod outcome;
mod pattern;
mod relay;
mod report;
mod serve;
mod target;
mod throughput;
mod usage;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use target::Target;

/// Measures what a program sees through a unix socket: directly, or through a proxy.
///
/// Start `proxy-bench serve PATH` on the machine that has the socket. On the other one run a measurement; through
/// udsproxyd: `LD_PRELOAD=libudsproxy.so proxy-bench latency --connect PATH`. Every answer is checked byte by byte, and
/// an error ends the measurement with a non-zero status.
#[derive(Debug, Parser)]
#[command(name = "proxy-bench", version)]
struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Answer the measurements on unix sockets or TCP addresses (ADDR:PORT), until SIGINT or SIGTERM
    Serve {
        #[arg(required = true)]
        targets: Vec<Target>,
    },
    /// Round trips of small requests: closed loop, each connection waits for its answer before it asks again; or, with
    /// --rate, at even times
    Latency(latency::Latency),
    /// Bytes one way, as fast as they are taken
    Throughput(throughput::Throughput),
    /// Connections a second: connect, one byte there and back, close
    Churn(churn::Churn),
    /// Memory and fds of proxies for each idle connection
    Idle(idle::Idle),
    /// Small requests at a fixed rate beside bulk
    Mixed(mixed::Mixed),
    /// Messages with a pipe (SCM_RIGHTS) a second; each pipe is used before it counts
    Fds(fds::Fds),
    /// Commands a second and their stdio, here or through rexec, ssh or anything that runs a command elsewhere
    Exec(exec::Exec),
    /// Files created, opened, looked at, written and read a second, in directories side by side
    Fs(files::Files),
    /// Ours beside the floors and other proxies, on two machines made of namespaces, with verdicts on our targets
    Compare(compare::Compare),
    /// One HTML page of what `compare --out DIR` and others' --json have found
    Report(report::Report),
    /// Copy between two sockets by blocking threads: the least that a proxy can do
    #[command(hide = true)]
    Relay(relay::Relay),
    /// One end of `exec`'s stdio
    #[command(hide = true)]
    Stdio(exec::Stdio),
}

fn run(what: What) -> Result<(), String> {
    match what {
        What::Serve { targets } => serve::run(&targets),
        What::Latency(args) => load::rounds(&args.common, |o| latency::text(&args, o), |t| latency::once(&args, t)),
        What::Throughput(args) => {
            load::rounds(&args.common, |o| throughput::text(&args, o), |t| throughput::once(&args, t))
        }
        What::Churn(args) => load::rounds(&args.common, |o| churn::text(&args, o), |t| churn::once(&args, t)),
        What::Idle(args) => load::rounds(&args.common, |o| idle::text(&args, o), |t| idle::once(&args, t)),
        What::Mixed(args) => load::rounds(&args.common, |o| mixed::text(&args, o), |t| mixed::once(&args, t)),
        What::Fds(args) => load::rounds(&args.common, |o| fds::text(&args, o), |t| fds::once(&args, t)),
        What::Exec(args) => exec::run(&args),
        What::Fs(args) => files::run(&args),
        What::Compare(args) => compare::run(&args),
        What::Report(args) => report::run(&args),
        What::Relay(args) => relay::run(&args),
        What::Stdio(args) => exec::stdio(&args),
    }
}

fn main() -> ExitCode {
    // A proxy's thousand connections are as many fds here. What the system forbids shows when they run out.
    let limit = nix::sys::resource::Resource::RLIMIT_NOFILE;
    if let Ok((_, hard)) = nix::sys::resource::getrlimit(limit) {
        let _ = nix::sys::resource::setrlimit(limit, hard, hard);
    }
    match run(Bench::parse().what) {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            eprintln!("proxy-bench: {line}");
            ExitCode::FAILURE
        }
    }
}
