//! What a worker may ask of the kernel, and what comes back.
//!
//! An operation owns everything that the kernel will touch: the buffer, the fd, the message. It gives them back with
//! its completion, so nothing can be freed under it, and fds that arrive for an operation nobody waits for are closed.

use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use super::buf::{Chunk, Filling};
use crate::errno::{Errno, OsResult};
use crate::mux::{Batch, Part, Payload};
use crate::sys::closer;
use crate::sys::scm::Credentials;

/// An fd that operations share: it is closed when the last of them is done.
pub type Fd = Rc<OwnedFd>;

#[derive(Debug)]
pub enum Op {
    /// RECVMSG of at most `max` bytes into the tail of `into`. With `fds`, control data is taken too: a RECV would drop
    /// passed fds without a word. `dry`: the last one took all that there was, so a first try would be in vain.
    Recv {
        fd: Fd,
        into: Filling,
        max: usize,
        fds: bool,
        dry: bool,
    },
    /// What a `Recv` of a stream socket would take: MSG_PEEK into the tail, which stays unfilled. The result counts bytes
    /// up to the end of the first piece with fds. Without `Done::control_lost` there are none; with it there are some, in
    /// that last piece or, where `max` ended the look, behind it (the kernel does not tell which).
    Peek {
        fd: Fd,
        into: Filling,
        max: usize,
    },
    /// The length of the next record of a SEQPACKET or DGRAM socket, which stays in its queue. 0 is an empty record or
    /// the end.
    Measure {
        fd: Fd,
    },
    /// read(2) at the file's own position, for pipes, files and terminals.
    Read {
        fd: Fd,
        into: Filling,
        max: usize,
    },
    /// SENDMSG of what is left of the message.
    Send {
        fd: Fd,
        message: Box<Message>,
    },
    /// SEND of one chunk.
    SendChunk {
        fd: Fd,
        chunk: Chunk,
    },
    /// write(2) at the file's own position.
    Write {
        fd: Fd,
        chunk: Chunk,
        /// It is a terminal or a pseudo-terminal's master, whose room cannot be foreseen.
        terminal: bool,
    },
    Accept {
        fd: Fd,
    },
    /// One readiness event, poll(2)'s bits.
    Poll {
        fd: Fd,
        events: i16,
    },
    /// The peer of a STREAM or SEQPACKET socket is gone altogether, POLLHUP or POLLERR of poll(2): not when it has only
    /// ended its half. The result has those bits.
    Hangup {
        fd: Fd,
    },
}

impl Op {
    pub(super) fn fd(&self) -> &Fd {
        match self {
            Self::Recv { fd, .. }
            | Self::Peek { fd, .. }
            | Self::Measure { fd }
            | Self::Read { fd, .. }
            | Self::Send { fd, .. }
            | Self::SendChunk { fd, .. }
            | Self::Write { fd, .. }
            | Self::Accept { fd }
            | Self::Poll { fd, .. }
            | Self::Hangup { fd } => fd,
        }
    }

    pub(super) fn is_write(&self) -> bool {
        matches!(self, Self::Send { .. } | Self::SendChunk { .. } | Self::Write { .. })
    }

    /// A send that goes whole or not at all.
    pub(super) fn is_record(&self) -> bool {
        matches!(self, Self::Send { message, .. } if message.record)
    }

    /// A look that finds nothing where the kernel has said that there is something: it does not wait for more. A byte of
    /// urgent data (MSG_OOB) is seen by poll(2) and by no look.
    pub(super) fn ends_at_eagain(&self) -> bool {
        matches!(self, Self::Peek { .. })
    }

    /// How much a send is to send.
    pub(super) fn to_send(&self) -> usize {
        match self {
            Self::Send { message, .. } => message.left(),
            Self::SendChunk { chunk, .. } => chunk.len(),
            _ => 0,
        }
    }

    /// Whether control data, and so fds, may come or go with it.
    pub(super) fn has_control(&self) -> bool {
        match self {
            Self::Recv { fds, .. } => *fds,
            Self::Peek { .. } | Self::Measure { .. } => true,
            Self::Send { message, .. } => !message.fds.is_empty() || message.credentials.is_some(),
            _ => false,
        }
    }
}

/// Which operation, for `cancel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpId(pub(super) NonZeroU64);

impl OpId {
    pub(super) fn new(slot: u64) -> Self {
        Self(NonZeroU64::new(slot).expect("no generation is 0"))
    }
}

/// An operation that has ended. What it owned comes back.
#[derive(Debug)]
pub struct Done {
    /// What `submit` was given.
    pub token: u64,
    pub op: Op,
    pub result: Result<u32, Errno>,
    /// Accepted, or received with the message.
    pub fds: Vec<OwnedFd>,
    /// Control data did not fit, and fds in it are lost: MSG_CTRUNC, recvmsg(2).
    pub control_lost: bool,
    /// The record was longer than the buffer, and the rest of it is lost: MSG_TRUNC.
    pub record_cut: bool,
}

/// What a call has brought, before it is somebody's.
pub(super) struct Outcome {
    pub(super) result: Result<u32, Errno>,
    pub(super) fds: Vec<OwnedFd>,
    pub(super) control_lost: bool,
    pub(super) record_cut: bool,
}

impl From<Result<u32, Errno>> for Outcome {
    fn from(result: Result<u32, Errno>) -> Self {
        Self { result, fds: Vec::new(), control_lost: false, record_cut: false }
    }
}

impl Outcome {
    pub(super) fn done(self, token: u64, op: Op) -> Done {
        let Self { result, fds, control_lost, record_cut } = self;
        Done { token, op, result, fds, control_lost, record_cut }
    }
}

/// One worker's way to the kernel: a ring, or epoll. The rest of the house knows only this.
pub trait Engine {
    /// Hands the operation over; it starts at the next `wait`, or before.
    fn submit(&mut self, op: Op, token: u64) -> OpId;

    /// As `submit`, of a `Send` or a `SendChunk` for whose success alone nobody is to wake: it is told with the next
    /// completion of something else, or when the wait is over. What fails or is cut short is told at once.
    fn submit_quietly(&mut self, op: Op, token: u64) -> OpId {
        self.submit(op, token)
    }

    /// Somebody needs to know of a quiet send after all: the next `wait` does not wait for anything else.
    fn hurry(&mut self) {}

    /// Asks for an early end. The operation still completes, with ECANCELED or with what it had done by then.
    fn cancel(&mut self, id: OpId);

    /// Starts what was submitted, waits until something has ended (or `timeout` is over), and appends it to `done`.
    /// It may come back sooner with nothing: on a signal, or on the kernel's own work for a ring that this thread has
    /// just closed.
    ///
    /// # Errors
    /// The ring itself failed; the worker cannot go on.
    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<Done>) -> OsResult<()>;

    /// Now and then: memory that a burst needed is given back.
    fn rest(&mut self);
}

/// What one SENDMSG carries: headers and payloads, fds with the first byte, and how far it has got.
#[derive(Debug, Default)]
pub struct Message {
    pub batch: Batch<Chunk>,
    pub fds: Vec<OwnedFd>,
    /// One record: sent whole or not at all. Where the receiver has no room it ends with EAGAIN.
    pub record: bool,
    /// Whom every part of it is of; `None`: this process.
    pub credentials: Option<Credentials>,
    sent: usize,
}

impl Message {
    /// Bytes still to be sent.
    pub fn left(&self) -> usize {
        self.batch.bytes() - self.sent
    }

    /// The kernel took `count` bytes, and the fds with them.
    pub fn advance(&mut self, count: usize) {
        self.sent += count;
        assert!(self.sent <= self.batch.bytes(), "no more than there is");
        closer::close(self.fds.drain(..));
    }

    pub fn clear(&mut self) {
        self.batch.clear();
        closer::close(self.fds.drain(..));
        self.record = false;
        self.credentials = None;
        self.sent = 0;
    }

    /// The payloads still to be sent, in order. Only for a message without headers.
    pub fn into_chunks(mut self) -> Vec<Chunk> {
        let mut skip = self.sent;
        let mut left = Vec::new();
        for part in self.batch.parts.drain(..) {
            let Part::Body(mut chunk) = part else { unreachable!("a message to a program has no headers") };
            let cut = skip.min(chunk.len());
            skip -= cut;
            chunk.advance(cut);
            if !chunk.is_empty() {
                left.push(chunk);
            }
        }
        left
    }

    /// The bytes still to be sent, in order, as slices.
    pub(super) fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let mut skip = self.sent;
        self.batch.slices().filter_map(move |bytes| {
            let cut = skip.min(bytes.len());
            skip -= cut;
            (cut < bytes.len()).then_some(&bytes[cut..])
        })
    }
}

/// An fd of it may be a file of a mount.
impl Drop for Message {
    fn drop(&mut self) {
        closer::close(self.fds.drain(..));
    }
}

/// A message of one payload with fds, as a record or a control message is sent.
impl From<Vec<Chunk>> for Message {
    fn from(chunks: Vec<Chunk>) -> Self {
        let mut batch = Batch::default();
        chunks.into_iter().filter(|c| !c.is_empty()).for_each(|c| batch.push_body(c));
        Self { batch, fds: Vec::new(), record: false, credentials: None, sent: 0 }
    }
}
