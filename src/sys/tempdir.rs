//! A directory of our own, mode 0700, that goes with its owner.

use std::path::{Path, PathBuf};

use crate::errno::{OsResult, Step};

/// Removed, with what is in it, when dropped.
#[derive(Debug)]
pub struct PrivateDir(PathBuf);

impl PrivateDir {
    /// Below /run/farside where that can be made (root), else below the directory for temporary files. mkdtemp(3) makes
    /// it 0700 and never follows what somebody else put there.
    pub fn new(what: &str) -> OsResult<Self> {
        let run = Path::new("/run/farside");
        if !run.exists() {
            // Somebody else may win this race, or we may not be root: mkdtemp will tell.
            let _ = std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(run);
        }
        let name = format!("{what}.XXXXXX");
        match nix::unistd::mkdtemp(&run.join(&name)) {
            Ok(path) => Ok(Self(path)),
            Err(_) => nix::unistd::mkdtemp(&std::env::temp_dir().join(format!("farside-{name}")))
                .map(Self)
                .step_on("mkdtemp", std::env::temp_dir().display()),
        }
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!("cannot remove {}: {e}", self.0.display());
        }
    }
}
