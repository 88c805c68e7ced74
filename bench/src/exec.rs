//! Commands a second, one at a time and many at once, and what passes through their stdio, checked byte by byte.
//!
//! The command line before `--` is ours, what is behind it is put before each command: nothing, and it runs here;
//! `rexec`, and it runs on the other machine; `ssh -S CTL host`, as well.

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio as Pipe};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use crate::outcome::{Outcome, float, histogram};
use crate::pattern::{self, megabytes_per_s};

#[derive(Debug, Clone, Args)]
pub(crate) struct Exec {
    /// Seconds of commands, one after the other
    #[arg(long, default_value_t = 2.0)]
    pub(crate) seconds: f64,
    /// So many commands at once
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) at_once: u16,
    /// Megabytes (10^6) of stdin and of stdout; 0: neither
    #[arg(long, default_value_t = 200)]
    pub(crate) megabytes: u64,
    /// The command that does nothing
    #[arg(long, default_value = "/bin/true")]
    pub(crate) command: OsString,
    /// Where proxy-bench is on the machine that runs the commands
    #[arg(long, value_name = "PATH", default_value_os_t = own_path())]
    pub(crate) there: PathBuf,
    /// Rounds
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// A line of JSON a round
    #[arg(long)]
    pub(crate) json: bool,
    /// What runs a command on the other machine
    #[arg(last = true, value_name = "PREFIX")]
    pub(crate) prefix: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Stdio {
    way: Way,
    #[arg(default_value_t = 0)]
    bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// Write the pattern to stdout
    Out,
    /// Compare stdin with the pattern, and print how much there was
    In,
}

fn own_path() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| "proxy-bench".into())
}

/// The far end of a measurement of stdio.
pub(crate) fn stdio(args: &Stdio) -> Result<(), String> {
    match args.way {
        Way::Out => pattern::write(io::stdout().lock(), args.bytes).map_err(|e| format!("stdout: {e}")),
        Way::In => {
            println!("{}", pattern::check(io::stdin().lock())?);
            Ok(())
        }
    }
}

impl Exec {
    fn command(&self, words: &[OsString]) -> Command {
        let all: Vec<&OsString> = self.prefix.iter().chain(words).collect();
        let mut command = Command::new(all[0]);
        command.args(&all[1..]).stdin(Pipe::null()).stdout(Pipe::null());
        command
    }

    fn stdio_of(&self, way: &str, bytes: u64) -> Command {
        let text =
            [self.there.as_os_str(), "stdio".as_ref(), way.as_ref(), bytes.to_string().as_ref()].map(OsString::from);
        self.command(&text)
    }

    fn spawn(&self, command: &mut Command) -> Result<Child, String> {
        let shown = || format!("{}", command.get_program().display());
        let shown = shown();
        command.spawn().map_err(|e| format!("{shown}: {e}"))
    }
}

fn ends_well(child: &mut Child, what: &str) -> Result<(), String> {
    let status = child.wait().map_err(|e| format!("wait: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{what}: {status}")) }
}

pub(crate) fn run(args: &Exec) -> Result<(), String> {
    for _ in 0..args.rounds {
        let outcome = once(args)?;
        if args.json { println!("{}", outcome.json()) } else { println!("{}", text(args, &outcome)) }
    }
    Ok(())
}

pub(crate) fn once(args: &Exec) -> Result<Outcome, String> {
    let words: Vec<String> = args.prefix.iter().map(|w| w.to_string_lossy().into_owned()).collect();
    let on = if words.is_empty() { "here".into() } else { words.join(" ") };
    let mut outcome = Outcome::new("exec", on);
    let limit = Duration::try_from_secs_f64(args.seconds).map_err(|e| format!("--seconds {}: {e}", args.seconds))?;
    let nothing = std::slice::from_ref(&args.command);
    // The first one warms caches, and shows that it can be run at all.
    ends_well(&mut args.spawn(&mut args.command(nothing))?, "the command")?;
    let (mut times, begun) = (histogram(), Instant::now());
    while begun.elapsed() < limit {
        let one = Instant::now();
        ends_well(&mut args.spawn(&mut args.command(nothing))?, "the command")?;
        times.saturating_record(u64::try_from(one.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    outcome.set("commands_per_s", float(times.len()) / begun.elapsed().as_secs_f64());
    outcome.set_times("", &times);
    let begun = Instant::now();
    let all: Vec<Child> =
        (0..args.at_once).map(|_| args.spawn(&mut args.command(nothing))).collect::<Result<_, _>>()?;
    for mut child in all {
        ends_well(&mut child, "a command of many")?;
    }
    outcome.set("commands_per_s_at_once", f64::from(args.at_once) / begun.elapsed().as_secs_f64());
    if args.megabytes > 0 {
        outcome.set("stdout_mb_per_s", stdout_rate(args)?);
        outcome.set("stdin_mb_per_s", stdin_rate(args)?);
    }
    Ok(outcome)
}

fn stdout_rate(args: &Exec) -> Result<f64, String> {
    let total = args.megabytes * 1_000_000;
    let begun = Instant::now();
    let mut child = args.spawn(args.stdio_of("out", total).stdout(Pipe::piped()))?;
    let got = pattern::check(child.stdout.take().expect("it is piped")).map_err(|e| format!("stdout: {e}"))?;
    ends_well(&mut child, "the writer")?;
    if got != total {
        return Err(format!("stdout: {got} bytes of {total} came"));
    }
    Ok(megabytes_per_s(total, begun.elapsed().as_secs_f64()))
}

fn stdin_rate(args: &Exec) -> Result<f64, String> {
    let total = args.megabytes * 1_000_000;
    let begun = Instant::now();
    let mut child = args.spawn(args.stdio_of("in", 0).stdin(Pipe::piped()).stdout(Pipe::piped()))?;
    // Dropped when written: the reader sees its end.
    let written = pattern::write(child.stdin.take().expect("it is piped"), total);
    let mut said = String::new();
    child.stdout.take().expect("it is piped").read_to_string(&mut said).map_err(|e| format!("the reader: {e}"))?;
    ends_well(&mut child, "the reader")?;
    written.map_err(|e| format!("stdin: {e}"))?;
    if said.trim() != total.to_string() {
        return Err(format!("stdin: {total} bytes were written and {:?} arrived", said.trim()));
    }
    Ok(megabytes_per_s(total, begun.elapsed().as_secs_f64()))
}

fn text(args: &Exec, outcome: &Outcome) -> String {
    let f = |name| outcome.shown(name);
    let mut line = format!(
        "exec, {}: {:.0} commands/s, p50 {:.0} us, p99 {:.0} us; {} at once: {:.0}/s",
        outcome.on,
        f("commands_per_s"),
        f("p50_us"),
        f("p99_us"),
        args.at_once,
        f("commands_per_s_at_once")
    );
    if args.megabytes > 0 {
        line += &format!("; stdout {:.0} MB/s, stdin {:.0} MB/s", f("stdout_mb_per_s"), f("stdin_mb_per_s"));
    }
    line
}
