//! /var/run/qtfs/remote_uds.sock: where people who know the kernel module's udsproxyd look for its socket.
//!
//! A symbolic link to the real one, for eyes and scripts: libudsproxy.so does not need it. Nothing that is there
//! already is followed or replaced, and what is removed at the end is what was made here.

use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

const DIR: &str = "/var/run/qtfs";
const NAME: &str = "remote_uds.sock";

#[derive(Debug)]
pub(super) struct GuideLink {
    dir: PathBuf,
    made_dir: bool,
    to: PathBuf,
}

impl GuideLink {
    /// Only for the daemon at the usual place. `None`: it could not be made, which nobody needs to care about.
    pub(super) fn make(socket: &Path) -> Option<Self> {
        if socket != Path::new(farside_contract::SOCKET_PATH) {
            return None;
        }
        Self::make_in(Path::new(DIR), socket)
    }

    fn make_in(dir: &Path, socket: &Path) -> Option<Self> {
        let made_dir = std::fs::DirBuilder::new().mode(0o755).create(dir).is_ok();
        let link = Self { dir: dir.into(), made_dir, to: socket.into() };
        let meta = dir.symlink_metadata().ok()?;
        let ours = meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o022 == 0;
        let made = ours && (symlink(socket, link.path()).is_ok() || link.is_there());
        if !made {
            tracing::debug!("{} is somebody else's", link.path().display());
            return None;
        }
        Some(link)
    }

    fn path(&self) -> PathBuf {
        self.dir.join(NAME)
    }

    /// Also one that a daemon left that was killed.
    fn is_there(&self) -> bool {
        std::fs::read_link(self.path()).is_ok_and(|to| to == self.to)
    }
}

impl Drop for GuideLink {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = std::fs::remove_file(self.path());
        }
        if self.made_dir {
            // Not empty: somebody else's things are in it.
            let _ = std::fs::remove_dir(&self.dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_stays_and_what_was_made_goes() {
        let dir = std::env::temp_dir().join(format!("guide-link-{}", std::process::id()));
        let socket = Path::new("/run/farside/uds.sock");
        let link = GuideLink::make_in(&dir, socket).unwrap();
        assert_eq!(std::fs::read_link(dir.join(NAME)).unwrap(), socket);
        drop(link);
        assert!(!dir.exists());
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join(NAME), "somebody else's").unwrap();
        assert!(GuideLink::make_in(&dir, socket).is_none());
        assert_eq!(std::fs::read(dir.join(NAME)).unwrap(), b"somebody else's");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
