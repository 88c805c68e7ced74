//! A pool of threads that holders share: each has so many of them at most, and its further jobs wait for those.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use super::fair::{Fair, Share, Turn};
use super::pool::{Bounds, Job, Pool};

/// Clones are the same pool.
pub struct FairPool<K>(Arc<Inner<K>>);

struct Inner<K> {
    turns: Fair<K, Job>,
    threads: Pool<Job>,
}

impl<K> fmt::Debug for FairPool<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FairPool({:?})", self.0.threads)
    }
}

impl<K> Clone for FairPool<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Eq + Hash + Copy + Send + Sync + 'static> FairPool<K> {
    pub fn new(bounds: Bounds, share: Share) -> Self {
        Self(Arc::new(Inner { turns: Fair::new(share), threads: Pool::of_jobs(bounds) }))
    }

    /// Whether a job of that holder would be taken now.
    pub fn has_room(&self, holder: K) -> bool {
        self.0.turns.has_room(&holder)
    }

    /// False: too many of that holder's wait already, and the job is dropped.
    pub fn submit(&self, holder: K, job: impl FnOnce() + Send + 'static) -> bool {
        match self.0.turns.enter(holder, Box::new(job)) {
            Turn::Now(job) => self.start(holder, job),
            Turn::Later => {}
            Turn::Full(_) => return false,
        }
        true
    }

    fn start(&self, holder: K, job: Job) {
        let pool = self.clone();
        let and_then = move || {
            job();
            // Behind those of others that wait for a thread.
            if let Some(next) = pool.0.turns.leave(&holder) {
                pool.start(holder, next);
            }
        };
        self.0.threads.submit(Box::new(and_then));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_that_fills_its_share_keeps_no_other_waiting() {
        let bounds = Bounds { name: "test", kept: 0, most: 4, idle: Duration::from_millis(20), stack_bytes: 256 << 10 };
        let pool = FairPool::new(bounds, Share { each: 2, waiting: 1 });
        let (hold, held) = mpsc::channel::<()>();
        let held = Arc::new(std::sync::Mutex::new(held));
        let waits = || {
            let held = Arc::clone(&held);
            move || _ = held.lock().unwrap().recv()
        };
        assert!(pool.submit(1, waits()) && pool.submit(1, waits()) && pool.submit(1, waits()));
        assert!(!pool.has_room(1) && !pool.submit(1, waits()));
        let (tell, told) = mpsc::channel();
        assert!(pool.submit(2, move || tell.send(()).unwrap()));
        told.recv_timeout(Duration::from_secs(5)).expect("another one's job at once");
        drop(hold);
    }
}
