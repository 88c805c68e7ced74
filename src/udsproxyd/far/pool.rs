//! Threads that take jobs from one queue. A few stay; more come while those are busy, and end when idle.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{error, warn};

use super::connect::Connector;
use super::{Cancel, Done, PeerRules};
use crate::errno::{Errno, OsResult, Step};
use crate::limits::{ASK_IDLE_MS, ASK_STACK_BYTES, BACKLOG_WAITERS_MAX, IDENTITY_QUEUE_MAX, IDENTITY_THREADS};
use crate::sys::sched;
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
    shared: Arc<Shared>,
}

struct Shared {
    connector: Connector,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a panic ends the process")
    }
}

impl Pool {
    pub(super) fn start(connector: Connector) -> OsResult<Self> {
        let shared = Arc::new(Shared { connector, state: Mutex::default(), work: Condvar::new() });
        for _ in 0..IDENTITY_THREADS {
            spawn(&shared, &mut shared.state()).step("start a thread")?;
        }
        Ok(Self { shared })
    }

    pub(super) fn connector(&self) -> &Connector {
        &self.shared.connector
    }

    pub(super) fn submit(&self, job: Job) {
        let mut state = self.shared.state();
        if state.jobs.len() >= IDENTITY_QUEUE_MAX {
            drop(state);
            (job.done)(Err(Errno::EAGAIN));
            return;
        }
        state.jobs.push_back(job);
        if state.idle < state.jobs.len()
            && state.threads < THREADS_MAX
            && let Err(e) = spawn(&self.shared, &mut state)
        {
            warn!("a thread for a connect could not be started: {e}; it waits for another");
        }
        drop(state);
        self.shared.work.notify_one();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.work.notify_all();
    }
}

fn spawn(shared: &Arc<Shared>, state: &mut State) -> std::io::Result<()> {
    let theirs = shared.clone();
    thread::Builder::new().name("uds-far".into()).stack_size(ASK_STACK_BYTES).spawn(move || serve(&theirs))?;
    state.threads += 1;
    Ok(())
}

fn serve(shared: &Arc<Shared>) {
    sched::begin_as_usual();
    match ThreadIdentity::of_this_thread() {
        Ok(thread) => while serve_one(shared, &thread) {},
        Err(e) => error!("a thread can't read its own identity: {e}"),
    }
    let mut state = shared.state();
    state.threads -= 1;
    // Never fewer than it takes to go on: this thread may have ended because its identity was lost.
    if state.threads < IDENTITY_THREADS
        && !state.closed
        && let Err(e) = spawn(shared, &mut state)
    {
        error!("no thread in place of one that ended: {e}");
    }
}

/// Takes a job and does it; `false` when the thread is to end.
fn serve_one(shared: &Shared, thread: &ThreadIdentity) -> bool {
    let Some(Job { request, deadline, cancel, rules, done }) = next(shared) else { return false };
    let outcome = shared.connector.connect(thread, &request, deadline, &cancel, &rules);
    done(outcome.result);
    if !outcome.restored {
        error!("a thread could not return to its own identity and ends");
    }
    outcome.restored
}

/// The next job, or `None` when there has been none for long and enough others stay, or when the pool is closed.
fn next(shared: &Shared) -> Option<Job> {
    let mut state = shared.state();
    loop {
        if let Some(job) = state.jobs.pop_front() {
            return Some(job);
        }
        if state.closed {
            return None;
        }
        state.idle += 1;
        let (back, wait) =
            shared.work.wait_timeout(state, Duration::from_millis(ASK_IDLE_MS)).expect("a panic ends the process");
        state = back;
        state.idle -= 1;
        if wait.timed_out() && state.jobs.is_empty() && state.threads > IDENTITY_THREADS {
            return None;
        }
    }
}
