//! Abstract names: they live in the caller's network namespace, where no chroot helps.
//!
//! The listener is bound under the asked name itself, in that namespace, for the few microseconds that the connect takes,
//! one at a time in the whole daemon. Meanwhile others of that namespace may connect to it: callers of the same burst,
//! whose own `connect` now finds a local listener. They are told apart by SO_PEERCRED (the caller's socket is connected
//! by this process) and get what they wanted too, a connection to the far machine, as themselves.
//!
//! A datagram socket would keep the name for as long as the connection lives, so it gets a private path instead
//! (`as_path`): getpeername, and the sender of an answer, show `@name` as a path.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{Shutdown, shutdown};

use super::binder::listen_as;
use crate::errno::{Errno, OsResult, Step};
use crate::sys::peer;
use crate::sys::thread_identity::ThreadIdentity;
use crate::sys::unix::{self, NAME_MAX, SocketKind};
use crate::udsproxyd::wire::Listener;

/// The daemon's own namespace, and the turn that every abstract connect waits for.
#[derive(Debug)]
pub(super) struct Names {
    own: OwnedFd,
    turn: Mutex<()>,
}

/// Others that may come in front of the caller's own connection.
const BACKLOG: i32 = 4096;

/// What a connect to an abstract name has given.
#[derive(Debug)]
pub(super) struct Joined {
    /// The other end of the caller's socket.
    pub(super) own: OwnedFd,
    /// Connections of others that came meanwhile.
    pub(super) others: Vec<OwnedFd>,
}

impl Names {
    pub(super) fn new() -> OsResult<Self> {
        let any = unix::socket(SocketKind::Stream, false).step("socket")?;
        Ok(Self { own: unix::network_of(any.as_fd()).step("SIOCGSKNS")?, turn: Mutex::new(()) })
    }

    /// As `Private::join`, for a name that begins with NUL. `Ok(None)`: the name has a listener here by now.
    pub(super) fn join(
        &self,
        local: BorrowedFd<'_>,
        kind: SocketKind,
        name: &[u8],
        shown: Option<Listener>,
    ) -> Result<Option<Joined>, Errno> {
        let _turn: MutexGuard<'_, ()> = self.turn.lock().expect("a panic ends the process");
        let listener = self.beside(local, || unix::socket(kind, true))?;
        match unix::bind(listener.as_fd(), name) {
            Err(Errno::EADDRINUSE) => return Ok(None),
            other => other?,
        }
        listen_as(&ThreadIdentity::of_this_thread()?, shown, || unix::listen(listener.as_fd(), BACKLOG))?;
        unix::connect(local, name)?;
        let own_pid = std::process::id().cast_signed();
        // From here on others are refused, while those in the backlog can still be had.
        shutdown(listener.as_raw_fd(), Shutdown::Both)?;
        let (mut own, mut others) = (None, Vec::new());
        while let Ok(accepted) = unix::accept(listener.as_fd()) {
            if peer::peer(accepted.as_fd())?.pid == own_pid { own = Some(accepted) } else { others.push(accepted) }
        }
        // The caller's socket is connected; if its other end can't be had (EMFILE), it is connected to nothing.
        own.map(|own| Some(Joined { own, others })).ok_or(Errno::ECONNRESET)
    }

    /// What `make` makes in the network namespace of `local`.
    pub(super) fn beside<T>(&self, local: BorrowedFd<'_>, make: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        let there = unix::network_of(local)?;
        if same(&there, &self.own)? {
            return make();
        }
        setns(&there, CloneFlags::CLONE_NEWNET)?;
        let made = make();
        // Back at once; a thread that stays there would make later sockets in the wrong place, so that is fatal.
        setns(&self.own, CloneFlags::CLONE_NEWNET).expect("the daemon's own network namespace can be entered");
        made
    }
}

fn same(a: &OwnedFd, b: &OwnedFd) -> Result<bool, Errno> {
    Ok(network_id(a)? == network_id(b)?)
}

/// Tells network namespaces apart, while somebody holds them.
pub(super) fn network_id(network: &OwnedFd) -> Result<(u64, u64), Errno> {
    let stat = nix::sys::stat::fstat(network)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// The path that stands for an abstract name.
pub(super) fn as_path(name: &[u8]) -> Vec<u8> {
    let plain = name.iter().skip(1).map(|b| if matches!(b, 0 | b'/') { b'_' } else { *b });
    [b'@'].into_iter().chain(plain).take(NAME_MAX - 1).collect()
}
