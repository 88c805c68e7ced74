//! Threads that connect as callers. A few stay; more come while those wait for backlogs, and end when idle.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::error;

use super::connect::Connector;
use super::{Asker, Cancel, Done};
use crate::auth::PublicKey;
use crate::errno::{Errno, OsResult, Step};
use crate::limits::{
    ASK_IDLE_MS, ASK_STACK_BYTES, CONNECTS_A_KEY, CONNECTS_WAITING_A_KEY, IDENTITY_THREADS, IDENTITY_THREADS_MAX,
};
use crate::sys::fair::{Fair, Share, Turn};
use crate::sys::pool::{self, Bounds, Work};
use crate::sys::thread_identity::ThreadIdentity;
use crate::udsproxyd::wire::ConnectRequest;

pub(super) struct Job {
    pub(super) request: ConnectRequest,
    pub(super) deadline: Instant,
    pub(super) cancel: Cancel,
    pub(super) asker: Asker,
    pub(super) done: Done,
}

#[derive(Clone)]
pub(super) struct Pool {
    connector: Arc<Connector>,
    threads: Arc<pool::Pool<Job>>,
    turns: Arc<Fair<Option<PublicKey>, Job>>,
}

impl Pool {
    pub(super) fn start(connector: Connector) -> OsResult<Self> {
        let connector = Arc::new(connector);
        let bounds = Bounds {
            name: "uds-far",
            kept: IDENTITY_THREADS,
            most: IDENTITY_THREADS_MAX,
            idle: Duration::from_millis(ASK_IDLE_MS),
            stack_bytes: ASK_STACK_BYTES,
        };
        let theirs = Arc::clone(&connector);
        let threads = pool::Pool::new(bounds, move || begin(Arc::clone(&theirs)));
        threads.start().step("start a thread")?;
        let turns = Arc::new(Fair::new(Share { each: CONNECTS_A_KEY, waiting: CONNECTS_WAITING_A_KEY }));
        Ok(Self { connector, threads: Arc::new(threads), turns })
    }

    pub(super) fn connector(&self) -> &Connector {
        &self.connector
    }

    pub(super) fn submit(&self, job: Job) {
        match self.turns.enter(job.asker.key, job) {
            Turn::Now(job) => drop(self.threads.submit(self.counted(job))),
            Turn::Later => {}
            Turn::Full(job) => (job.done)(Err(Errno::EAGAIN)),
        }
    }

    /// The job, and behind it the next one of the same peer.
    fn counted(&self, job: Job) -> Job {
        let (pool, key, done) = (self.clone(), job.asker.key, job.done);
        let then = Box::new(move |result| {
            done(result);
            if let Some(next) = pool.turns.leave(&key) {
                pool.threads.submit(pool.counted(next));
            }
        });
        Job { done: then, ..job }
    }
}

/// A thread knows its own identity, and ends when it can't return to that.
fn begin(connector: Arc<Connector>) -> Option<Work<Job>> {
    let thread =
        ThreadIdentity::of_this_thread().inspect_err(|e| error!("a thread can't read its own identity: {e}")).ok()?;
    Some(Box::new(move |Job { request, deadline, cancel, asker, done }| {
        let outcome = connector.connect(&thread, &request, deadline, &cancel, &asker);
        done(outcome.result);
        if !outcome.restored {
            error!("a thread could not return to its own identity and ends");
        }
        outcome.restored
    }))
}
