//! Rules whose paths lead through symbolic links: what is judged never does, so a rule's path must be seen without too.
//!
//! A deny rule counts for its path as written and as it really is. An allow rule follows links in / and /var alone
//! (bin → usr/bin, /var/run → /run): further down a peer that may write may make links, and one of its making would
//! then stand for a directory of its choice the next time that the file is read.

use super::fs::Dir;
use super::glob::PathGlob;
use super::peer_file::{FileError, Policy};
use super::uds::Names;
use super::verdict::Place;
use crate::errno::Errno;

/// The machine's symbolic links, asked when a file is read.
pub trait Links {
    /// The path without any symbolic link, as far as it exists.
    ///
    /// # Errors
    /// What is there cannot be told, so neither can what the path really is.
    fn without_any(&self, path: &[u8]) -> Result<Vec<u8>, Errno>;
    /// The path without those in / and /var.
    fn without_top(&self, path: &[u8]) -> Option<Vec<u8>>;
}

impl Policy {
    /// # Errors
    /// A deny rule's path cannot be followed: the rule would not count for what it really is.
    pub fn following(mut self, links: &dyn Links) -> Result<Self, FileError> {
        let real = |allow: bool, place: &Place, path: &[u8]| match allow {
            true => Ok(links.without_top(path)),
            false => links.without_any(path).map(Some).map_err(|errno| unfollowed(place, path, errno)),
        };
        for rule in &mut self.exec {
            widen(&mut rule.paths, |path| real(rule.allow, &rule.place, path))?;
        }
        for rule in &mut self.uds {
            if let Names::Paths(paths) = &mut rule.names {
                widen(paths, |path| real(rule.allow, &rule.place, path))?;
            }
        }
        for rule in &mut self.fs {
            let path = rule.dirs[0].path();
            let other = real(rule.allow.is_some(), &rule.place, &path)?;
            rule.dirs.extend(other.filter(|p| *p != path).and_then(|p| Dir::new(&p)));
        }
        Ok(self)
    }
}

fn unfollowed(place: &Place, path: &[u8], errno: Errno) -> FileError {
    let what = format!(
        "the symbolic links of {:?}, which is denied, cannot be followed: {}",
        String::from_utf8_lossy(path),
        errno.desc()
    );
    FileError::at(&place.file, place.line, what)
}

fn widen(
    paths: &mut Vec<PathGlob>,
    real: impl Fn(&[u8]) -> Result<Option<Vec<u8>>, FileError>,
) -> Result<(), FileError> {
    let fixed = paths[0].fixed();
    if !fixed.is_empty() {
        let other = real(&fixed)?.filter(|path| *path != fixed).and_then(|path| paths[0].with_fixed(&path));
        paths.extend(other);
    }
    Ok(())
}
