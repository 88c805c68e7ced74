//! Threads for calls that may block: open, connect, fork. A worker hands a job over and hears of it by its inbox.

use std::sync::Arc;
use std::time::Duration;

use crate::limits::{HELPERS_IDLE_MS, HELPERS_MAX, HELPERS_STACK_BYTES};
use crate::sys::pool::{Bounds, Job, Pool};

/// At most one job for each stream waits here, and streams are bounded.
#[derive(Debug, Clone)]
pub struct Helpers(Run);

#[derive(Clone)]
enum Run {
    Threads(Arc<Pool<Job>>),
    /// Nobody runs them but the simulation, when it likes.
    #[cfg(test)]
    Later(Arc<std::sync::Mutex<Vec<Job>>>),
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Run")
    }
}

impl Default for Helpers {
    fn default() -> Self {
        let idle = Duration::from_millis(HELPERS_IDLE_MS);
        let bounds = Bounds { name: "helper", kept: 1, most: HELPERS_MAX, idle, stack_bytes: HELPERS_STACK_BYTES };
        Self(Run::Threads(Arc::new(Pool::of_jobs(bounds))))
    }
}

impl Helpers {
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        match &self.0 {
            Run::Threads(pool) => drop(pool.submit(Box::new(job))),
            #[cfg(test)]
            Run::Later(jobs) => jobs.lock().expect("no job panics").push(Box::new(job)),
        }
    }

    #[cfg(test)]
    pub(in crate::link) fn later(jobs: &Arc<std::sync::Mutex<Vec<Job>>>) -> Self {
        Self(Run::Later(Arc::clone(jobs)))
    }
}
