//! fds of inodes and mounts that were used lately, a bounded number of them.
//!
//! ```text
//!   keep ──▶ kept ──full, untouched since its last turn─▶ closed
//!              ├────untouched from one tick to the next──▶ closed      (whole ticks of NODE_IDLE)
//!              └────retired: its node is forgotten───────▶ closed      (at the next sweep)
//! ```
//!
//! A node knows its fd weakly; this cache (and open files) keep it alive. Nothing is lost when an fd goes: the next use
//! opens the inode again. An fd that stays keeps a deleted file's space, and keeps its file system from being unmounted.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

#[derive(Debug)]
pub(super) struct NodeFd {
    fd: OwnedFd,
    touched: AtomicBool,
    retired: AtomicBool,
}

impl NodeFd {
    pub(super) fn new(fd: OwnedFd) -> Arc<Self> {
        Arc::new(Self { fd, touched: AtomicBool::new(true), retired: AtomicBool::new(false) })
    }

    /// Nobody will ask for it again; the next sweep closes it.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }
}

impl AsFd for NodeFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What an fd is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// A program of the near side asks, and may ask again.
    Lasting,
    /// The near side itself looks whether the inode is still there, every few seconds: that keeps nothing open.
    Glance,
}

/// Where the fd of something is found, as long as anybody keeps it.
#[derive(Debug, Default)]
pub(super) struct Slot(Mutex<Weak<NodeFd>>);

impl Slot {
    fn slot(&self) -> MutexGuard<'_, Weak<NodeFd>> {
        self.0.lock().expect("never poisoned: panics abort")
    }

    /// A lasting use keeps it a while longer.
    pub(super) fn live(&self, how: Use) -> Option<Arc<NodeFd>> {
        let fd = self.slot().upgrade()?;
        if how == Use::Lasting {
            fd.touched.store(true, Ordering::Relaxed);
        }
        Some(fd)
    }

    pub(super) fn fill(&self, fd: &Arc<NodeFd>) {
        *self.slot() = Arc::downgrade(fd);
    }
}

#[derive(Debug)]
pub(super) struct FdCache {
    kept: Mutex<VecDeque<Arc<NodeFd>>>,
    max: usize,
}

impl FdCache {
    pub(super) fn new(max: usize) -> Self {
        assert!(max > 0, "a cache that keeps nothing reopens everything");
        Self { kept: Mutex::new(VecDeque::with_capacity(max)), max }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Arc<NodeFd>>> {
        self.kept.lock().expect("never poisoned: panics abort")
    }

    pub(super) fn keep(&self, fd: Arc<NodeFd>) {
        let mut kept = self.kept();
        let dropped = (kept.len() >= self.max).then(|| Self::oldest(&mut kept)).flatten();
        kept.push_back(fd);
        // Closing may take long; not under the lock.
        drop(kept);
        drop(dropped);
    }

    fn oldest(kept: &mut VecDeque<Arc<NodeFd>>) -> Option<Arc<NodeFd>> {
        for _ in 0..kept.len() {
            let fd = kept.pop_front()?;
            if !fd.touched.swap(false, Ordering::Relaxed) {
                return Some(fd);
            }
            kept.push_back(fd);
        }
        kept.pop_front()
    }

    /// Closes what is retired, and at a tick also what nobody has touched since the tick before.
    pub(super) fn sweep(&self, tick: bool) {
        let mut gone = Vec::new();
        self.kept().retain(|fd| {
            let idle = tick && !fd.touched.swap(false, Ordering::Relaxed);
            let stays = !idle && !fd.retired.load(Ordering::Relaxed);
            if !stays {
                gone.push(fd.clone());
            }
            stays
        });
        // As above: the last close of a deleted file is its deletion.
        drop(gone);
    }

    /// Closes all of them: the process has no fd left for something more urgent.
    pub(super) fn shed(&self) {
        let all = std::mem::take(&mut *self.kept());
        drop(all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fd() -> Arc<NodeFd> {
        NodeFd::new(std::fs::File::open("/dev/null").unwrap().into())
    }

    #[test]
    fn what_is_touched_stays_and_the_rest_goes() {
        let cache = FdCache::new(2);
        let (a, b) = (fd(), fd());
        let (weak_a, weak_b): (Weak<_>, Weak<_>) = (Arc::downgrade(&a), Arc::downgrade(&b));
        for first in [a, b] {
            first.touched.store(false, Ordering::Relaxed);
            cache.keep(first);
        }
        weak_a.upgrade().unwrap().touched.store(true, Ordering::Relaxed);
        cache.keep(fd());
        assert!(weak_a.upgrade().is_some());
        assert!(weak_b.upgrade().is_none());
        cache.shed();
        assert!(weak_a.upgrade().is_none());
    }

    #[test]
    fn a_sweep_closes_what_is_retired_and_a_tick_what_is_idle() {
        let cache = FdCache::new(8);
        let [used, idle, retired, held] = [(); 4].map(|()| Slot::default());
        for slot in [&used, &idle, &retired, &held] {
            let new = fd();
            slot.fill(&new);
            cache.keep(new);
        }
        let open = held.live(Use::Lasting).unwrap();
        cache.sweep(true);
        cache.sweep(false);
        assert!([&used, &idle, &retired, &held].iter().all(|slot| slot.live(Use::Glance).is_some()), "all were new");
        used.live(Use::Lasting).unwrap();
        retired.live(Use::Lasting).unwrap().retire();
        cache.sweep(false);
        assert!(retired.live(Use::Glance).is_none(), "however lately it was used");
        assert!(idle.live(Use::Glance).is_some(), "this was no tick");
        cache.sweep(true);
        assert!(used.live(Use::Glance).is_some());
        assert!(idle.live(Use::Glance).is_none(), "a glance is no use");
        cache.sweep(true);
        assert!(used.live(Use::Glance).is_none());
        assert!(held.live(Use::Glance).is_some(), "an open file keeps its own");
        drop(open);
        assert!(held.live(Use::Glance).is_none());
    }
}
