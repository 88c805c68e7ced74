//! How many threads one file link has, and when the last of them has ended.

use std::sync::{Condvar, Mutex, MutexGuard};

pub(super) struct Crew {
    threads: Mutex<usize>,
    ended: Condvar,
    max: usize,
}

impl Crew {
    /// The calling thread is the first.
    pub(super) fn new(max: usize) -> Self {
        Self { threads: Mutex::new(1), ended: Condvar::new(), max }
    }

    /// Counts one more thread; `false`: there are as many as there may be.
    pub(super) fn join(&self) -> bool {
        let mut threads = self.threads();
        let may = *threads < self.max;
        *threads += usize::from(may);
        may
    }

    pub(super) fn leave(&self) {
        let mut threads = self.threads();
        *threads -= 1;
        if *threads == 0 {
            self.ended.notify_all();
        }
    }

    /// Waits for the last one, which may be busy until a disk answers. Sleeps meanwhile.
    pub(super) fn wait(&self) {
        let none = self.ended.wait_while(self.threads(), |threads| *threads > 0);
        drop(none.expect("never poisoned: panics abort"));
    }

    fn threads(&self) -> MutexGuard<'_, usize> {
        self.threads.lock().expect("never poisoned: panics abort")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    use super::*;

    /// How often this thread has gone to sleep, as the kernel counts it.
    fn sleeps() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        line.trim().parse().unwrap()
    }

    #[test]
    fn whoever_waits_for_a_hung_disk_sleeps_until_it_answers() {
        let crew = Arc::new(Crew::new(2));
        assert!(crew.join() && !crew.join(), "two at most");
        let (woken, tell) = mpsc::channel();
        let waiting = crew.clone();
        let thread = std::thread::spawn(move || {
            waiting.leave();
            let before = sleeps();
            waiting.wait();
            woken.send(sleeps() - before).unwrap();
        });
        assert!(tell.recv_timeout(Duration::from_millis(300)).is_err(), "one is busy");
        crew.leave();
        let times = tell.recv_timeout(Duration::from_secs(5)).unwrap();
        assert!(times < 10, "it woke {times} times in 300 ms");
        thread.join().unwrap();
    }
}
