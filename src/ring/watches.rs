//! What a ring cannot wait for: an epoll instance that it watches.
//!
//! ```text
//!   a peer gone altogether ──▶ epoll: EPOLLONESHOT and nothing else ◀── one POLL_ADD of the ring on the epoll's own fd
//!   room to write ───────────▶ epoll: EPOLLONESHOT, EPOLLOUT
//! ```
//!
//! A POLL_ADD on the socket itself would end at a half-close: the ring asks for EPOLLRDHUP whether it was asked to or
//! not. For who waits for room that is no news, and it would ask again and again. epoll adds only what poll(2) always
//! reports, POLLERR and POLLHUP.
//!
//! An fd must be out of the epoll before it is closed: another process may hold the same socket, and then the kernel
//! keeps the entry, beyond anybody's reach. So `watch` takes the fd, and gives it back when the watch is over.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::op::Fd;
use crate::errno::{Errno, OsResult, Step};
use crate::limits::WATCH_EVENTS;

pub(super) struct Watches {
    epoll: Epoll,
    pub(super) watched: usize,
}

/// One fd in the epoll.
pub(super) enum Watch {
    Itself(Fd),
    /// The fd is in it already: epoll knows a socket by its number too.
    Twin(OwnedFd),
}

impl Watches {
    pub(super) fn new() -> OsResult<Self> {
        Ok(Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).step("epoll_create1")?, watched: 0 })
    }

    /// What the ring polls.
    pub(super) fn fd(&self) -> &impl AsFd {
        &self.epoll.0
    }

    /// One event: a hangup, or also one of these.
    ///
    /// # Errors
    /// EPERM: a file that has no readiness. Others as epoll_ctl(2) and dup(2) have them.
    pub(super) fn watch(&mut self, fd: &Fd, also: EpollFlags, id: u64) -> Result<Watch, Errno> {
        let event = EpollEvent::new(EpollFlags::EPOLLONESHOT | also, id);
        let watch = match self.epoll.add(&**fd, event) {
            Ok(()) => Watch::Itself(Rc::clone(fd)),
            Err(Errno::EEXIST) => {
                let twin = fd.try_clone().map_err(|e| crate::errno::errno_of(&e))?;
                self.epoll.add(&twin, event)?;
                Watch::Twin(twin)
            }
            Err(errno) => return Err(errno),
        };
        self.watched += 1;
        Ok(watch)
    }

    pub(super) fn forget(&mut self, watch: Watch) {
        self.watched -= 1;
        let result = match &watch {
            Watch::Itself(fd) => self.epoll.delete(&**fd),
            Watch::Twin(fd) => self.epoll.delete(fd),
        };
        result.expect("a watched fd is in the epoll, and open");
    }

    /// The watches that are over, and what poll(2) says of their sockets.
    pub(super) fn look(&mut self) -> Vec<(u64, u32)> {
        let mut events = [EpollEvent::empty(); WATCH_EVENTS];
        let count = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            Ok(count) => count,
            // The epoll is still ready: the next look finds the same.
            Err(Errno::EINTR) => 0,
            Err(errno) => panic!("epoll_wait on an epoll of our own: {errno}"),
        };
        events[..count].iter().map(|e| (e.data(), e.events().bits().cast_unsigned())).collect()
    }
}
