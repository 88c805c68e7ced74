//! One connect, done with the caller's identity.
//!
//! ```text
//!   as the caller: open(O_PATH) ──▶ as this daemon: judge ──▶ as the caller: connect
//! ```
//!
//! The socket is opened by path first, judged by the path that it really has, and then connected through /proc/self/fd:
//! so the object that was judged is the one connected, symbolic links or not, and a path may be longer than the 108 bytes
//! of an address. The daemon itself judges, because it follows the rules' symbolic links where the caller may not look.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl, open, readlink};
use nix::sys::stat::Mode;
use socket2::SockRef;
use tracing::warn;

use super::{Asker, Cancel};
use crate::auth::PublicKey;
use crate::errno::{Errno, OsResult, Step};
use crate::limits::{BACKLOG_LOOK_MS, BACKLOG_WAITERS_A_KEY, BACKLOG_WAITERS_MAX};
use crate::sys::quota::{Limits, Quota};
use crate::sys::thread_identity::{Outcome, ThreadIdentity};
use crate::sys::unix;
use crate::udsproxyd::policy::Policy;
use crate::udsproxyd::wire::{ConnectRequest, printable};

/// What all threads share.
pub(super) struct Connector {
    /// Locked for a clone or a swap alone: a rule may look at a file system that does not answer.
    policy: RwLock<Arc<Policy>>,
    /// Connects that wait for a backlog now.
    waiting: Quota<Option<PublicKey>>,
}

impl Connector {
    pub(super) fn new(policy: Policy) -> OsResult<Self> {
        // Without /proc no socket could be reached: said once at start, not at every connect.
        open("/proc/self/fd", OFlag::O_PATH, Mode::empty()).map(drop).step_on("open", "/proc/self/fd")?;
        let waiting = Quota::new(Limits { each: BACKLOG_WAITERS_A_KEY, all: BACKLOG_WAITERS_MAX });
        Ok(Self { policy: RwLock::new(Arc::new(policy)), waiting })
    }

    pub(super) fn set_policy(&self, policy: Policy) {
        *self.policy.write().expect("a panic ends the process") = Arc::new(policy);
    }

    /// The whole job on the calling thread. `restored` in the outcome says whether that thread may go on.
    pub(super) fn connect(
        &self,
        thread: &ThreadIdentity,
        request: &ConnectRequest,
        deadline: Instant,
        cancel: &Cancel,
        asker: &Asker,
    ) -> Outcome<OwnedFd> {
        let attempt = Attempt { connector: self, request, deadline, cancel, asker };
        let opened = as_caller(thread, request, || attempt.open());
        let judged = opened.result.and_then(|found| attempt.judge(&found.judged).map(|()| found));
        match judged {
            Ok(found) if opened.restored => as_caller(thread, request, || attempt.connect_to(&found)),
            Ok(_) => Outcome { result: Err(Errno::EPERM), restored: false },
            Err(errno) => Outcome { result: Err(errno), restored: opened.restored },
        }
    }
}

fn as_caller<T>(
    thread: &ThreadIdentity,
    request: &ConnectRequest,
    work: impl FnOnce() -> Result<T, Errno>,
) -> Outcome<T> {
    let outcome = thread.act_as(&request.caller, work);
    if let Err(errno) = outcome.result {
        warn!(caller = request.caller.uid, gid = request.caller.gid, %errno, "refused: can't assume the caller's identity");
    }
    Outcome { result: outcome.result.unwrap_or(Err(Errno::EPERM)), restored: outcome.restored }
}

/// What a name leads to.
struct Found {
    /// The kernel's name for it.
    judged: Vec<u8>,
    /// What to connect to.
    address: Vec<u8>,
    /// The inode, which `address` names as long as this is open; of an abstract name there is none.
    _object: Option<OwnedFd>,
}

struct Attempt<'a> {
    connector: &'a Connector,
    request: &'a ConnectRequest,
    deadline: Instant,
    cancel: &'a Cancel,
    asker: &'a Asker,
}

impl Attempt<'_> {
    fn open(&self) -> Result<Found, Errno> {
        if self.cancel.is_cancelled() {
            return Err(Errno::ECANCELED);
        }
        let name = &self.request.name[..];
        if name.first() == Some(&0) {
            return Ok(Found { judged: name.to_vec(), address: name.to_vec(), _object: None });
        }
        let path = std::ffi::OsStr::from_bytes(name);
        let object = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        let handle = format!("/proc/self/fd/{}", object.as_raw_fd());
        let judged = readlink(handle.as_str())?.into_vec();
        Ok(Found { judged, address: handle.into_bytes(), _object: Some(object) })
    }

    fn judge(&self, name: &[u8]) -> Result<(), Errno> {
        // First who asks, then whether anybody may.
        (self.asker.rules)(name).map_err(|_| Errno::EACCES)?;
        // Not under the lock: the rules' symbolic links may lie on a file system that does not answer.
        let policy = Arc::clone(&self.connector.policy.read().expect("a panic ends the process"));
        if policy.serves(name) {
            return Ok(());
        }
        warn!(
            caller = self.request.caller.uid,
            name = printable(name),
            "refused: by a rule of node.toml, or because it is this machine's own"
        );
        Err(Errno::EACCES)
    }

    fn connect_to(&self, found: &Found) -> Result<OwnedFd, Errno> {
        let name = &found.address[..];
        let socket = unix::socket(self.request.kind, true)?;
        if self.request.named {
            unix::autobind(socket.as_fd())?;
        }
        match unix::connect(socket.as_fd(), name) {
            Err(Errno::EAGAIN) if !self.request.nonblocking => self.wait_for_room(&socket, name)?,
            other => other?,
        }
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::empty()))?;
        Ok(socket)
    }

    /// A blocking connect, in slices short enough to notice a cancel.
    fn wait_for_room(&self, socket: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
        let _place = self.connector.waiting.take(self.asker.key).map_err(|_| Errno::EAGAIN)?;
        fcntl(socket, FcntlArg::F_SETFL(OFlag::empty()))?;
        let timeout = |slice| SockRef::from(socket).set_write_timeout(slice).map_err(|e| crate::errno::errno_of(&e));
        timeout(Some(Duration::from_millis(BACKLOG_LOOK_MS)))?;
        loop {
            if self.cancel.is_cancelled() {
                return Err(Errno::ECANCELED);
            }
            if Instant::now() >= self.deadline {
                return Err(Errno::ETIMEDOUT);
            }
            match unix::connect(socket.as_fd(), name) {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(errno),
                Ok(()) => return timeout(None),
            }
        }
    }
}
