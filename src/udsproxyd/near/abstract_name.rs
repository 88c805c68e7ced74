//! Abstract names: they live in the caller's network namespace, where no chroot helps.
//!
//! The listener is bound under the asked name itself, in that namespace, for as long as the connect takes, one at a time
//! in the whole daemon. Meanwhile another program of that namespace could connect to it; such a stranger is told apart
//! by SO_PEERCRED (the caller's socket is connected by this process) and closed: for some 20 us it sees a connection
//! that ends where it would have seen ECONNREFUSED.
//!
//! A datagram socket would keep the name for as long as the connection lives, so it gets a private path instead, and
//! getpeername shows `@name` as a path.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard};

use nix::sched::{CloneFlags, setns};

use super::private::Private;
use crate::errno::{Errno, OsResult, Step};
use crate::sys::peer;
use crate::sys::unix::{self, NAME_MAX, SocketKind};

/// The daemon's own namespace, and the turn that every abstract connect waits for.
#[derive(Debug)]
pub(super) struct Names {
    own: OwnedFd,
    turn: Mutex<()>,
}

/// Strangers that may wait in front of the caller's own connection.
const BACKLOG: i32 = 4096;

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
        private: &Private,
    ) -> Result<Option<OwnedFd>, Errno> {
        if kind == SocketKind::Datagram {
            return private.join(local, kind, &as_path(name), None).map(Some);
        }
        let _turn: MutexGuard<'_, ()> = self.turn.lock().expect("a panic ends the process");
        let listener = self.listener_beside(local, kind)?;
        match unix::bind(listener.as_fd(), name) {
            Err(Errno::EADDRINUSE) => return Ok(None),
            other => other?,
        }
        unix::listen(listener.as_fd(), BACKLOG)?;
        unix::connect(local, name)?;
        let own_pid = std::process::id().cast_signed();
        loop {
            let accepted = unix::accept(listener.as_fd())?;
            if peer::peer(accepted.as_fd())?.pid == own_pid {
                return Ok(Some(accepted));
            }
        }
    }

    /// A socket in the network namespace of `local`.
    fn listener_beside(&self, local: BorrowedFd<'_>, kind: SocketKind) -> Result<OwnedFd, Errno> {
        let there = unix::network_of(local)?;
        if same(&there, &self.own)? {
            return unix::socket(kind, true);
        }
        setns(&there, CloneFlags::CLONE_NEWNET)?;
        let socket = unix::socket(kind, true);
        // Back at once; a thread that stays there would make later sockets in the wrong place, so that is fatal.
        setns(&self.own, CloneFlags::CLONE_NEWNET).expect("the daemon's own network namespace can be entered");
        socket
    }
}

fn same(a: &OwnedFd, b: &OwnedFd) -> Result<bool, Errno> {
    let id = |fd: &OwnedFd| -> std::io::Result<(u64, u64)> {
        let meta = std::fs::File::from(fd.try_clone()?).metadata()?;
        Ok((meta.dev(), meta.ino()))
    };
    let ids = id(a).and_then(|a| id(b).map(|b| a == b));
    ids.map_err(|e| crate::errno::errno_of(&e))
}

fn as_path(name: &[u8]) -> Vec<u8> {
    let plain = name.iter().skip(1).map(|b| if matches!(b, 0 | b'/') { b'_' } else { *b });
    [b'@'].into_iter().chain(plain).take(NAME_MAX - 1).collect()
}
