//! Threads for calls that may block: open, connect, fork. A worker hands a job over and hears of it by its inbox.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::limits::{HELPERS_IDLE_MS, HELPERS_MAX};
use crate::sys::sched;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    /// At most one job for each stream, and streams are bounded.
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

/// Grows to HELPERS_MAX threads while jobs wait, and shrinks again.
#[derive(Clone, Default)]
pub struct Helpers(Arc<(Mutex<State>, Condvar)>);

impl std::fmt::Debug for Helpers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Helpers")
    }
}

impl Helpers {
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let (lock, wake) = &*self.0;
        let mut state = lock.lock().expect("no job panics: panic is abort");
        state.jobs.push_back(Box::new(job));
        if state.jobs.len() > state.idle && state.threads < HELPERS_MAX {
            let this = self.clone();
            match std::thread::Builder::new().name("helper".into()).spawn(move || this.serve()) {
                Ok(_) => state.threads += 1,
                // The job waits for a thread that is there: the first one never ends.
                Err(e) => tracing::warn!("no further helper: {e}"),
            }
        }
        wake.notify_one();
    }

    fn serve(&self) {
        sched::begin_as_usual();
        let (lock, wake) = &*self.0;
        let mut state = lock.lock().expect("no job panics: panic is abort");
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = lock.lock().expect("no job panics: panic is abort");
                continue;
            }
            state.idle += 1;
            let patience = Duration::from_millis(HELPERS_IDLE_MS);
            let (guard, out) = wake.wait_timeout(state, patience).expect("no job panics: panic is abort");
            state = guard;
            state.idle -= 1;
            if out.timed_out() && state.jobs.is_empty() && state.threads > 1 {
                state.threads -= 1;
                return;
            }
        }
    }
}
