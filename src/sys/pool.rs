//! Threads that take jobs from one queue, for calls that may wait.
//!
//! ```text
//!   submit ──▶ queue ──▶ an idle thread, or a new one while there are fewer than `most` ──▶ job
//!                         └── nothing to do for `idle`, and more than `kept` of them: it ends
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::sched;

/// How many threads, and of what kind.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub name: &'static str,
    /// These never end.
    pub kept: usize,
    pub most: usize,
    pub idle: Duration,
    pub stack_bytes: usize,
}

/// What a thread does with each job. `false`: the thread ends, since something of its own is spoilt.
pub type Work<J> = Box<dyn FnMut(J) -> bool>;

/// What a new thread works with. `None`: it can't.
type Begin<J> = Box<dyn Fn() -> Option<Work<J>> + Send + Sync>;

/// One that needs nothing but a thread.
pub type Job = Box<dyn FnOnce() + Send>;

/// Dropped, it does what is in the queue and ends.
pub struct Pool<J: Send + 'static>(Arc<Shared<J>>);

struct Shared<J> {
    bounds: Bounds,
    begin: Begin<J>,
    state: Mutex<State<J>>,
    work: Condvar,
}

struct State<J> {
    jobs: VecDeque<J>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl<J: Send + 'static> fmt::Debug for Pool<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({})", self.0.bounds.name)
    }
}

impl<J: Send + 'static> Pool<J> {
    /// No thread yet: the first ones come with the first jobs, or by `start`.
    pub fn new(bounds: Bounds, begin: impl Fn() -> Option<Work<J>> + Send + Sync + 'static) -> Self {
        let state = State { jobs: VecDeque::new(), threads: 0, idle: 0, closed: false };
        Self(Arc::new(Shared { bounds, begin: Box::new(begin), state: Mutex::new(state), work: Condvar::new() }))
    }

    /// Starts those that are kept, while threads can be had.
    pub fn start(&self) -> std::io::Result<()> {
        let mut state = self.0.state();
        while state.threads < self.0.bounds.kept {
            spawn(&self.0, &mut state)?;
        }
        Ok(())
    }

    /// Returns how many jobs wait now, this one included. Where no thread can be started it waits for one that is there.
    pub fn submit(&self, job: J) -> usize {
        let mut state = self.0.state();
        state.jobs.push_back(job);
        if state.idle < state.jobs.len()
            && state.threads < self.0.bounds.most
            && let Err(e) = spawn(&self.0, &mut state)
        {
            tracing::warn!("no further thread {}: {e}", self.0.bounds.name);
        }
        let waiting = state.jobs.len();
        drop(state);
        self.0.work.notify_one();
        waiting
    }

    pub fn waiting(&self) -> usize {
        self.0.state().jobs.len()
    }
}

impl Pool<Job> {
    /// Of threads that have nothing of their own.
    pub fn of_jobs(bounds: Bounds) -> Self {
        Self::new(bounds, || {
            Some(Box::new(|job: Job| {
                job();
                true
            }))
        })
    }
}

impl<J: Send + 'static> Drop for Pool<J> {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.work.notify_all();
    }
}

impl<J> Shared<J> {
    fn state(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().expect("no job panics: panic is abort")
    }

    /// `None`: there has been none for long and enough others stay, or the pool is closed; the thread counts no more.
    fn next(&self) -> Option<J> {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.closed {
                state.threads -= 1;
                return None;
            }
            state.idle += 1;
            let (back, wait) = self.work.wait_timeout(state, self.bounds.idle).expect("no job panics: panic is abort");
            state = back;
            state.idle -= 1;
            if wait.timed_out() && state.jobs.is_empty() && !state.closed && state.threads > self.bounds.kept {
                // Under the same lock: two that end at once must not both think that another one stays.
                state.threads -= 1;
                return None;
            }
        }
    }
}

fn spawn<J: Send + 'static>(shared: &Arc<Shared<J>>, state: &mut State<J>) -> std::io::Result<()> {
    let theirs = Arc::clone(shared);
    let Bounds { name, stack_bytes, .. } = shared.bounds;
    std::thread::Builder::new().name(name.into()).stack_size(stack_bytes).spawn(move || serve(&theirs))?;
    state.threads += 1;
    Ok(())
}

fn serve<J: Send + 'static>(shared: &Arc<Shared<J>>) {
    sched::begin_as_usual();
    if let Some(mut work) = (shared.begin)() {
        loop {
            let Some(job) = shared.next() else { return };
            if !work(job) {
                break;
            }
        }
    }
    let mut state = shared.state();
    state.threads -= 1;
    // Never fewer than it takes to go on.
    if state.threads < shared.bounds.kept
        && !(state.closed && state.jobs.is_empty())
        && let Err(e) = spawn(shared, &mut state)
    {
        tracing::error!("no thread {} in place of one that ended: {e}", shared.bounds.name);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    type Job = Box<dyn FnOnce() -> bool + Send>;

    fn pool(kept: usize, most: usize) -> Pool<Job> {
        let bounds = Bounds { name: "test", kept, most, idle: Duration::from_millis(20), stack_bytes: 256 << 10 };
        Pool::new(bounds, || Some(Box::new(|job: Job| job())))
    }

    fn threads(pool: &Pool<Job>) -> usize {
        pool.0.state().threads
    }

    fn soon(what: &str, holds: impl Fn() -> bool) {
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while !holds() {
            assert!(std::time::Instant::now() < until, "{what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn it_grows_while_all_wait_and_no_further_and_shrinks_again() {
        let pool = pool(1, 3);
        let (all, ended) = mpsc::channel();
        let holds: Vec<_> = (0..5)
            .map(|n| {
                let (hold, held) = mpsc::channel::<()>();
                let all = all.clone();
                pool.submit(Box::new(move || {
                    let _ = held.recv();
                    all.send(n).unwrap();
                    true
                }));
                hold
            })
            .collect();
        soon("two jobs wait", || pool.waiting() == 2);
        assert_eq!(threads(&pool), 3);
        drop(holds);
        let mut got: Vec<i32> = ended.iter().take(5).collect();
        got.sort_unstable();
        assert_eq!(got, [0, 1, 2, 3, 4]);
        soon("one stays", || threads(&pool) == 1);
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(threads(&pool), 1);
    }

    #[test]
    fn a_thread_that_is_spoilt_is_replaced_and_a_dropped_pool_does_what_waits() {
        let pool = pool(1, 1);
        pool.start().unwrap();
        let (tell, told) = mpsc::channel();
        for goes_on in [false, false, true, true] {
            let tell = tell.clone();
            pool.submit(Box::new(move || {
                tell.send(std::thread::current().id()).unwrap();
                goes_on
            }));
        }
        drop((pool, tell));
        let by: Vec<_> = told.iter().collect();
        assert_eq!(by.len(), 4);
        assert!(by[0] != by[1] && by[1] != by[2] && by[2] == by[3]);
    }
}
