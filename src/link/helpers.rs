//! Threads for calls that may block: open, connect, fork. A worker hands a job over and hears of it by its inbox.

use std::sync::Arc;
use std::time::Duration;

use crate::limits::{HELPERS_IDLE_MS, HELPERS_MAX, HELPERS_STACK_BYTES};
use crate::sys::pool::{Bounds, Job, Pool};

/// At most one job for each stream waits here, and streams are bounded.
#[derive(Debug, Clone)]
pub struct Helpers(Arc<Pool<Job>>);

impl Default for Helpers {
    fn default() -> Self {
        let idle = Duration::from_millis(HELPERS_IDLE_MS);
        let bounds = Bounds { name: "helper", kept: 1, most: HELPERS_MAX, idle, stack_bytes: HELPERS_STACK_BYTES };
        Self(Arc::new(Pool::of_jobs(bounds)))
    }
}

impl Helpers {
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        self.0.submit(Box::new(job));
    }
}
