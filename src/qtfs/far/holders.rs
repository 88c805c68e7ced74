//! Which owner has locks of which inode, and through which open files it took them.
//!
//! ```text
//!   (node, owner) ──▶ the lock file, the handles that it was asked for through
//!   handle ──▶ owners
//! ```
//!
//! The near kernel names the owner of a POSIX lock after the process, and tells the end of its locks by FLUSH. It names
//! the owner of an OFD lock after the open file, and tells nothing but that file's RELEASE. A request does not say which
//! of the two it is about, so both ends are kept here. They never contradict: every process that has locked through a
//! handle flushes it before that handle is released.

use std::collections::HashMap;
use std::sync::Arc;

use nix::errno::Errno;

use crate::limits::{LOCK_FILES_MAX, LOCK_HANDLES_MAX};

#[derive(Debug)]
struct Held<F> {
    file: Arc<F>,
    handles: Vec<u64>,
}

#[derive(Debug)]
pub(super) struct Holders<F> {
    /// By node and owner.
    held: HashMap<(u64, u64), Held<F>>,
    /// The other way round: owners by handle.
    owners: HashMap<u64, Vec<u64>>,
    /// The handles in `held`, all together.
    handles: usize,
}

impl<F> Default for Holders<F> {
    fn default() -> Self {
        Self { held: HashMap::new(), owners: HashMap::new(), handles: 0 }
    }
}

impl<F> Holders<F> {
    pub(super) fn find(&self, node: u64, owner: u64) -> Option<Arc<F>> {
        self.held.get(&(node, owner)).map(|held| held.file.clone())
    }

    /// The owner's lock file, which `open` makes if there is none yet. ENOLCK: too many.
    pub(super) fn take(
        &mut self,
        (node, owner): (u64, u64),
        handle: u64,
        open: impl FnOnce() -> nix::Result<F>,
    ) -> nix::Result<Arc<F>> {
        let full = self.held.len() >= LOCK_FILES_MAX;
        let file = match self.held.get_mut(&(node, owner)) {
            Some(held) if held.handles.contains(&handle) => return Ok(held.file.clone()),
            _ if self.handles >= LOCK_HANDLES_MAX => return Err(Errno::ENOLCK),
            Some(held) => {
                held.handles.push(handle);
                held.file.clone()
            }
            None if full => return Err(Errno::ENOLCK),
            None => {
                let file = Arc::new(open()?);
                self.held.insert((node, owner), Held { file: file.clone(), handles: vec![handle] });
                file
            }
        };
        self.owners.entry(handle).or_default().push(owner);
        self.handles += 1;
        Ok(file)
    }

    /// FLUSH: what the owner had of this inode.
    pub(super) fn flushed(&mut self, node: u64, owner: u64) -> Option<Arc<F>> {
        let held = self.held.remove(&(node, owner))?;
        self.handles -= held.handles.len();
        for handle in &held.handles {
            let owners = self.owners.get_mut(handle).expect("every handle of an owner is listed");
            owners.retain(|o| *o != owner);
            if owners.is_empty() {
                self.owners.remove(handle);
            }
        }
        Some(held.file)
    }

    /// RELEASE: what was taken through this open file alone.
    pub(super) fn released(&mut self, node: u64, handle: u64) -> Vec<Arc<F>> {
        let mut gone = Vec::new();
        for owner in self.owners.remove(&handle).unwrap_or_default() {
            let held = self.held.get_mut(&(node, owner)).expect("every owner of a handle is listed");
            held.handles.retain(|h| *h != handle);
            self.handles -= 1;
            if held.handles.is_empty() {
                gone.extend(self.held.remove(&(node, owner)).map(|held| held.file));
            }
        }
        gone
    }

    /// The others that have something of this inode.
    pub(super) fn others(&self, node: u64, owner: u64) -> impl Iterator<Item = &F> {
        self.held.iter().filter(move |((n, o), _)| *n == node && *o != owner).map(|(_, held)| &*held.file)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: u64 = 7;

    fn taken(holders: &mut Holders<&'static str>, owner: u64, handle: u64, name: &'static str) -> &'static str {
        *holders.take((NODE, owner), handle, || Ok(name)).unwrap()
    }

    #[test]
    fn a_lock_goes_with_the_last_handle_that_it_was_taken_through() {
        let mut holders = Holders::default();
        assert_eq!(taken(&mut holders, 1, 100, "one"), "one");
        assert_eq!(taken(&mut holders, 1, 101, "again"), "one");
        assert_eq!(taken(&mut holders, 2, 100, "two"), "two");
        assert_eq!(holders.released(NODE, 100), [Arc::new("two")], "the first owner has another handle");
        assert!(holders.find(NODE, 1).is_some() && holders.find(NODE, 2).is_none());
        assert_eq!(holders.released(NODE, 101), [Arc::new("one")]);
        assert!(holders.released(NODE, 101).is_empty());
        assert_eq!((holders.held.len(), holders.owners.len(), holders.handles), (0, 0, 0));
    }

    #[test]
    fn a_flush_ends_one_owners_locks_whatever_they_came_through() {
        let mut holders = Holders::default();
        for handle in [100, 101] {
            taken(&mut holders, 1, handle, "one");
            taken(&mut holders, 2, handle, "two");
        }
        assert_eq!(holders.flushed(NODE, 1), Some(Arc::new("one")));
        assert_eq!(holders.flushed(NODE, 1), None);
        assert_eq!(holders.others(NODE, 1).collect::<Vec<_>>(), [&"two"]);
        assert!(holders.released(NODE, 100).is_empty());
        assert_eq!(holders.released(NODE, 101), [Arc::new("two")]);
        assert_eq!((holders.held.len(), holders.owners.len(), holders.handles), (0, 0, 0));
    }

    #[test]
    fn neither_owners_nor_their_handles_are_without_bound() {
        let mut holders = Holders::default();
        let owners = u64::try_from(LOCK_FILES_MAX).unwrap();
        for owner in 0..owners {
            taken(&mut holders, owner, owner, "some");
        }
        assert_eq!(holders.take((NODE, owners), owners, || Ok("more")), Err(Errno::ENOLCK));
        for handle in owners..u64::try_from(LOCK_HANDLES_MAX).unwrap() {
            taken(&mut holders, 0, handle, "some");
        }
        assert_eq!(holders.take((NODE, 0), u64::MAX, || Ok("more")), Err(Errno::ENOLCK));
        assert_eq!(taken(&mut holders, 0, owners, "known"), "some", "what is there already needs no room");
        holders.flushed(NODE, 0);
        taken(&mut holders, owners, owners, "some");
    }
}
