//! Threads that connect as callers. A few stay; more come while those wait for backlogs, and end when idle.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::error;

use super::connect::Connector;
use super::{Cancel, Done, PeerRules};
use crate::errno::{Errno, OsResult, Step};
use crate::limits::{ASK_IDLE_MS, ASK_STACK_BYTES, BACKLOG_WAITERS_MAX, IDENTITY_QUEUE_MAX, IDENTITY_THREADS};
use crate::sys::pool::{self, Bounds, Work};
use crate::sys::thread_identity::ThreadIdentity;
use crate::udsproxyd::wire::ConnectRequest;

/// All waiters may be waiting, and as many again are there for the rest.
const THREADS_MAX: usize = 2 * BACKLOG_WAITERS_MAX;

pub(super) struct Job {
    pub(super) request: ConnectRequest,
    pub(super) deadline: Instant,
    pub(super) cancel: Cancel,
    pub(super) rules: PeerRules,
    pub(super) done: Done,
}

pub(super) struct Pool {
    connector: Arc<Connector>,
    threads: pool::Pool<Job>,
}

impl Pool {
    pub(super) fn start(connector: Connector) -> OsResult<Self> {
        let connector = Arc::new(connector);
        let bounds = Bounds {
            name: "uds-far",
            kept: IDENTITY_THREADS,
            most: THREADS_MAX,
            idle: Duration::from_millis(ASK_IDLE_MS),
            stack_bytes: ASK_STACK_BYTES,
        };
        let theirs = Arc::clone(&connector);
        let threads = pool::Pool::new(bounds, move || begin(Arc::clone(&theirs)));
        threads.start().step("start a thread")?;
        Ok(Self { connector, threads })
    }

    pub(super) fn connector(&self) -> &Connector {
        &self.connector
    }

    pub(super) fn submit(&self, job: Job) {
        if self.threads.waiting() >= IDENTITY_QUEUE_MAX {
            return (job.done)(Err(Errno::EAGAIN));
        }
        self.threads.submit(job);
    }
}

/// A thread knows its own identity, and ends when it can't return to that.
fn begin(connector: Arc<Connector>) -> Option<Work<Job>> {
    let thread =
        ThreadIdentity::of_this_thread().inspect_err(|e| error!("a thread can't read its own identity: {e}")).ok()?;
    Some(Box::new(move |Job { request, deadline, cancel, rules, done }| {
        let outcome = connector.connect(&thread, &request, deadline, &cancel, &rules);
        done(outcome.result);
        if !outcome.restored {
            error!("a thread could not return to its own identity and ends");
        }
        outcome.restored
    }))
}
