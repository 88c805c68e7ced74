//! A stream's local end: bytes from the fd to the mux (source), bytes from the mux to the fd (sink).
//!
//! ```text
//!   source:  Off ─▶ Polling ─readable─▶ Reading ─bytes─▶ Reading ...   (cold: no buffer is held)
//!                     ▲  └─────────────── no room ─▶ Starved ─MayRead─▶ Reading
//!                     └── idle for COOL_AFTER_MS ──┘                    EOF, error ─▶ Ended
//!   sink:    queue ─▶ one operation in flight ─▶ consumed ─▶ ... ─FIN─▶ shut
//! ```
//!
//! An fd in a received message stops the source until a helper has described it; recipes in front of the sink stop it
//! until a helper has made the fds. A port is removed when both directions have ended and no operation is in flight.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use nix::sys::socket::{Shutdown, shutdown};

use super::inbox::Verdict;
use crate::errno::Errno;
use crate::fdpass::PumpKind;
use crate::limits::{BULK_FRAME_MAX, GATHER_MAX};
use crate::mux::{Key, Payload, Recipes};
use crate::ring::{Chunk, Done, Engine, Fd, Filling, Message, Op, OpId, Pool, Size};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SourceState {
    /// No fd yet, or one that gives no bytes.
    Off,
    /// Nothing in flight; `pump` decides what comes next.
    Idle,
    /// Waits for readiness, without a buffer.
    Polling,
    /// A read is in flight.
    Reading,
    /// The window is used up.
    Starved,
    /// A helper describes the fds that came.
    Describing,
    Ended,
}

/// A piece on its way to the fd, and what it is charged besides its bytes.
pub(super) enum Item {
    Bytes {
        chunk: Chunk,
        overhead: u32,
    },
    /// fds belong to the first byte; their recipes are still to be followed.
    Recipes {
        recipes: Recipes,
        chunk: Chunk,
        overhead: u32,
    },
    Message {
        fds: Vec<OwnedFd>,
        chunk: Chunk,
        overhead: u32,
    },
}

pub(super) struct Port {
    pub(super) key: Key,
    pub(super) fd: Option<Fd>,
    pub(super) kind: Option<PumpKind>,
    /// The stream whose message announced this one, when they end together (a command's stdio).
    pub(super) parent: Option<Key>,
    /// Streams announced here end with this one: it is a command's.
    pub(super) owns_children: bool,
    /// Who waits for the peer's verdict.
    pub(super) verdict: Option<Verdict>,
    pub(super) source: SourceState,
    pub(super) source_op: Option<OpId>,
    filling: Option<Filling>,
    /// The last read filled what it was given.
    big: bool,
    /// Read what is there, then end, whoever still holds the other end.
    pub(super) finishing: bool,
    /// The pending read has not ended since the last look.
    pub(super) cooling: bool,
    /// What was read together with fds, until they are described.
    pub(super) held: Option<Chunk>,
    pub(super) queue: VecDeque<Item>,
    pub(super) sink_op: Option<OpId>,
    /// Charges of what is in flight.
    in_flight: u32,
    /// The front item's recipes are with a helper.
    pub(super) rebuilding: bool,
    pub(super) fin: bool,
    pub(super) sink_closed: bool,
}

/// What a worker lends a port for one step.
pub(super) struct Hands<'a> {
    pub(super) engine: &'a mut dyn Engine,
    pub(super) pool: &'a Pool,
}

/// What a completed read brought.
pub(super) enum Read {
    Bytes(Chunk),
    WithFds(Chunk, Vec<OwnedFd>),
    Accepted(OwnedFd),
    /// Readiness came: read.
    Ready,
    /// Nothing was there, or the read was cancelled.
    Nothing,
    Eof,
    Failed(Errno),
}

/// What a completed write did.
pub(super) enum Wrote {
    /// So many bytes and charges left the queue.
    Consumed(u32),
    Again,
    /// Nobody reads.
    Gone(Errno),
}

impl Port {
    pub(super) fn new(key: Key) -> Self {
        Self {
            key,
            fd: None,
            kind: None,
            parent: None,
            owns_children: false,
            verdict: None,
            source: SourceState::Off,
            source_op: None,
            filling: None,
            big: false,
            finishing: false,
            cooling: false,
            held: None,
            queue: VecDeque::new(),
            sink_op: None,
            in_flight: 0,
            rebuilding: false,
            fin: false,
            sink_closed: false,
        }
    }

    pub(super) fn attach(&mut self, fd: OwnedFd, kind: PumpKind) {
        // The peer may have stopped reading before there was an fd to tell.
        let stopped = self.source == SourceState::Ended;
        self.source = match kind {
            PumpKind::Socket | PumpKind::SeqPacket | PumpKind::Datagram | PumpKind::Source | PumpKind::Listener => {
                SourceState::Idle
            }
            PumpKind::Sink | PumpKind::Listening(_) => SourceState::Ended,
        };
        self.sink_closed = matches!(kind, PumpKind::Source | PumpKind::Listener | PumpKind::Listening(_));
        self.fd = Some(Rc::new(fd));
        self.kind = Some(kind);
        if stopped {
            self.stop_source();
        }
    }

    pub(super) fn is_socket(&self) -> bool {
        matches!(self.kind, Some(PumpKind::Socket | PumpKind::SeqPacket | PumpKind::Datagram))
    }

    pub(super) fn is_listener(&self) -> bool {
        matches!(self.kind, Some(PumpKind::Listener))
    }

    /// Both directions are over and the kernel holds nothing of ours.
    pub(super) fn is_over(&self) -> bool {
        let lifetime = matches!(self.kind, Some(PumpKind::Listening(_)));
        self.source == SourceState::Ended
            && self.sink_closed
            && self.source_op.is_none()
            && self.sink_op.is_none()
            && !(lifetime && self.fd.is_some())
    }

    // ---- source --------------------------------------------------------------------------------------------------

    /// Waits for readiness without holding a buffer.
    pub(super) fn poll_source(&mut self, hands: &mut Hands, token: u64) {
        let Some(fd) = &self.fd else { return };
        self.filling = None;
        self.source = SourceState::Polling;
        let op = Op::Poll { fd: Rc::clone(fd), events: libc::POLLIN };
        self.source_op = Some(hands.engine.submit(op, token));
    }

    /// Reads at most `room` bytes; a listener accepts.
    pub(super) fn read_source(&mut self, hands: &mut Hands, room: u32, token: u64) {
        let Some(fd) = &self.fd else { return };
        let fd = Rc::clone(fd);
        self.source = SourceState::Reading;
        self.cooling = false;
        if self.is_listener() {
            self.source_op = Some(hands.engine.submit(Op::Accept { fd }, token));
            return;
        }
        let want = if self.big { Size::Large } else { Size::Small };
        let into = match self.filling.take() {
            // What is left of the last buffer, unless a big read wants more than that.
            Some(f) if f.spare() >= if self.big { LEFT_MIN_BIG } else { LEFT_MIN } => f,
            _ => hands.pool.take(want),
        };
        let max = (room as usize).min(BULK_FRAME_MAX as usize).min(into.spare());
        let op = match self.kind {
            Some(PumpKind::Socket | PumpKind::SeqPacket | PumpKind::Datagram) => Op::Recv { fd, into, max, fds: true },
            _ => Op::Read { fd, into, max },
        };
        self.source_op = Some(hands.engine.submit(op, token));
    }

    pub(super) fn on_source_done(&mut self, done: Done) -> Read {
        self.source_op = None;
        let was = self.source;
        if was == SourceState::Ended {
            return Read::Nothing;
        }
        self.source = SourceState::Idle;
        match (done.op, done.result) {
            (Op::Poll { .. }, Ok(_)) => Read::Ready,
            (Op::Accept { .. }, Ok(_)) => done.fds.into_iter().next().map_or(Read::Nothing, Read::Accepted),
            (Op::Recv { mut into, max, .. } | Op::Read { mut into, max, .. }, Ok(count)) => {
                let count = count as usize;
                let chunk = into.cut(count);
                // One full read makes the next ones big, one that is far from full makes them small again.
                self.big = if self.big { count >= LEFT_MIN_BIG } else { count == max };
                self.filling = Some(into);
                match (done.control_lost, count, done.fds.is_empty()) {
                    (true, ..) => Read::Failed(Errno::EMSGSIZE),
                    (_, 0, true) => Read::Eof,
                    (_, _, true) => Read::Bytes(chunk),
                    (_, _, false) => Read::WithFds(chunk, done.fds),
                }
            }
            (_, Err(Errno::EAGAIN | Errno::EINTR | Errno::ECANCELED)) => Read::Nothing,
            // A terminal whose other end is gone.
            (Op::Read { .. }, Err(Errno::EIO)) => Read::Eof,
            (_, Err(errno)) => Read::Failed(errno),
            (op, Ok(_)) => unreachable!("a source has no {op:?}"),
        }
    }

    /// The source gives no more.
    pub(super) fn end_source(&mut self) {
        self.source = SourceState::Ended;
        self.filling = None;
        self.held = None;
        if self.sink_closed {
            self.fd = None;
        }
    }

    /// The program's writes get EPIPE from now on.
    pub(super) fn stop_source(&mut self) {
        if let (true, Some(fd)) = (self.is_socket(), &self.fd) {
            // ENOTCONN: its peer has gone already.
            let _ = shutdown(fd.as_raw_fd(), Shutdown::Read);
        }
        self.end_source();
    }

    // ---- sink ----------------------------------------------------------------------------------------------------

    /// Starts the next write, if one can start. Returns recipes that a helper must follow first.
    pub(super) fn write_sink(&mut self, hands: &mut Hands, token: u64) -> Option<Recipes> {
        if self.sink_op.is_some() || self.rebuilding || self.sink_closed {
            return None;
        }
        let fd = Rc::clone(self.fd.as_ref()?);
        let socket = self.is_socket();
        let op = match self.queue.pop_front()? {
            Item::Recipes { recipes, chunk, overhead } => {
                let wanted = recipes.clone();
                self.queue.push_front(Item::Recipes { recipes, chunk, overhead });
                self.rebuilding = true;
                return Some(wanted);
            }
            Item::Message { fds, chunk, overhead } => {
                self.in_flight = overhead;
                let mut message = Box::new(Message::from(vec![chunk]));
                message.fds = fds;
                Op::Send { fd, message }
            }
            Item::Bytes { chunk, overhead } => {
                self.in_flight = overhead;
                match self.queue.front() {
                    Some(Item::Bytes { .. }) if socket => Op::Send { fd, message: self.gather(chunk) },
                    _ if socket => Op::SendChunk { fd, chunk },
                    _ => Op::Write { fd, chunk },
                }
            }
        };
        self.sink_op = Some(hands.engine.submit(op, token));
        None
    }

    fn gather(&mut self, first: Chunk) -> Box<Message> {
        let mut chunks = vec![first];
        while chunks.len() < GATHER_MAX
            && let Some(Item::Bytes { .. }) = self.queue.front()
            && let Some(Item::Bytes { chunk, overhead }) = self.queue.pop_front()
        {
            self.in_flight += overhead;
            chunks.push(chunk);
        }
        Box::new(Message::from(chunks))
    }

    pub(super) fn on_sink_done(&mut self, done: Done, hands: &mut Hands, token: u64) -> Wrote {
        self.sink_op = None;
        if self.sink_closed {
            return Wrote::Again;
        }
        let count = match done.result {
            Ok(count) => count as usize,
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Err(errno) => return Wrote::Gone(errno),
        };
        let rest = match done.op {
            Op::Poll { .. } => return Wrote::Again,
            Op::SendChunk { fd, mut chunk } => {
                chunk.advance(count);
                (!chunk.is_empty()).then_some(Op::SendChunk { fd, chunk })
            }
            Op::Write { fd, mut chunk } => {
                chunk.advance(count);
                (!chunk.is_empty()).then_some(Op::Write { fd, chunk })
            }
            Op::Send { fd, mut message } => {
                if count > 0 {
                    message.advance(count);
                }
                (message.left() > 0).then_some(Op::Send { fd, message })
            }
            op => unreachable!("a sink has no {op:?}"),
        };
        let consumed = u32::try_from(count).expect("one send is small");
        match rest {
            None => Wrote::Consumed(consumed + std::mem::take(&mut self.in_flight)),
            Some(op) if count == 0 => {
                self.wait_writable(op, hands, token);
                Wrote::Again
            }
            Some(op) => {
                self.sink_op = Some(hands.engine.submit(op, token));
                Wrote::Consumed(consumed)
            }
        }
    }

    /// The fd was made non-blocking by its program: wait for room, then go on with what is left.
    fn wait_writable(&mut self, op: Op, hands: &mut Hands, token: u64) {
        let mut overhead = std::mem::take(&mut self.in_flight);
        let fd = match op {
            Op::SendChunk { fd, chunk } | Op::Write { fd, chunk } => {
                self.queue.push_front(Item::Bytes { chunk, overhead });
                fd
            }
            Op::Send { fd, mut message } => {
                let fds = std::mem::take(&mut message.fds);
                let mut chunks = message.into_chunks();
                let first = chunks.remove(0);
                for chunk in chunks.into_iter().rev() {
                    self.queue.push_front(Item::Bytes { chunk, overhead: std::mem::take(&mut overhead) });
                }
                self.queue.push_front(match fds.is_empty() {
                    true => Item::Bytes { chunk: first, overhead },
                    false => Item::Message { fds, chunk: first, overhead },
                });
                fd
            }
            op => unreachable!("a sink has no {op:?}"),
        };
        self.sink_op = Some(hands.engine.submit(Op::Poll { fd, events: libc::POLLOUT }, token));
    }

    /// After FIN, when all is written: the program sees the end. Returns whether that has just happened.
    pub(super) fn close_sink_if_done(&mut self) -> bool {
        let idle = self.queue.is_empty() && self.sink_op.is_none();
        if !self.fin || self.sink_closed || !idle || self.fd.is_none() {
            return false;
        }
        if let (true, Some(fd)) = (self.is_socket(), &self.fd) {
            // ENOTCONN: its peer has gone already.
            let _ = shutdown(fd.as_raw_fd(), Shutdown::Write);
        }
        self.drop_sink();
        true
    }

    /// Nothing more is written here.
    pub(super) fn drop_sink(&mut self) {
        self.sink_closed = true;
        self.queue.clear();
        if self.source == SourceState::Ended {
            self.fd = None;
        }
    }

    /// Both directions end at once. Operations in flight are cancelled; the fd is closed with the last of them.
    pub(super) fn abort(&mut self, engine: &mut dyn Engine) {
        for op in [self.source_op, self.sink_op].into_iter().flatten() {
            engine.cancel(op);
        }
        self.source = SourceState::Ended;
        self.filling = None;
        self.held = None;
        self.sink_closed = true;
        self.queue.clear();
        self.fd = None;
    }
}

/// A small read goes on in its buffer while this much is left: several small requests fit.
const LEFT_MIN: usize = 1 << 10;
/// A big read wants at least half a BULK frame.
const LEFT_MIN_BIG: usize = 32 << 10;
