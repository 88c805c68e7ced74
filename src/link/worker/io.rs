//! A stream's local end: the fd, its operations in flight and its buffers.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use super::ctx::Ctx;
use crate::errno::Errno;
use crate::fdpass::{Keeps, Pump};
use crate::limits::BULK_FRAME_MAX;
use crate::mux::Payload;
use crate::ring::{Chunk, Done, Fd, Filling, Message, Op, OpId, Pool, Size};
use crate::stream::{Buffer, Kind, Payloads, Writes};
use crate::sys::scm::Credentials;
use crate::sys::unix;

pub(super) struct Io {
    /// `None` before it is attached and after both directions ended.
    pub(super) fd: Option<Fd>,
    /// State that must live as long as the local end.
    pub(super) keeps: Keeps,
    pub(super) ops: Ops,
    filling: Option<Filling>,
    /// What waits for room in a socket that does not block.
    stalled: Option<Box<Op>>,
    /// Fds made for the first message.
    pub(super) made: Vec<OwnedFd>,
    /// What is written here goes to a terminal.
    terminal: bool,
    /// Whom its program is shown with each message, if not this daemon.
    pub(super) speaks_as: Option<Box<Credentials>>,
}

/// Operations in flight.
#[derive(Debug, Default)]
pub(super) struct Ops {
    pub(super) source: Option<OpId>,
    pub(super) sink: Option<OpId>,
    pub(super) hangup: Option<OpId>,
}

/// A small read goes on in its buffer while this much is left: several small requests fit.
const LEFT_MIN: usize = 1 << 10;
/// A big read wants at least half a BULK frame.
const LEFT_MIN_BIG: usize = BULK_FRAME_MAX as usize / 2;

/// What became of a write.
pub(super) enum Wrote {
    /// It goes on, after so many bytes.
    Part(u32),
    All(u32),
    Failed(Errno),
}

impl Io {
    /// Without an fd.
    pub(super) fn new() -> Self {
        Self {
            fd: None,
            keeps: Keeps::Nothing,
            ops: Ops::default(),
            filling: None,
            stalled: None,
            made: Vec::new(),
            terminal: false,
            speaks_as: None,
        }
    }

    pub(super) fn attach(&mut self, Pump { fd, kind, keeps }: Pump) {
        let by_write = kind.row().writes == Writes::Bytes;
        self.terminal = by_write && nix::unistd::isatty(&fd).unwrap_or(false);
        self.fd = Some(Rc::new(fd));
        self.keeps = keeps;
    }

    /// The operations in flight hold it until they end.
    pub(super) fn detach(&mut self) {
        self.fd = None;
        self.filling = None;
        self.stalled = None;
    }

    /// Whether its program's socket is gone altogether, not only half of it.
    pub(super) fn is_gone(&self, kind: Option<Kind>) -> bool {
        kind.is_some_and(Kind::is_socket) && self.fd.as_ref().is_some_and(|fd| unix::is_gone(fd.as_fd()))
    }

    /// Whether no other holder of the fd is known here.
    pub(super) fn is_alone(&self) -> bool {
        self.fd.as_ref().is_some_and(|fd| Rc::strong_count(fd) == 1)
    }

    // ---- source --------------------------------------------------------------------------------------------------

    pub(super) fn start_source(&mut self, op: Op, ctx: &mut Ctx, token: u64) {
        assert!(self.ops.source.is_none(), "one operation of a source");
        self.ops.source = Some(ctx.engine.submit(op, token));
    }

    /// A buffer for at most `max` bytes, and how many fit.
    pub(super) fn room(&mut self, max: u32, wish: Buffer, pool: &Pool) -> (Filling, usize) {
        let max = max as usize;
        let left = self.filling.take();
        let into = match wish {
            Buffer::Small => left.filter(|f| f.spare() >= LEFT_MIN).unwrap_or_else(|| pool.take(Size::Small)),
            Buffer::Large => left.filter(|f| f.spare() >= LEFT_MIN_BIG).unwrap_or_else(|| pool.take(Size::Large)),
            Buffer::Whole => left.filter(|f| f.spare() >= max.max(1)).unwrap_or_else(|| match Size::for_bytes(max) {
                Some(size) => pool.take(size),
                None => Filling::of_its_own(max),
            }),
        };
        let max = max.min(into.spare());
        (into, max)
    }

    /// What is left of a buffer serves the next read.
    pub(super) fn keep(&mut self, filling: Filling) {
        self.filling = Some(filling);
    }

    /// No buffer is held while nothing comes.
    pub(super) fn cool(&mut self) {
        self.filling = None;
    }

    // ---- sink ----------------------------------------------------------------------------------------------------

    pub(super) fn write(
        &mut self,
        (payloads, fds, quiet): (Payloads<Chunk>, bool, bool),
        kind: Kind,
        ctx: &mut Ctx,
        token: u64,
    ) {
        let fd = Rc::clone(self.fd.as_ref().expect("a sink that writes is open"));
        let op = match payloads {
            Payloads::One(chunk) if kind.is_socket() => Op::SendChunk { fd, chunk },
            Payloads::One(chunk) => Op::Write { fd, chunk, terminal: self.terminal },
            Payloads::Message(chunks) => {
                let mut message = Box::new(Message::from(chunks));
                if fds {
                    message.fds = std::mem::take(&mut self.made);
                }
                message.record = kind.keeps_records();
                message.credentials = self.speaks_as.as_deref().copied();
                Op::Send { fd, message }
            }
        };
        assert!(self.ops.sink.is_none(), "one write of a sink");
        self.ops.sink = Some(match quiet {
            true => ctx.engine.submit_quietly(op, token),
            false => ctx.engine.submit(op, token),
        });
    }

    /// A write, or the wait for room for one, is over. `goes_on`: what is left is still wanted.
    pub(super) fn on_written(&mut self, done: Done, goes_on: bool, ctx: &mut Ctx, token: u64) -> Wrote {
        self.ops.sink = None;
        let (next, wrote) = match (done.op, done.result) {
            (Op::Poll { .. }, _) => match self.stalled.take() {
                // There is room again, or an error that the next try tells.
                Some(op) if goes_on => (Some(*op), Wrote::Part(0)),
                _ => (None, Wrote::All(0)),
            },
            // The fd was made non-blocking by its program: wait for room, then go on with what is left.
            (op, Err(Errno::EAGAIN | Errno::EINTR)) => match &self.fd {
                Some(fd) if goes_on => {
                    let fd = Rc::clone(fd);
                    self.stalled = Some(Box::new(op));
                    (Some(Op::Poll { fd, events: libc::POLLOUT }), Wrote::Part(0))
                }
                _ => (None, Wrote::All(0)),
            },
            (_, Err(errno)) => (None, Wrote::Failed(errno)),
            (op, Ok(count)) => match rest_of(op, count as usize).filter(|_| goes_on) {
                None => (None, Wrote::All(count)),
                rest => (rest, Wrote::Part(count)),
            },
        };
        self.ops.sink = next.map(|op| ctx.engine.submit(op, token));
        wrote
    }
}

/// What is left of a write after `count` bytes.
fn rest_of(op: Op, count: usize) -> Option<Op> {
    match op {
        Op::SendChunk { fd, mut chunk } => {
            chunk.advance(count);
            (!chunk.is_empty()).then_some(Op::SendChunk { fd, chunk })
        }
        Op::Write { fd, mut chunk, terminal } => {
            chunk.advance(count);
            (!chunk.is_empty()).then_some(Op::Write { fd, chunk, terminal })
        }
        Op::Send { fd, mut message } => {
            message.advance(count);
            (message.left() > 0).then_some(Op::Send { fd, message })
        }
        op => unreachable!("a sink has no {op:?}"),
    }
}
