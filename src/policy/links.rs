//! Rules whose paths lead through symbolic links: what is judged never does, so a rule's path must be seen without too.
//!
//! A deny rule counts for its path as written and as it really is at that moment: its links are followed each time that
//! the rule is asked, after the object in question was opened, by the thread that opened it. So a link that was switched
//! before the request came is seen, and no worker waits for a file system. A path that cannot be followed may be any
//! path: then the rule denies. A mount is judged once, when it is made.
//!
//! An allow rule follows links in / and /var alone (bin → usr/bin, /var/run → /run), when the file is read: further down
//! a peer that may write may make links, and one of its making would then stand for a directory of its choice.

use super::fs::Dir;
use super::glob::PathGlob;
use super::peer_file::Policy;
use super::uds::Names;
use super::verdict::{Denied, Place};
use crate::errno::Errno;

/// The machine's symbolic links. `without_any` may wait for a file system: not for a worker.
pub trait Links {
    /// The path without any symbolic link, as far as it exists.
    ///
    /// # Errors
    /// What is there cannot be told, so neither can what the path really is.
    fn without_any(&self, path: &[u8]) -> Result<Vec<u8>, Errno>;
    /// The path without those in / and /var.
    fn without_top(&self, path: &[u8]) -> Option<Vec<u8>>;
}

/// A machine without symbolic links.
#[derive(Debug, Clone, Copy)]
pub struct AsWritten;

impl Links for AsWritten {
    fn without_any(&self, path: &[u8]) -> Result<Vec<u8>, Errno> {
        Ok(path.to_vec())
    }

    fn without_top(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

impl Policy {
    /// Allow rules with the machine's own links followed.
    #[must_use]
    pub fn following(mut self, links: &dyn Links) -> Self {
        for rule in self.exec.iter_mut().filter(|rule| rule.allow) {
            widen(&mut rule.paths, links);
        }
        for rule in self.uds.iter_mut().filter(|rule| rule.allow) {
            if let Names::Paths(paths) = &mut rule.names {
                widen(paths, links);
            }
        }
        for rule in self.fs.iter_mut().filter(|rule| rule.allow.is_some()) {
            let path = rule.dirs[0].path();
            let other = links.without_top(&path).filter(|other| *other != path);
            rule.dirs.extend(other.and_then(|other| Dir::new(&other)));
        }
        self
    }
}

fn widen(paths: &mut Vec<PathGlob>, links: &dyn Links) {
    let fixed = paths[0].fixed();
    if !fixed.is_empty() {
        let other = links.without_top(&fixed).filter(|path| *path != fixed);
        paths.extend(other.and_then(|path| paths[0].with_fixed(&path)));
    }
}

/// Whether the rule's patterns are about the path; a deny rule's also as they really are now.
///
/// # Errors
/// A deny rule whose path cannot be followed, and which therefore denies.
pub(super) fn about(
    (allow, place): (bool, &Place),
    patterns: &[PathGlob],
    path: &[u8],
    links: &dyn Links,
) -> Result<bool, Denied> {
    if patterns.iter().any(|glob| glob.matches(path)) {
        return Ok(true);
    }
    let fixed = patterns[0].fixed();
    if allow || fixed.is_empty() {
        return Ok(false);
    }
    let real = links.without_any(&fixed).map_err(|errno| unfollowed(place, &fixed, errno))?;
    Ok(real != fixed && patterns[0].with_fixed(&real).is_some_and(|glob| glob.matches(path)))
}

/// The directories that a rule stands for: a deny rule's also as it really is now.
///
/// # Errors
/// As for `about`.
pub(super) fn standing_for(
    (allow, place): (bool, &Place),
    dirs: &[Dir],
    links: &dyn Links,
) -> Result<Vec<Dir>, Denied> {
    let mut all = dirs.to_vec();
    if !allow {
        let path = dirs[0].path();
        let real = links.without_any(&path).map_err(|errno| unfollowed(place, &path, errno))?;
        all.extend(Dir::new(&real));
    }
    Ok(all)
}

fn unfollowed(place: &Place, path: &[u8], errno: Errno) -> Denied {
    Denied::Unfollowed { place: place.clone(), path: String::from_utf8_lossy(path).into_owned(), errno }
}
