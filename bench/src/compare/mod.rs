//! `compare`: ours beside the floors and everybody else's proxies, on two machines that it makes itself, round by round.
//!
//! ```text
//!   typed ─▶ install, build the other revision ─▶ namespaces ─▶ everybody starts
//!                                                                  │
//!             for each round, for each cell, for each entrant: a measurement in a process of its own
//!                                                                  │
//!                       tables, verdicts, compare.jsonl ◀──────────┘
//! ```
//!
//! All entrants stay up for the whole run and take turns within a cell, each first in its turn; so whatever else the
//! machine does falls on all alike, and what is compared is always of one round.

mod against;
mod cells;
mod entrants;
mod install;
mod machines;
mod ours;
pub(crate) mod records;
mod show;
mod targets;
mod verdict;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::outcome::Outcome;
use crate::target::Target;
use cells::{CELLS, Cell};
use entrants::{Entrant, Kind, Live, Stage};
use machines::{Machines, Side};
use ours::Build;
use records::{Head, Record, Records};

const EXAMPLES: &str = "\
Examples:
  Everything, with what is missing installed, and a page of it:
    proxy-bench compare --install --out found && proxy-bench report found
  Without encryption too:
    cargo build --release --features plaintext --target-dir target/plain
    proxy-bench compare --plain-bin-dir target/plain/release
  One figure, more surely:
    proxy-bench compare --only rt64 --with ours,ssh,haproxy,nginx --rounds 15
  Whether the last commit made it slower:
    proxy-bench compare --against HEAD~1 --only rt1,rt64,bulk1 --rounds 11

Status 0: everything was measured, whatever the verdicts; 1: a measurement failed.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Compare {
    /// Rounds; a verdict needs 6, and more of them leave fewer UNDECIDED
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds of one measurement
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Measure these alone: rt1, rt64, bulk1, bulk16, churn1, churn16, calls64, fds1, fds16, mixed, idle
    #[arg(long, value_name = "CELL,...", value_delimiter = ',')]
    only: Vec<String>,
    /// With these alone: unix, tcp, bare, ours, ours-epoll, ours-plain, ours-plain-epoll, haproxy, nginx, socat, ssh,
    /// tokio-uring
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    with: Vec<String>,
    /// Idle connections of ours; of others as many as they bear, 1000 at most
    #[arg(long, default_value_t = 9000, value_parser = clap::value_parser!(u32).range(1..=15_000))]
    idle_connections: u32,
    /// Threads of haproxy and nginx on each machine [default: one a processor]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// Threads of udsproxyd on each machine [default: one for every two processors, which the two machines share]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    our_threads: Option<u16>,
    /// Where our programs are [default: beside proxy-bench]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Where our programs are that were built with --features plaintext; without it links without encryption are not
    /// compared
    #[arg(long, value_name = "DIR")]
    plain_bin_dir: Option<PathBuf>,
    /// Get haproxy, nginx, socat and OpenSSH by apt where they are missing; none of their services is started
    #[arg(long)]
    install: bool,
    /// Compare with another build of ours instead: this revision is built in a worktree of its own, the two take turns,
    /// and what differs is said with its chance
    #[arg(long, value_name = "REV", conflicts_with = "with")]
    against: Option<String>,
    /// As --against, with programs that are built already
    #[arg(long, value_name = "DIR", conflicts_with_all = ["with", "against"])]
    before_bin_dir: Option<PathBuf>,
    /// Keep what was found in DIR, for `proxy-bench report DIR`
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// A line of JSON a measurement on stdout, instead of the tables
    #[arg(long)]
    json: bool,
    #[arg(long, hide = true)]
    inside: bool,
}

pub(crate) fn run(args: &Compare) -> Result<(), String> {
    args.check_names()?;
    if !args.inside {
        if args.install {
            install::missing(&entrants::PACKAGES)?;
        }
        if let Some(rev) = &args.against {
            against::build(rev)?;
        }
        // What is missing is said before anything is made.
        args.builds()?;
        return Err(machines::enter());
    }
    let mut run = Run::new(args)?;
    run.all()?;
    run.found.judged = show::judge(&run.found);
    if args.json {
        run.found.judged.iter().for_each(|j| println!("{}", serde_json::to_string(j).expect("text")));
    } else if args.before_bin_dir.is_some() || args.against.is_some() {
        print!("{}{}", show::cells(&run.found), against::text(&run.found));
    } else {
        print!("{}{}", show::cells(&run.found), show::targets(&run.found));
    }
    if let Some(dir) = &args.out {
        run.found.write(dir)?;
    }
    match run.found.errors() {
        errors if errors.is_empty() => Ok(()),
        errors => Err(format!("{} measurements failed:\n  {}", errors.len(), errors.join("\n  "))),
    }
}

impl Compare {
    fn check_names(&self) -> Result<(), String> {
        let known: Vec<&str> = CELLS.iter().map(|c| c.name).collect();
        match self.only.iter().find(|name| !known.contains(&name.as_str())) {
            Some(name) => Err(format!("--only {name}: one of {}", known.join(", "))),
            None => Ok(()),
        }
    }

    /// Directories with our programs.
    fn builds(&self) -> Result<Vec<Build>, String> {
        let beside = || {
            let exe = std::env::current_exe().map_err(|e| format!("our own path: {e}"))?;
            Ok::<_, String>(exe.parent().unwrap_or(Path::new("/")).to_path_buf())
        };
        let dir = self.bin_dir.clone().map_or_else(beside, Ok)?;
        let before = match (&self.before_bin_dir, &self.against) {
            (Some(dir), _) => Some(dir.clone()),
            (None, Some(rev)) => Some(against::bin_dir(rev)?),
            (None, None) => None,
        };
        if let Some(before) = before {
            return Ok(vec![
                Build::new("ours", &dir, false, &[("ours", "io_uring")])?,
                Build::new("before", &before, false, &[("before", "io_uring")])?,
            ]);
        }
        let mut builds = vec![Build::new("ours", &dir, false, &[("ours", "io_uring"), ("ours-epoll", "epoll")])?];
        if let Some(plain) = &self.plain_bin_dir {
            let both = &[("ours-plain", "io_uring"), ("ours-plain-epoll", "epoll")];
            builds.push(Build::new("plain", plain, true, both)?);
        }
        Ok(builds)
    }
}

/// What a cell measures, in words.
pub(crate) fn title(cell: &str) -> Option<&'static str> {
    CELLS.iter().find(|c| c.name == cell).map(|c| c.title)
}

struct Run<'a> {
    args: &'a Compare,
    builds: Vec<Build>,
    entrants: Vec<Entrant>,
    found: Records,
}

impl<'a> Run<'a> {
    fn new(args: &'a Compare) -> Result<Self, String> {
        let builds = args.builds()?;
        let (mut entrants, mut missing) = entrants::all(&builds);
        if args.plain_bin_dir.is_none() {
            missing.push("ours-plain: links without encryption need --plain-bin-dir".into());
        }
        if let Some(name) = args.with.iter().find(|n| !entrants.iter().any(|e| e.name == n.as_str())) {
            let why = missing.iter().find(|line| line.starts_with(name.as_str()));
            return Err(format!("--with {}", why.map_or(format!("{name}: there is none of that name"), Clone::clone)));
        }
        if builds.iter().any(|b| b.entrants.iter().any(|(name, _)| *name == "before")) {
            entrants.retain(|e| matches!(e.kind, Kind::Ours { .. }));
            missing.clear();
        } else if !args.with.is_empty() {
            entrants.retain(|e| args.with.iter().any(|n| n == e.name));
        }
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let head = Head {
            kernel: first_words("/proc/sys/kernel/osrelease", 1),
            processors,
            load: first_words("/proc/loadavg", 3),
            load_after: String::new(),
            rounds: args.rounds,
            seconds: args.seconds,
            threads: args.threads.map_or(processors, usize::from),
            our_threads: args.our_threads.map_or((processors / 2).max(1), usize::from),
            missing,
        };
        Ok(Self { args, builds, entrants, found: Records { head, ..Records::default() } })
    }

    fn cells(&self) -> Vec<&'static Cell> {
        CELLS.iter().filter(|c| self.args.only.is_empty() || self.args.only.iter().any(|n| n == c.name)).collect()
    }

    fn all(&mut self) -> Result<(), String> {
        let machines = Machines::up()?;
        let tcp = format!("{}:7000", Side::Far.address());
        let builds = std::mem::take(&mut self.builds);
        let stage = Stage::new(&machines, &builds, &self.found.head, tcp);
        for build in &builds {
            build.trust(&machines)?;
        }
        let exe = std::env::current_exe().map_err(|e| format!("our own path: {e}"))?;
        let mut server = machines.command(Side::Far, &exe);
        let server = machines.start("server", server.arg("serve").arg(stage.echo()).arg(&stage.tcp))?;
        wait_for(&Target::Unix(stage.echo())).map_err(|e| format!("the echo server: {e}; {}", server.said()))?;
        let mut lives = Vec::new();
        for entrant in self.entrants.clone() {
            match stage.start(&entrant) {
                Ok(live) => lives.push((entrant, live)),
                Err(error) => self.note("start", entrant.name.into(), 0, Err(error)),
            }
        }
        for round in 0..self.args.rounds {
            for cell in self.cells() {
                progress(&format!("round {} of {}: {}", round + 1, self.args.rounds, cell.title));
                if cell.is_shaped() {
                    machines.shape(true)?;
                }
                self.cell(&stage, cell, &lives, round);
                if cell.is_shaped() {
                    machines.shape(false)?;
                }
            }
        }
        progress("");
        self.found.head.load_after = first_words("/proc/loadavg", 3);
        for (entrant, live) in &mut lives {
            if let Some(said) = live.ended() {
                let error = Err(format!("it has ended by itself: {said}"));
                self.note("end", entrant.name.into(), 0, error);
            }
        }
        Ok(())
    }

    fn cell(&mut self, stage: &Stage, cell: &Cell, lives: &[(Entrant, Live)], round: u32) {
        for turn in 0..lives.len() {
            let (entrant, live) = &lives[(round as usize + turn) % lives.len()];
            if !cell.takes(entrant, round) {
                continue;
            }
            if cell.is_fresh() {
                let found = stage.start(entrant).and_then(|fresh| self.measure(stage, cell, entrant, &fresh, false));
                self.note(cell.name, entrant.name.into(), round, found);
                continue;
            }
            let found = self.measure(stage, cell, entrant, live, false);
            self.note(cell.name, entrant.name.into(), round, found);
            if cell.has_shim() && live.shim.is_some() {
                let found = self.measure(stage, cell, entrant, live, true);
                self.note(cell.name, format!("{}+shim", entrant.name), round, found);
            }
        }
    }

    fn note(&mut self, cell: &str, entrant: String, round: u32, found: Result<Outcome, String>) {
        let (outcome, error) = match found {
            Ok(outcome) => (Some(outcome), None),
            Err(error) => (None, Some(error)),
        };
        let record = Record { cell: cell.into(), entrant, round, outcome, error };
        if self.args.json {
            println!("{}", serde_json::to_string(&record).expect("names and numbers"));
        }
        self.found.all.push(record);
    }

    /// One measurement, by a process of its own on the machine of the entrant's clients.
    fn measure(
        &self,
        stage: &Stage,
        cell: &Cell,
        entrant: &Entrant,
        live: &Live,
        by_shim: bool,
    ) -> Result<Outcome, String> {
        let exe = std::env::current_exe().map_err(|e| format!("our own path: {e}"))?;
        let mut command = stage.machines.command(live.client, "env");
        let mut target = live.target.clone();
        if let (true, Some((library, socket))) = (by_shim, &live.shim) {
            command.arg(format!("LD_PRELOAD={}", library.display()));
            command.arg(format!("FARSIDE_UDS_SOCKET={}", socket.display()));
            target = Target::Unix(stage.echo());
        }
        command.arg(exe).args(cell.words(entrant, self.args.seconds, self.args.idle_connections));
        command.arg("--json").arg("--connect").arg(target.to_string());
        for watch in live.watch() {
            command.arg("--watch").arg(watch);
        }
        let output = command.output().map_err(|e| format!("nsenter(1) of util-linux: {e}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', " | "));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().last().unwrap_or_default();
        serde_json::from_str(line).map_err(|e| format!("{line:?}: {e}"))
    }
}

/// One line that is written over, where somebody looks on.
fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r{text:<90}\r");
    }
}

fn first_words(path: &str, count: usize) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().take(count).collect::<Vec<_>>().join(" ")
}

fn wait_for(target: &Target) -> Result<(), String> {
    let mut tried = crate::churn::visit(target);
    for _ in 0..250 {
        if tried.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
        tried = crate::churn::visit(target);
    }
    tried
}
