//! A directory of our own, mode 0700, that goes with its owner.

use std::fs::{DirBuilder, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::errno::{Errno, OsError, OsResult, Step};

/// Removed, with what is in it, when dropped; or by the next one of the same kind, where its process was killed.
#[derive(Debug)]
pub struct PrivateDir {
    path: PathBuf,
    /// Whose lock can be had has no owner any more.
    _lives: Flock<File>,
}

/// Where root's are.
const RUN: &str = "/run/farside";

/// How often the name of a new one may be lost to somebody who tidies up, before its lock is held.
const TRIES: usize = 10;

impl PrivateDir {
    /// Below /run/farside where that can be made (root), else below the directory for temporary files. mkdtemp(3) makes
    /// it 0700 and never follows what somebody else put there.
    pub fn new(what: &str) -> OsResult<Self> {
        let run = Path::new(RUN);
        if !run.exists() {
            // Somebody else may win this race, or we may not be root: mkdtemp will tell.
            let _ = DirBuilder::new().mode(0o700).create(run);
        }
        sweep(run, what);
        let name = format!("{what}.XXXXXX");
        for _ in 0..TRIES {
            let made = nix::unistd::mkdtemp(&run.join(&name));
            let elsewhere = || std::env::temp_dir().join(format!("farside-{name}"));
            let path =
                made.or_else(|_| nix::unistd::mkdtemp(&elsewhere())).step_on("mkdtemp", elsewhere().display())?;
            if let Some(lives) = hold(&path) {
                return Ok(Self { path, _lives: lives });
            }
        }
        Err(OsError::on("lock a new directory in", run.display(), Errno::EBUSY))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!("cannot remove {}: {e}", self.path.display());
        }
    }
}

/// The lock of a directory that is still there.
fn hold(path: &Path) -> Option<Flock<File>> {
    let dir = File::open(path).ok()?;
    let locked = Flock::lock(dir, FlockArg::LockExclusiveNonblock).ok()?;
    // Links: its own `.`, until it is removed.
    locked.metadata().is_ok_and(|meta| meta.nlink() > 0).then_some(locked)
}

/// Removes what killed processes have left of this kind.
fn sweep(run: &Path, what: &str) {
    let prefix = format!("{what}.");
    for entry in std::fs::read_dir(run).into_iter().flatten().flatten() {
        if !entry.file_name().as_bytes().starts_with(prefix.as_bytes()) {
            continue;
        }
        // Locked while it goes: whoever has just made it, and has no lock yet, sees that it is gone and makes another.
        if let Some(_lock) = hold(&entry.path()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_has_left_goes_and_what_is_held_stays() {
        let held = PrivateDir::new("swept").unwrap();
        let left = held.path().with_file_name("swept.killed");
        let other = held.path().with_file_name("sweptother.killed");
        for dir in [&left, &other] {
            std::fs::create_dir_all(dir.join("deep")).unwrap();
        }
        let next = PrivateDir::new("swept").unwrap();
        let root = held.path().starts_with(RUN);
        assert!(held.path().is_dir() && next.path().is_dir() && other.is_dir());
        assert_eq!(left.exists(), !root, "only root's own directory is tidied");
        std::fs::remove_dir_all(&other).unwrap();
        let _ = std::fs::remove_dir_all(&left);
        let gone = held.path().to_owned();
        drop(held);
        assert!(!gone.exists());
    }
}
