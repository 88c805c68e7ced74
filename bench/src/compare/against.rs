//! `--against REV`: another revision of ours, built apart, and what differs between the two.
//!
//! The test is a permutation test of pairs: both builds are measured in every round, and if there were no difference,
//! which of the two is which in a round would be a coin's throw. Its chance is the share of throws whose summed log
//! ratio is as far from nothing as the one seen. All figures are asked at once, so Holm's correction follows.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cells::CELLS;
use super::machines::done;
use super::records::Records;
use super::verdict::{chance_of_no_difference, for_many};
use crate::load::table;
use crate::outcome::{median, short};

/// Below it a difference is said to be one.
const CHANCE_MAX: f64 = 0.05;

/// The repository this was built from, or the one we are in.
fn repository() -> Result<PathBuf, String> {
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut git = Command::new("git");
    if built_from.exists() {
        git.arg("-C").arg(built_from);
    }
    done(git.args(["rev-parse", "--show-toplevel"])).map(PathBuf::from).map_err(|e| format!("--against: {e}"))
}

fn git(words: &[&str]) -> Result<String, String> {
    done(Command::new("git").arg("-C").arg(repository()?).args(words))
}

/// Where builds of other revisions are kept: `build` is shared by all of them, so that what they have in common is
/// built once; `bin-SHA` has the programs of one.
fn top() -> Result<PathBuf, String> {
    let exe = std::env::current_exe().map_err(|e| format!("our own path: {e}"))?;
    let target = exe.parent().and_then(Path::parent).ok_or("our own path has no target directory")?;
    Ok(target.join("proxy-bench-against"))
}

fn commit(rev: &str) -> Result<String, String> {
    let name = format!("{rev}^{{commit}}");
    git(&["rev-parse", "--verify", "--end-of-options", &name]).map_err(|e| format!("--against {rev}: {e}"))
}

/// Where that revision's programs are, or will be.
pub(super) fn bin_dir(rev: &str) -> Result<PathBuf, String> {
    Ok(top()?.join(format!("bin-{}", &commit(rev)?[..16])))
}

/// Builds it, unless it is there.
///
/// # Errors
/// One line: what git or cargo said.
pub(super) fn build(rev: &str) -> Result<(), String> {
    let (bin, source, commit) = (bin_dir(rev)?, top()?.join("source"), commit(rev)?);
    if bin.join("done").exists() {
        return Ok(());
    }
    eprintln!("building {rev}, {commit}, in {}", source.display());
    let said = |e: std::io::Error| format!("{}: {e}", bin.display());
    fs::create_dir_all(&bin).map_err(said)?;
    let place = source.display().to_string();
    // One that was left behind is of another revision.
    let _ = git(&["worktree", "remove", "--force", &place]);
    git(&["worktree", "add", "--force", "--detach", &place, &commit])?;
    let built = cargo_build(&source);
    git(&["worktree", "remove", "--force", &place])?;
    let built = built?;
    for program in ["udsproxyd", "farside", "rexec", "rexec_server", "engine", "mount_qtfs", "libudsproxy.so"] {
        fs::copy(built.join(program), bin.join(program)).map_err(|e| format!("{program} of {rev}: {e}"))?;
    }
    // Older revisions have none.
    let supervisor = built.join("rexec-supervisor");
    if supervisor.exists() {
        fs::copy(supervisor, bin.join("rexec-supervisor")).map_err(|e| format!("rexec-supervisor of {rev}: {e}"))?;
    }
    fs::write(bin.join("done"), commit).map_err(said)
}

fn cargo_build(source: &Path) -> Result<PathBuf, String> {
    let target = top()?.join("build");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "-p", "farside", "-p", "farside-shim"]).current_dir(source);
    done(cargo.arg("--target-dir").arg(&target))?;
    Ok(target.join("release"))
}

/// Of a figure, whether less of it is better.
fn less_is_better(figure: &str) -> bool {
    !figure.ends_with("_per_s")
}

/// What differs, and how surely.
pub(super) fn text(found: &Records) -> String {
    let mut rows = Vec::new();
    let mut chances = Vec::new();
    for cell in &CELLS {
        for (figure, title) in cell.shown {
            for (ours, before) in [("ours", "before"), ("ours+shim", "before+shim")] {
                let (ours, before) = (found.values(cell.name, ours, figure), found.values(cell.name, before, figure));
                let pairs: Vec<(f64, f64)> = ours
                    .iter()
                    .filter_map(|(round, v)| Some((*v, *before.get(round)?)))
                    .filter(|(a, b)| *a > 0.0 && *b > 0.0)
                    .collect();
                // What is the same in every round has nothing to be tested: a count of fds.
                if pairs.is_empty() || pairs.iter().all(|(a, b)| (a - b).abs() < f64::EPSILON) {
                    continue;
                }
                let of = |pick: fn(&(f64, f64)) -> f64| median(&pairs.iter().map(pick).collect::<Vec<_>>());
                let by = if ours.len() == before.len() && found.values(cell.name, "ours+shim", figure) == ours {
                    ", by the shim"
                } else {
                    ""
                };
                chances.push(chance_of_no_difference(&pairs));
                rows.push((
                    format!("{}{by}: {title}", cell.title),
                    *figure,
                    of(|p| p.1),
                    of(|p| p.0),
                    of(|p| p.0 / p.1),
                ));
            }
        }
    }
    let adjusted = for_many(&chances);
    let mut shown = vec![["figure", "before", "now", "ratio", "chance", "of many", ""].map(String::from).to_vec()];
    for (((what, figure, before, now, ratio), chance), many) in rows.iter().zip(&chances).zip(&adjusted) {
        let word = match (*many <= CHANCE_MAX, (*ratio < 1.0) == less_is_better(figure)) {
            (false, _) => "no difference shown",
            (true, true) => "BETTER",
            (true, false) => "WORSE",
        };
        let cells = [
            what.clone(),
            short(*before),
            short(*now),
            format!("{ratio:.3}"),
            format!("{chance:.4}"),
            format!("{many:.3}"),
            word.into(),
        ];
        shown.push(cells.to_vec());
    }
    let mut text = format!("\n{}", table(&shown));
    let least = 2.0 * 0.5_f64.powi(i32::try_from(found.head.rounds).unwrap_or(i32::MAX));
    write!(
        text,
        "\nratio: the median of now / before within a round. chance: how often a difference this large comes of nothing \
         (permutation\nof pairs, {} rounds); of many: the same, with all {} figures asked at once (Holm). A difference is \
         said to be one at {CHANCE_MAX}\nor below.",
        found.head.rounds, rows.len()
    )
    .expect("into a String");
    if least * crate::outcome::float(rows.len() as u64) > CHANCE_MAX {
        text.push_str(" These are too few rounds for that, whatever they show: more rounds, or --only.");
    }
    text.push('\n');
    text
}
