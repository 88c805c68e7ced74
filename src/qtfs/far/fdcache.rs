//! O_PATH fds of inodes that were used lately, a bounded number of them.
//!
//! A node knows its fd weakly; this cache (and open files) keep it alive. When it is full the oldest fd that was not
//! touched since its last turn goes (CLOCK). Nothing is lost: the next use opens the inode again.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

#[derive(Debug)]
pub(super) struct NodeFd {
    fd: OwnedFd,
    touched: AtomicBool,
}

impl NodeFd {
    pub(super) fn new(fd: OwnedFd) -> Arc<Self> {
        Arc::new(Self { fd, touched: AtomicBool::new(true) })
    }

    pub(super) fn touch(&self) {
        self.touched.store(true, Ordering::Relaxed);
    }
}

impl AsFd for NodeFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
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

    pub(super) fn keep(&self, fd: Arc<NodeFd>) {
        let mut kept = self.kept.lock().expect("never poisoned: panics abort");
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

    /// Closes all of them: the process has no fd left for something more urgent.
    pub(super) fn shed(&self) {
        let all = std::mem::take(&mut *self.kept.lock().expect("never poisoned: panics abort"));
        drop(all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Weak;

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
        weak_a.upgrade().unwrap().touch();
        cache.keep(fd());
        assert!(weak_a.upgrade().is_some());
        assert!(weak_b.upgrade().is_none());
        cache.shed();
        assert!(weak_a.upgrade().is_none());
    }
}
