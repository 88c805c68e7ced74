//! Files a second in a directory, such as a qtfs mount, and in others beside it: created, looked at, opened, written,
//! read, removed.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;

use crate::load::table;
use crate::outcome::{Outcome, float, median, short};
use crate::pattern::{self, megabytes_per_s};

#[derive(Debug, Clone, Args)]
pub(crate) struct Files {
    /// Directories, side by side: a mount, and a local one to compare with. A new directory is made in each, and removed
    #[arg(required = true)]
    dirs: Vec<PathBuf>,
    /// Files of each kind of operation
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    files: u32,
    /// Megabytes (10^6) that are written and read; 0: none
    #[arg(long, default_value_t = 100)]
    megabytes: u64,
    /// Rounds; each directory is first in its turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// A line of JSON a directory and round
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Files) -> Result<(), String> {
    let mut found: Vec<Vec<Outcome>> = vec![Vec::new(); args.dirs.len()];
    for round in 0..args.rounds as usize {
        for turn in 0..args.dirs.len() {
            let which = (round + turn) % args.dirs.len();
            let outcome = in_directory(args, &args.dirs[which])?;
            if args.json {
                println!("{}", outcome.json());
            }
            found[which].push(outcome);
        }
    }
    if !args.json {
        let mut rows = vec![vec!["fs".to_string()]];
        rows[0].extend(found.iter().map(|rounds| rounds[0].on.clone()));
        for name in found[0][0].figures.keys() {
            let of = |rounds: &Vec<Outcome>| short(median(&rounds.iter().map(|o| o.shown(name)).collect::<Vec<_>>()));
            rows.push([vec![name.clone()], found.iter().map(of).collect()].concat());
        }
        print!("{}", table(&rows));
    }
    Ok(())
}

/// In a new directory that is removed, also after an error.
fn in_directory(args: &Files, dir: &Path) -> Result<Outcome, String> {
    let own = dir.join(format!("proxy-bench-{}", std::process::id()));
    fs::create_dir(&own).map_err(|e| format!("{}: {e}", own.display()))?;
    let found = once(args, dir, &own);
    fs::remove_dir_all(&own).map_err(|e| format!("{}: {e}", own.display()))?;
    found
}

fn once(args: &Files, dir: &Path, own: &Path) -> Result<Outcome, String> {
    let mut outcome = Outcome::new("fs", dir.display());
    let path = |i: u32| own.join(format!("file-{i}"));
    let mut each = |name: &str, step: &dyn Fn(u32, &Path) -> std::io::Result<bool>| -> Result<(), String> {
        let begun = Instant::now();
        for i in 0..args.files {
            let path = path(i);
            match step(i, &path) {
                Ok(true) => {}
                Ok(false) => return Err(format!("{}: {name}: not what was written", path.display())),
                Err(e) => return Err(format!("{}: {name}: {e}", path.display())),
            }
        }
        outcome.set(&format!("{name}_per_s"), f64::from(args.files) / begun.elapsed().as_secs_f64());
        Ok(())
    };
    let words = |i: u32| format!("this is file {i}\n").into_bytes();
    each("create", &|i, path| File::create_new(path).and_then(|mut f| f.write_all(&words(i))).map(|()| true))?;
    each("stat", &|i, path| fs::metadata(path).map(|m| m.len() == words(i).len() as u64))?;
    each("open_read", &|i, path| {
        let mut got = Vec::new();
        File::open(path)?.read_to_end(&mut got)?;
        Ok(got == words(i))
    })?;
    each("unlink", &|_, path| fs::remove_file(path).map(|()| true))?;
    if args.megabytes > 0 {
        let (total, big) = (args.megabytes * 1_000_000, own.join("big"));
        let said = |e: &dyn std::fmt::Display| format!("{}: {e}", big.display());
        let begun = Instant::now();
        let file = File::create_new(&big).map_err(|e| said(&e))?;
        pattern::write(&file, total).map_err(|e| said(&e))?;
        drop(file);
        outcome.set("write_mb_per_s", megabytes_per_s(total, begun.elapsed().as_secs_f64()));
        let begun = Instant::now();
        let got = pattern::check(File::open(&big).map_err(|e| said(&e))?).map_err(|e| said(&e))?;
        if got != total {
            return Err(format!("{}: {got} bytes of {total} came back", big.display()));
        }
        outcome.set("read_mb_per_s", megabytes_per_s(total, begun.elapsed().as_secs_f64()));
    }
    outcome.set("files", float(u64::from(args.files)));
    Ok(outcome)
}
