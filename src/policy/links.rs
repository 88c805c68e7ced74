//! Rules whose paths lead through symbolic links: what is judged never does, so a rule's path must be seen without too.
//!
//! A deny rule counts for its path as written and as it really is. An allow rule follows links in / and /var alone
//! (bin → usr/bin, /var/run → /run): further down a peer that may write may make links, and one of its making would
//! then stand for a directory of its choice the next time that the file is read.

use super::Policy;
use super::fs::Dir;
use super::glob::PathGlob;
use super::uds::Names;

/// The machine's symbolic links, asked when a file is read.
pub trait Links {
    /// The path without any symbolic link, as far as it exists; `None`: as it is.
    fn without_any(&self, path: &[u8]) -> Option<Vec<u8>>;
    /// The path without those in / and /var.
    fn without_top(&self, path: &[u8]) -> Option<Vec<u8>>;
}

impl Policy {
    #[must_use]
    pub fn following(mut self, links: &dyn Links) -> Self {
        let real = |allow: bool, path: &[u8]| match allow {
            true => links.without_top(path),
            false => links.without_any(path),
        };
        for rule in &mut self.exec {
            widen(&mut rule.paths, |path| real(rule.allow, path));
        }
        for rule in &mut self.uds {
            if let Names::Paths(paths) = &mut rule.names {
                widen(paths, |path| real(rule.allow, path));
            }
        }
        for rule in &mut self.fs {
            let path = rule.dirs[0].path();
            rule.dirs.extend(real(rule.allow.is_some(), &path).filter(|p| *p != path).and_then(|p| Dir::new(&p)));
        }
        self
    }
}

fn widen(paths: &mut Vec<PathGlob>, real: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    let fixed = paths[0].fixed();
    if fixed.is_empty() {
        return;
    }
    let other = real(&fixed).filter(|path| *path != fixed).and_then(|path| paths[0].with_fixed(&path));
    paths.extend(other);
}
