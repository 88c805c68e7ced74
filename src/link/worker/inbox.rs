//! What other threads ask of a worker, and the handles by which they do.

use std::fmt;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::guard::Guard;
use super::peer::Peer;
use crate::errno::{Errno, OsResult, Step};
use crate::fdpass::{Described, Pump, Rebuilt};
use crate::mux::{Key, Options, Recipes};
use crate::sys::scm::Credentials;
use crate::wire::hello::Lane;

/// The answer to `open`: the stream, or the peer's errno.
pub(in crate::link) type Verdict = Box<dyn FnOnce(Result<Pending, Errno>) + Send>;

/// Called once, when something has ended.
pub type Notice = Box<dyn FnOnce() + Send>;

pub(in crate::link) enum Cmd {
    /// A link has shaken hands. The pair `begins` with its first link; a later one is too late for a pair that is over.
    Link {
        pair: u64,
        lane: Lane,
        fd: OwnedFd,
        guard: Guard,
        options: Options,
        peer: Arc<Peer>,
        begins: bool,
        /// It goes on with a lane whose link is lost.
        resumes: bool,
    },
    Open {
        pair: u64,
        service: u16,
        request: Vec<u8>,
        verdict: Verdict,
    },
    /// The stream's local end; on an incoming one also the verdict yes. `first` leaves before anything is read.
    Attach {
        pair: u64,
        key: Key,
        pump: Pump,
        first: Option<First>,
        terms: Terms,
    },
    Reset {
        pair: u64,
        key: Key,
        errno: Errno,
    },
    /// A helper has done what a local end had asked it for.
    Answer {
        pair: u64,
        /// Its place, and its stream: another may have the place by now.
        local: (usize, Key),
        answer: Answer,
    },
    /// The command has ended: its pipes give what is in them, and then their end.
    FinishChildren {
        pair: u64,
        key: Key,
    },
    /// Tells when every child that writes here has written all.
    WhenChildrenDone {
        pair: u64,
        key: Key,
        then: Notice,
    },
    /// No new streams; the pair ends with its last stream.
    Leave {
        pair: u64,
    },
    /// The pair ends now.
    End {
        pair: u64,
        reason: String,
    },
    /// The worker ends when its pairs have.
    Stop,
}

/// What a helper brings.
pub(in crate::link) enum Answer {
    /// The fds of a message that was read, described.
    Described(OsResult<Found<Described>>),
    /// The fds of a message that is to be written.
    Rebuilt(Made),
    /// From a regular file; no bytes: its end.
    FileRead(Result<Vec<u8>, Errno>),
    /// All that was given has been written to a regular file.
    FileWritten(Result<(), Errno>),
    /// What could be done to make the close a reset has been done.
    ResetForced,
}

/// A message with fds on its way to a helper, and back with what they are.
pub(in crate::link) struct Found<F> {
    /// Bytes in front of it.
    pub(in crate::link) before: Vec<u8>,
    pub(in crate::link) bytes: Vec<u8>,
    pub(in crate::link) fds: Vec<F>,
}

/// Recipes that were with a helper, and what came of them.
pub(in crate::link) struct Made {
    pub(in crate::link) recipes: Recipes,
    pub(in crate::link) result: OsResult<Vec<Rebuilt>>,
}

/// By which a helper gives its answer.
pub(in crate::link) struct HelperAnswer {
    to: PairRef,
    local: (usize, Key),
}

impl HelperAnswer {
    pub(in crate::link) fn new(to: PairRef, local: (usize, Key)) -> Self {
        Self { to, local }
    }

    pub(in crate::link) fn give(self, answer: Answer) {
        self.to.inbox.push(Cmd::Answer { pair: self.to.pair, local: self.local, answer });
    }
}

/// On what terms a stream gets its local end.
#[derive(Debug, Default)]
pub struct Terms {
    /// What the peer hears with the yes, ACCEPT_MAX bytes at most.
    pub said: Vec<u8>,
    /// Whom what is written to the local end is of, to its reader; `None`: this daemon.
    pub speaks_as: Option<Credentials>,
}

/// A message that opens a stream's traffic: bytes, and fds that cross with them.
pub struct First {
    pub bytes: Vec<u8>,
    pub fds: Vec<Described>,
}

pub(in crate::link) struct Inbox {
    queue: Mutex<Vec<Cmd>>,
    pub(in crate::link) event: EventFd,
}

impl Inbox {
    pub(in crate::link) fn new() -> OsResult<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).step("eventfd")?;
        Ok(Self { queue: Mutex::default(), event })
    }

    pub(in crate::link) fn push(&self, cmd: Cmd) {
        let first = {
            let mut queue = self.queue.lock().expect("no holder panics: panic is abort");
            queue.push(cmd);
            queue.len() == 1
        };
        // Behind the lock: the worker may run at once, on this very processor, and would wait for it.
        if first {
            self.poke();
        }
    }

    /// Wakes the worker for nothing.
    pub(in crate::link) fn poke(&self) {
        self.event.write(1).expect("an eventfd takes a 1");
    }

    pub(in crate::link) fn take(&self) -> Vec<Cmd> {
        std::mem::take(&mut *self.queue.lock().expect("no holder panics: panic is abort"))
    }
}

/// A link pair on its worker.
#[derive(Clone)]
pub(in crate::link) struct PairRef {
    pub(in crate::link) inbox: Arc<Inbox>,
    pub(in crate::link) pair: u64,
}

impl PairRef {
    /// The stream ends now.
    pub(in crate::link) fn reset(&self, key: Key, errno: Errno) {
        self.inbox.push(Cmd::Reset { pair: self.pair, key, errno });
    }
}

/// A stream that has no local end yet. Dropped without a decision, it is reset.
pub struct Pending {
    at: PairRef,
    key: Key,
    /// By the peer's service, with its yes.
    said: Vec<u8>,
    decided: bool,
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pending(stream {})", self.key.id())
    }
}

impl Pending {
    pub(in crate::link) fn new(at: PairRef, key: Key) -> Self {
        Self { at, key, said: Vec::new(), decided: false }
    }

    pub(in crate::link) fn with_said(mut self, said: Vec<u8>) -> Self {
        self.said = said;
        self
    }

    /// What the peer's service said with its yes, to a stream that was opened here.
    pub fn said(&self) -> &[u8] {
        &self.said
    }

    /// Pumps between the stream and `pump` from now on; says yes to the peer if it waits for that.
    pub fn attach(self, pump: Pump) -> Attached {
        self.attach_with(pump, None, Terms::default())
    }

    /// As `attach`, on these terms.
    pub fn attach_on(self, pump: Pump, terms: Terms) -> Attached {
        self.attach_with(pump, None, terms)
    }

    /// As `attach`; `first` leaves before anything that is read.
    pub fn attach_sending(self, pump: Pump, first: First) -> Attached {
        self.attach_with(pump, Some(first), Terms::default())
    }

    fn attach_with(mut self, pump: Pump, first: Option<First>, terms: Terms) -> Attached {
        self.decided = true;
        self.at.inbox.push(Cmd::Attach { pair: self.at.pair, key: self.key, pump, first, terms });
        Attached { at: self.at.clone(), key: self.key }
    }

    /// Says no: the peer's caller gets `errno`.
    pub fn refuse(mut self, errno: Errno) {
        self.decided = true;
        self.at.reset(self.key, errno);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.decided {
            self.at.reset(self.key, Errno::ECONNRESET);
        }
    }
}

/// A stream that is being pumped. Dropping it changes nothing.
pub struct Attached {
    at: PairRef,
    key: Key,
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attached(stream {})", self.key.id())
    }
}

impl Attached {
    /// The command behind this stream has ended: what its pipes still hold goes out, then their end.
    pub fn finish_children(&self) {
        self.at.inbox.push(Cmd::FinishChildren { pair: self.at.pair, key: self.key });
    }

    /// The stream ends now, both ways: the peer's program sees its socket end.
    pub fn reset(&self, errno: Errno) {
        self.at.reset(self.key, errno);
    }

    /// Writes a byte into a pipe of ours when all that the fds sent with this stream were to receive has been written, and
    /// only closes it if that never will be.
    pub fn tell_children_done(&self, tell: std::io::PipeWriter) {
        // Nobody waits any more: nothing to tell.
        self.when_children_done(Box::new(move || drop((&tell).write_all(&[1]))));
    }

    pub(in crate::link) fn when_children_done(&self, then: Notice) {
        self.at.inbox.push(Cmd::WhenChildrenDone { pair: self.at.pair, key: self.key, then });
    }
}
