//! One connect, done with the caller's identity.
//!
//! The socket is opened by path first (O_PATH), judged by the path that it really has, and then connected through
//! /proc/self/fd: so the object that was judged is the one connected, symbolic links or not, and a path may be longer
//! than the 108 bytes of an address.

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
        let outcome = thread.act_as(&request.caller, || attempt.run());
        if let Err(errno) = outcome.result {
            warn!(uid = request.caller.uid, gid = request.caller.gid, %errno, "refused: can't assume the caller's identity");
        }
        Outcome { result: outcome.result.unwrap_or(Err(Errno::EPERM)), restored: outcome.restored }
    }
}

struct Attempt<'a> {
    connector: &'a Connector,
    request: &'a ConnectRequest,
    deadline: Instant,
    cancel: &'a Cancel,
    asker: &'a Asker,
}

impl Attempt<'_> {
    fn run(&self) -> Result<OwnedFd, Errno> {
        if self.cancel.is_cancelled() {
            return Err(Errno::ECANCELED);
        }
        let name = &self.request.name[..];
        if name.first() == Some(&0) {
            self.judge(name)?;
            return self.connect_to(name);
        }
        let path = std::ffi::OsStr::from_bytes(name);
        let object = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        let handle = format!("/proc/self/fd/{}", object.as_raw_fd());
        self.judge(&readlink(handle.as_str())?.into_vec())?;
        self.connect_to(handle.as_bytes())
    }

    fn judge(&self, name: &[u8]) -> Result<(), Errno> {
        // First who asks, then whether anybody may.
        (self.asker.rules)(name).map_err(|_| Errno::EACCES)?;
        let policy = Arc::clone(&self.connector.policy.read().expect("a panic ends the process"));
        if policy.serves(name) {
            return Ok(());
        }
        warn!(
            uid = self.request.caller.uid,
            name = printable(name),
            "refused: by a rule of node.toml, or because it is this machine's own"
        );
        Err(Errno::EACCES)
    }

    fn connect_to(&self, name: &[u8]) -> Result<OwnedFd, Errno> {
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
