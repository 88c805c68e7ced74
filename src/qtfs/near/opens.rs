//! Which inodes programs have open, and with it how long attributes are good.
//!
//! A path walk asks the host for each component (LOOKUP) and at once wants its attributes, to check permission or to
//! answer stat(2): those that the LOOKUP brought are this very system call's. So a LOOKUP's attributes are given the
//! shortest life that the kernel has, one tick. But fstat(2) on an open file must ask the host each time, so while an
//! inode is open, or being opened, its LOOKUPs bring none that live, and what is alive when it is opened is ended.
//! (An O_PATH fd or a working directory is not "open" in this sense: its attributes may be two ticks old.)
//!
//! It is also known here whether a POSIX lock was ever asked for while the inode was open. If not, close(2) has nothing
//! to tell the host: there is no data to write back, and FLUSH is for the owner's locks.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use crate::qtfs::abi::{OUT_HEADER, OutHeader};

/// Where `attr_valid_nsec` of `struct fuse_entry_out` is in a LOOKUP's reply.
const LIFE_AT: usize = OUT_HEADER + 36;
const NOTIFY_INVAL_INODE: i32 = 2;

#[derive(Debug, Default)]
struct Open {
    /// Open files, and OPENs under way.
    count: u32,
    locked: bool,
}

#[derive(Debug, Default)]
pub(super) struct Opens {
    by_node: Mutex<HashMap<u64, Open>>,
}

impl Opens {
    fn locked(&self) -> MutexGuard<'_, HashMap<u64, Open>> {
        self.by_node.lock().expect("never poisoned: panics abort")
    }

    /// An OPEN is about to be sent, or a CREATE has come back.
    pub(super) fn on_open(&self, node: u64) {
        self.locked().entry(node).or_default().count += 1;
    }

    /// It failed, or its RELEASE is about to be sent.
    pub(super) fn on_closed(&self, node: u64) {
        let mut by_node = self.locked();
        if let Some(open) = by_node.get_mut(&node) {
            open.count -= 1;
            if open.count == 0 {
                by_node.remove(&node);
            }
        }
    }

    /// A lock is about to be asked for.
    pub(super) fn on_lock(&self, node: u64) {
        if let Some(open) = self.locked().get_mut(&node) {
            open.locked = true;
        }
    }

    /// Whether the host must hear of a close(2).
    pub(super) fn was_locked(&self, node: u64) -> bool {
        self.locked().get(&node).is_none_or(|open| open.locked)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.locked().is_empty()
    }

    /// Gives the attributes in a LOOKUP's reply one tick, unless the inode is open.
    pub(super) fn mark_lookup(&self, reply: &mut [u8]) {
        let Some(node) = entry_node(reply) else { return };
        if let Some(life) = reply.get_mut(LIFE_AT..LIFE_AT + 4)
            && !self.locked().contains_key(&node)
        {
            life.copy_from_slice(&1u32.to_le_bytes());
        }
    }
}

/// The node that a successful LOOKUP or CREATE is about.
pub(super) fn entry_node(reply: &[u8]) -> Option<u64> {
    reply.get(OUT_HEADER..).and_then(|b| b.first_chunk()).map(|b| u64::from_le_bytes(*b)).filter(|node| *node != 0)
}

/// Tells the kernel to forget the attributes that it holds.
pub(super) fn end_attributes(node: u64) -> Vec<u8> {
    let mut body = node.to_le_bytes().to_vec();
    // A negative offset leaves the page cache alone.
    body.extend_from_slice(&(-1i64).to_le_bytes());
    body.extend_from_slice(&0i64.to_le_bytes());
    OutHeader::encode(0, NOTIFY_INVAL_INODE, &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qtfs::abi::ENTRY;

    #[test]
    fn attributes_live_only_while_nobody_has_the_file_open() {
        let opens = Opens::default();
        let mut reply = OutHeader::encode(2, 0, &[0; ENTRY]);
        reply[OUT_HEADER] = 9;
        let life = |reply: &[u8]| reply[LIFE_AT];
        let mut closed = reply.clone();
        opens.mark_lookup(&mut closed);
        assert_eq!(life(&closed), 1);
        opens.on_open(9);
        opens.on_open(9);
        opens.on_closed(9);
        let mut open = reply.clone();
        opens.mark_lookup(&mut open);
        assert_eq!(life(&open), 0);
        assert!(!opens.was_locked(9));
        opens.on_lock(9);
        assert!(opens.was_locked(9));
        opens.on_closed(9);
        assert!(opens.is_empty());
        opens.on_closed(9);
    }
}
