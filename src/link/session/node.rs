//! This process as a node: its workers, its sessions, and what it answers to a HELLO.
//!
//! ```text
//!   Door (accepts) ──┐                       ┌── worker 0: pairs
//!                    ├── Node: sessions ─────┤
//!   dialer threads ──┘    which pair where   └── worker 1: pairs
//! ```
//!
//! A session of role Peer is the one session between two nodes: both may dial, and of two sessions born at once the
//! one dialled by the smaller node id survives. A session of role Client is one command's.

pub(super) mod admission;
mod resume;
mod sessions;

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};

use self::sessions::{Session, State};
use super::access::Access;
use super::conn::Conn;
use super::file_links::FileLinks;
use crate::errno::{Errno, OsError, OsResult};
use crate::fdpass::Maker;
use crate::limits::{INITIAL_WINDOW, LAST_WORDS_MS, LINKS_MAX, RECORD_MAX, REOPEN_MS};
use crate::link::worker::ctx::Shared;
use crate::link::worker::helpers::Helpers;
use crate::link::worker::inbox::{Cmd, Inbox, PairRef, Pending};
use crate::link::worker::peer::{Handler, Known, Peer};
use crate::link::worker::{self, News, Worker};
use crate::ring::Wish;
use crate::wire::features;
use crate::wire::hello::{Hello, Lane, Role, Verdict};

/// What a node does with a file link.
pub trait FileServer: Send + Sync {
    /// Called on a thread of the link's own, which ends afterwards.
    fn serve(&self, conn: Conn);

    /// Whether such a peer may have a file link. Must not block.
    ///
    /// # Errors
    /// There is nothing here that it may mount; the line goes to the peer, and to the log.
    fn admits(&self, _known: &Known) -> Result<(), String> {
        Ok(())
    }
}

pub struct NodeOptions {
    /// Worker threads: one a core, unless told otherwise.
    pub workers: usize,
    /// How the workers are to reach the kernel.
    pub engine: Wish,
    /// Who may have a link.
    pub access: Access,
    pub handler: Arc<dyn Handler>,
    pub files: Option<Arc<dyn FileServer>>,
    /// How long a session whose links are lost waits for others; 0: it ends with the first.
    pub grace: Duration,
    /// What this node makes when fds cross.
    pub fds: Maker,
}

struct Inner {
    id: [u8; 16],
    access: Access,
    /// How long a session whose links are lost waits for others.
    grace: Duration,
    handler: Arc<dyn Handler>,
    name: String,
    inboxes: Vec<Arc<Inbox>>,
    files: Option<Arc<dyn FileServer>>,
    file_links: FileLinks,
    helpers: Helpers,
    state: Mutex<State>,
    changed: Condvar,
    turn: AtomicUsize,
}

/// A handle; clones are the same node.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({})", self.0.name)
    }
}

impl Node {
    /// Starts the workers.
    ///
    /// # Errors
    /// A worker's ring cannot be set up; the line says why.
    pub fn start(options: NodeOptions) -> OsResult<Self> {
        let workers = options.workers.clamp(1, LINKS_MAX);
        let inboxes = (0..workers).map(|_| worker::inbox()).collect::<OsResult<Vec<_>>>()?;
        let mut id = [0; 16];
        crate::sys::random::fill(&mut id)?;
        let name = nix::unistd::gethostname().map_or_else(|_| "?".into(), |n| n.to_string_lossy().into_owned());
        let node = Self(Arc::new(Inner {
            id,
            access: options.access.clone(),
            grace: options.grace,
            handler: Arc::clone(&options.handler),
            name,
            inboxes,
            files: options.files.clone(),
            file_links: FileLinks::default(),
            helpers: Helpers::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
            turn: AtomicUsize::new(0),
        }));
        // While threads can be had: one helper is always there from now on.
        node.0.helpers.run(|| ());
        let mut said = String::new();
        for index in 0..workers {
            let line = node.start_worker(index, &options)?;
            // As a rule all have the same one.
            if line != said {
                tracing::info!("engine: {line}");
                said = line;
            }
        }
        Ok(node)
    }

    /// Returns which engine it has.
    fn start_worker(&self, index: usize, options: &NodeOptions) -> OsResult<String> {
        let (handler, maker, wish) = (Arc::clone(&options.handler), Arc::new(options.fds.clone()), options.engine);
        let inbox = Arc::clone(&self.0.inboxes[index]);
        let (helpers, node) = (self.0.helpers.clone(), self.clone());
        let grace_us = u64::try_from(options.grace.as_micros()).unwrap_or(u64::MAX);
        let (ready, told) = mpsc::channel();
        let run = move || {
            let shared = Shared { inbox, helpers, handler, maker, grace_us };
            let on_news = Box::new(move |pair, news: News<'_>| match news {
                News::Leaving => node.on_peer_leaving(pair),
                News::Cut(lane) => node.on_cut(pair, lane),
                News::Ended(why) => node.on_pair_end(pair, why),
            });
            match Worker::new(shared, on_news, wish) {
                Ok((worker, line)) => {
                    let _ = ready.send(Ok(line));
                    if let Err(e) = worker.run() {
                        // The ring failed under us: no stream of this worker can go on, and half a node helps nobody.
                        tracing::error!("worker {index}: {e}");
                        std::process::abort();
                    }
                }
                Err(e) => drop(ready.send(Err(e))),
            }
        };
        let spawned = std::thread::Builder::new().name(format!("worker-{index}")).spawn(run);
        spawned.map_err(|e| OsError::new("start a worker", crate::errno::errno_of(&e)))?;
        told.recv().unwrap_or(Err(OsError::new("start a worker", Errno::ECANCELED)))
    }

    pub(super) fn access(&self) -> &Access {
        &self.0.access
    }

    pub fn helpers(&self) -> &Helpers {
        &self.0.helpers
    }

    pub(super) fn file_links(&self) -> &FileLinks {
        &self.0.file_links
    }

    /// Everybody who has a session, and where it is.
    pub(super) fn sessions_now(&self) -> Vec<(Arc<Peer>, Vec<PairRef>)> {
        let pairs = |s: &Session| s.pairs.iter().flatten().cloned().collect();
        self.state().sessions.iter().map(|s| (Arc::clone(&s.peer), pairs(s))).collect()
    }

    pub(super) fn files(&self) -> Option<Arc<dyn FileServer>> {
        self.0.files.clone()
    }

    fn workers(&self) -> u16 {
        u16::try_from(self.0.inboxes.len()).expect("at most LINKS_MAX")
    }

    /// The optional behaviour that this node wants.
    fn features(&self) -> u64 {
        if self.0.grace.is_zero() { features::KNOWN & !features::RESUME } else { features::KNOWN }
    }

    /// This node's HELLO.
    pub fn hello(&self, role: Role, lane: Lane, session: u64, index: u16) -> Hello {
        Hello {
            role,
            lane,
            verdict: Verdict::Ok,
            node: self.0.id,
            session,
            index,
            workers: self.workers(),
            initial_window: INITIAL_WINDOW,
            record_max: RECORD_MAX,
            features: self.features(),
            name: self.0.name.clone(),
            reason: String::new(),
            voucher: Vec::new(),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().expect("no holder panics: panic is abort")
    }

    /// Waits until no session with a peer is up, or the node leaves. Returns false when it leaves.
    pub(super) fn wait_without_peer(&self) -> bool {
        let mut state = self.state();
        while !state.leaving && state.has_expected() {
            state = self.0.changed.wait(state).expect("no holder panics: panic is abort");
        }
        !state.leaving
    }

    /// The peers with which a session takes new streams.
    pub fn peers(&self) -> Vec<Arc<Peer>> {
        self.state().peers()
    }

    /// Waits until they are others than these. `None`: the node leaves.
    pub fn wait_for_other_peers(&self, than: &[Arc<Peer>]) -> Option<Vec<Arc<Peer>>> {
        let same = |s: &mut State| !s.leaving && s.peers() == than;
        let state = self.0.changed.wait_while(self.state(), same).expect("no holder panics: panic is abort");
        (!state.leaving).then(|| state.peers())
    }

    /// Waits for `time`, or until the node leaves.
    pub(super) fn pause(&self, time: Duration) {
        let state = self.state();
        let leaving = |s: &mut State| !s.leaving;
        drop(self.0.changed.wait_timeout_while(state, time, leaving).expect("no holder panics: panic is abort"));
    }

    pub fn is_leaving(&self) -> bool {
        self.state().leaving
    }

    // ---- streams -------------------------------------------------------------------------------------------------

    /// Opens a stream to the other node and waits for its verdict.
    ///
    /// # Errors
    /// ENOTCONN: no session is up. ETIMEDOUT: no verdict by `deadline` (the stream is given up). Else the peer's errno.
    pub fn open(&self, service: u16, request: Vec<u8>, deadline: Instant) -> Result<Pending, Errno> {
        let patience = deadline.min(Instant::now() + Duration::from_millis(REOPEN_MS));
        loop {
            // ECONNABORTED: the session takes no new streams, or has just ended.
            match self.open_once(service, request.clone(), deadline) {
                Err(Errno::ECONNABORTED) if Instant::now() < patience => std::thread::sleep(Duration::from_millis(2)),
                Err(Errno::ECONNABORTED) => return Err(Errno::ENOTCONN),
                verdict => return verdict,
            }
        }
    }

    fn open_once(&self, service: u16, request: Vec<u8>, deadline: Instant) -> Result<Pending, Errno> {
        let at = self.next_pair()?;
        let (tell, told) = mpsc::sync_channel(1);
        // A verdict that comes too late finds nobody and is dropped, which resets the stream.
        let verdict = Box::new(move |v| drop(tell.send(v)));
        at.inbox.push(Cmd::Open { pair: at.pair, service, request, verdict });
        match told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(verdict) => verdict,
            Err(_) => Err(Errno::ETIMEDOUT),
        }
    }

    /// The next link pair in turn of the session that takes new streams. ECONNABORTED: there was one a moment ago.
    fn next_pair(&self) -> Result<PairRef, Errno> {
        let state = self.state();
        let session = match state.sessions.iter().find(|s| s.dialled_client()) {
            Some(command) => Some(command),
            None => state.expected.one_of(state.sessions.iter().filter(|s| s.takes_streams()), |s| &s.peer),
        };
        let Some(session) = session else {
            return Err(if state.is_between_sessions() { Errno::ECONNABORTED } else { Errno::ENOTCONN });
        };
        let pairs: Vec<&PairRef> = session.pairs.iter().flatten().collect();
        let turn = self.0.turn.fetch_add(1, Ordering::Relaxed);
        pairs.get(turn % pairs.len().max(1)).map(|p| (*p).clone()).ok_or(Errno::ENOTCONN)
    }

    /// No new streams; waits until the old ones have finished, at most for `patience`. Returns whether they have.
    pub fn leave(&self, patience: Duration) -> bool {
        let mut state = self.state();
        state.leaving = true;
        self.0.changed.notify_all();
        state.sessions.iter_mut().for_each(Session::retire);
        let some = |s: &mut State| !s.sessions.is_empty();
        let wait = |state, time| self.0.changed.wait_timeout_while(state, time, some);
        let (state, out) = wait(state, patience).expect("no holder panics: panic is abort");
        // The peers of those that are left must not wait for another link.
        for pair in state.sessions.iter().flat_map(|s| s.pairs.iter().flatten()) {
            pair.inbox.push(Cmd::End { pair: pair.pair, reason: "this node ends".into() });
        }
        drop(wait(state, Duration::from_millis(LAST_WORDS_MS)).expect("no holder panics: panic is abort"));
        for inbox in &self.0.inboxes {
            inbox.push(Cmd::Stop);
        }
        !out.timed_out()
    }
}
