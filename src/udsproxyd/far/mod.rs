//! The far side: connects to this machine's sockets as the caller on the other machine, or not at all.
//!
//! ```text
//!   start(request) ──▶ queue ──▶ a thread of the pool, as the caller: open, judge, connect ──▶ done(fd or errno)
//! ```
//!
//! Threads are the pool's own, because a thread whose return to its own identity failed must end and never serve
//! anybody again. A connect that waits for room in a backlog keeps its thread; the pool grows meanwhile, up to a bound. Each
//! peer has a share of the threads, and its further connects wait for those alone.
//!
//! Never as root for somebody who is not: an identity that can't be assumed is EPERM.

mod connect;
mod pool;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use crate::auth::PublicKey;
use crate::errno::{Errno, OsResult};
use crate::udsproxyd::policy::Policy;
use crate::udsproxyd::wire::ConnectRequest;

/// Ends a connect that waits; harmless when it has ended.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Called once, on a thread of the pool, with the connected socket (blocking, close-on-exec) or the exact errno.
type Done = Box<dyn FnOnce(Result<OwnedFd, Errno>) + Send>;

/// What the peer's own rules say of a socket, by its path as the kernel knows it or its abstract name (with the NUL): by
/// which line it may, or why not.
pub type PeerRules = Box<dyn Fn(&[u8]) -> Result<String, String> + Send>;

/// Which peer's program asks, and what that peer's rules say.
pub struct Asker {
    /// None in plaintext, and for this machine itself.
    pub key: Option<PublicKey>,
    pub rules: PeerRules,
}

pub struct Far {
    pool: pool::Pool,
}

impl Far {
    /// Starts the first threads.
    pub fn new(policy: Policy) -> OsResult<Self> {
        Ok(Self { pool: pool::Pool::start(connect::Connector::new(policy)?)? })
    }

    /// For connects that begin from now on.
    pub fn set_policy(&self, policy: Policy) {
        self.pool.connector().set_policy(policy);
    }

    /// Connects without keeping the calling thread. After `deadline` a waiting connect is ETIMEDOUT, after a cancel
    /// ECANCELED; with too many connects of the asking peer under way, EAGAIN.
    pub fn start(
        &self,
        request: ConnectRequest,
        deadline: Instant,
        cancel: Cancel,
        asker: Asker,
        done: impl FnOnce(Result<OwnedFd, Errno>) + Send + 'static,
    ) {
        self.pool.submit(pool::Job { request, deadline, cancel, asker, done: Box::new(done) });
    }

    /// Connects, and waits for it: not for a worker's thread.
    pub fn connect_as(&self, request: &ConnectRequest, deadline: Instant) -> Result<OwnedFd, Errno> {
        let (verdict, comes) = mpsc::sync_channel(1);
        let itself = Asker { key: None, rules: Box::new(|_| Ok("asked here".into())) };
        self.start(request.clone(), deadline, Cancel::default(), itself, move |result| {
            // Nobody waits any more: the socket closes here.
            let _ = verdict.send(result);
        });
        comes.recv().unwrap_or(Err(Errno::ECANCELED))
    }
}
