//! A stream's local end: bytes from the fd to the mux (source), bytes from the mux to the fd (sink).
//!
//! ```text
//!   source:  Off ─▶ Polling ─readable─▶ Reading ─bytes─▶ Reading ...   (cold: no buffer is held)
//!                     ▲  └─────────────── no room ─▶ Starved ─MayRead─▶ Reading
//!                     └── idle for COOL_AFTER_MS ──┘                    EOF, error ─▶ Ended
//!   sink:    see sink.rs
//! ```
//!
//! A stream socket's reads may be preceded by a look for fds (looks.rs): a read that met bytes and then fds could not tell
//! where the fds belong. A record is measured before it is read.
//!
//! An fd in a received message stops the source until a helper has described it; recipes in front of the sink stop it
//! until a helper has made the fds. A port is removed when both directions have ended and no operation is in flight.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;

use nix::sys::socket::{Shutdown, shutdown};

use super::budget::{Budget, Share};
use super::ctx::Ctx;
use super::inbox::Verdict;
use super::looks::Looks;
use super::sink::{Assembly, Early, Item};
use crate::errno::Errno;
use crate::fdpass::{OnRefusal, PumpKind};
use crate::limits::BULK_FRAME_MAX;
use crate::mux::{Key, Recipes};
use crate::ring::{Chunk, Done, Engine, Fd, Filling, Op, OpId, Pool, Size};
use crate::sys::scm::Credentials;
use crate::sys::{closer, record_end, unix};

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

pub(super) struct Port {
    pub(super) key: Key,
    pub(super) fd: Option<Fd>,
    pub(super) kind: Option<PumpKind>,
    /// What is written here goes to a terminal.
    pub(super) terminal: bool,
    /// The stream whose message announced this one, when they end together (a command's stdio).
    pub(super) parent: Option<Box<Key>>,
    /// A program of this machine may hold the same socket: its end here is a close, and not a shutdown.
    pub(super) shared: bool,
    /// Where an fd of a message of its can't be made its program gets a placeholder, and the conversation goes on.
    pub(super) on_refusal: OnRefusal,
    /// Streams announced here end with this one: it is a command's.
    pub(super) owns_children: bool,
    /// Who waits for the peer's verdict.
    pub(super) verdict: Option<Verdict>,
    pub(super) source: SourceState,
    pub(super) source_op: Option<OpId>,
    filling: Option<Filling>,
    /// The last read filled its buffer.
    big: bool,
    /// It has just taken all that there was.
    dry: bool,
    /// A look has found nothing where there is something.
    unseen: bool,
    /// Its program closed with something unread; what it had sent before may still be in the queue.
    pub(super) was_reset: bool,
    /// Read what is there, then end, whoever still holds the other end.
    pub(super) finishing: bool,
    /// The pending read has not ended since the last look.
    pub(super) cooling: bool,
    /// Bytes came or went since the last look, and queues may have grown.
    pub(super) used: bool,
    /// What was read together with fds, until they are described.
    pub(super) held: Option<Box<Chunk>>,
    pub(super) looks: Looks,
    /// The length of the record that comes next.
    measured: Option<u32>,
    /// Streams that end with this one; some may have ended since.
    pub(super) children: Vec<Key>,
    pub(super) queue: VecDeque<Item>,
    /// Before there is an fd.
    pub(super) early: Option<Box<Early>>,
    /// The record that is coming in; there is none on a byte stream, and 9,000 idle ones should cost little.
    pub(super) assembly: Option<Box<Assembly>>,
    /// What it holds for its program, on a stream of records.
    pub(super) share: Option<Box<Share>>,
    pub(super) sink_op: Option<OpId>,
    /// A helper writes so many bytes to a file.
    pub(super) writing: Option<u32>,
    /// Nobody wakes for its end.
    pub(super) sink_quiet: bool,
    /// Waits for the end of a program that has ended its half.
    pub(super) hangup: Option<OpId>,
    /// What waits for room in a socket that does not block.
    pub(super) stalled: Option<Box<Op>>,
    /// Charges of what is in flight.
    pub(super) in_flight: u32,
    /// Whom its program is shown with each message, if not this daemon.
    pub(super) speaks_as: Option<Credentials>,
    /// Memory that must be filled before the front message may leave.
    pub(super) fills: u32,
    /// This stream fills memory for a message of that one.
    pub(super) fills_for: Option<Box<Key>>,
    /// The front item's recipes are with a helper.
    pub(super) rebuilding: bool,
    pub(super) fin: bool,
    pub(super) plant: Plant,
    pub(super) sink_closed: bool,
}

/// The peer's program closed with something unread, so that this fd's close must be a reset (`sys::unread`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plant {
    No,
    /// A helper that looks for fds must end first.
    Later,
    /// The read in flight must end first: it would take the byte.
    Wanted,
    /// A helper is at it.
    Working,
    /// The fd is closed next; a shutdown before it would be seen first, as an orderly end.
    Done,
}

/// What a completed read brought.
pub(super) enum Read {
    Bytes(Chunk),
    /// Bytes or a record, and the fds that belong to the first byte.
    WithFds(Chunk, Vec<OwnedFd>),
    /// There are fds with the next bytes, of which at most so many are to be taken: a helper finds the place.
    FdsAhead(usize),
    Accepted(OwnedFd),
    /// Readiness came, or the next length is known: read.
    Ready,
    /// The peek is done, and the read is in flight.
    Underway,
    /// Nothing was there, or the read was cancelled.
    Nothing,
    Eof,
    Failed(Errno),
}

impl Port {
    pub(super) fn new(key: Key) -> Self {
        Self {
            key,
            fd: None,
            kind: None,
            terminal: false,
            parent: None,
            shared: false,
            on_refusal: OnRefusal::Fail,
            owns_children: false,
            verdict: None,
            source: SourceState::Off,
            source_op: None,
            filling: None,
            big: false,
            dry: false,
            unseen: false,
            was_reset: false,
            finishing: false,
            cooling: false,
            used: false,
            held: None,
            looks: Looks::default(),
            measured: None,
            children: Vec::new(),
            queue: VecDeque::new(),
            early: None,
            assembly: None,
            share: None,
            sink_op: None,
            writing: None,
            sink_quiet: false,
            hangup: None,
            stalled: None,
            in_flight: 0,
            speaks_as: None,
            fills: 0,
            fills_for: None,
            rebuilding: false,
            fin: false,
            plant: Plant::No,
            sink_closed: false,
        }
    }

    pub(super) fn attach(&mut self, fd: OwnedFd, kind: PumpKind, records: &Budget) {
        // The peer may have stopped reading before there was an fd to tell.
        let stopped = self.source == SourceState::Ended;
        self.source = match kind {
            PumpKind::Sink | PumpKind::FileSink(_) | PumpKind::Fill(_) | PumpKind::Listening(_) => SourceState::Ended,
            _ => SourceState::Idle,
        };
        self.sink_closed =
            matches!(kind, PumpKind::Source | PumpKind::FileSource(_) | PumpKind::Listener(_) | PumpKind::Listening(_));
        let by_write =
            !matches!(kind, PumpKind::Socket | PumpKind::SeqPacket | PumpKind::Datagram | PumpKind::FileSink(_));
        self.terminal = by_write && !self.sink_closed && nix::unistd::isatty(&fd).unwrap_or(false);
        self.fd = Some(Rc::new(fd));
        self.kind = Some(kind);
        self.share = self.keeps_records().then(|| records.share());
        if stopped {
            self.stop_source();
        }
    }

    /// Whether what comes next waits for a write of whose end nobody is told.
    pub(super) fn sink_holds_up(&self) -> bool {
        self.sink_op.is_some() && self.sink_quiet
    }

    pub(super) fn is_socket(&self) -> bool {
        matches!(self.kind, Some(PumpKind::Socket | PumpKind::SeqPacket | PumpKind::Datagram))
    }

    /// Whether its program's socket is gone altogether, not only half of it.
    pub(super) fn is_gone(&self) -> bool {
        self.is_socket() && self.fd.as_ref().is_some_and(|fd| unix::is_gone(fd.as_fd()))
    }

    pub(super) fn keeps_records(&self) -> bool {
        matches!(self.kind, Some(PumpKind::SeqPacket | PumpKind::Datagram))
    }

    /// Whether it is a listener that was made here for a far one: it lives as long as its stream.
    pub(super) fn is_home(&self) -> bool {
        matches!(self.kind, Some(PumpKind::Listening(_)))
    }

    pub(super) fn is_listener(&self) -> bool {
        matches!(self.kind, Some(PumpKind::Listener(_)))
    }

    /// Both directions are over and the kernel holds nothing of ours.
    pub(super) fn is_over(&self) -> bool {
        let lifetime = matches!(self.kind, Some(PumpKind::Listening(_)));
        self.source == SourceState::Ended
            && self.sink_closed
            && self.source_op.is_none()
            && self.sink_op.is_none()
            && self.hangup.is_none()
            && !(lifetime && self.fd.is_some())
    }

    /// Whether its end needs nobody but its program and the kernel: no other stream, nor a helper's answer that would be
    /// refused once the pair has ended.
    pub(super) fn ends_alone(&self) -> bool {
        let waits = self.rebuilding || self.fills > 0 || self.queue.iter().any(|i| matches!(i, Item::Recipes { .. }));
        let sink_ends = self.sink_closed || (self.fin && self.fd.is_some() && !waits);
        self.source == SourceState::Ended && sink_ends && !self.is_home()
    }

    /// Whether bytes have come or gone since the last look, and all have gone. The queue keeps no room then.
    pub(super) fn relax(&mut self) -> bool {
        let relaxes = self.used && self.queue.is_empty();
        if relaxes {
            self.used = false;
            self.queue = VecDeque::new();
        }
        relaxes
    }

    // ---- source --------------------------------------------------------------------------------------------------

    /// Waits for readiness without holding a buffer.
    pub(super) fn poll_source(&mut self, ctx: &mut Ctx, token: u64) {
        let Some(fd) = &self.fd else { return };
        assert!(self.source_op.is_none(), "one operation of a source in flight");
        self.filling = None;
        self.source = SourceState::Polling;
        let op = Op::Poll { fd: Rc::clone(fd), events: libc::POLLIN };
        self.source_op = Some(ctx.engine.submit(op, token));
    }

    /// The room that the next read needs.
    pub(super) fn need(&self) -> u32 {
        self.measured.unwrap_or(0).max(1)
    }

    /// Reads at most `room` bytes; a listener accepts.
    pub(super) fn read_source(&mut self, ctx: &mut Ctx, room: u32, token: u64) {
        let Some(fd) = &self.fd else { return };
        assert!(self.source_op.is_none(), "one operation of a source in flight");
        let fd = Rc::clone(fd);
        self.source = SourceState::Reading;
        self.cooling = false;
        let dry = std::mem::take(&mut self.dry);
        let op = match (&self.kind, self.measured.take()) {
            (Some(PumpKind::Listener(_)), _) => Op::Accept { fd },
            (Some(PumpKind::SeqPacket | PumpKind::Datagram), None) => Op::Measure { fd },
            (Some(PumpKind::SeqPacket | PumpKind::Datagram), Some(len)) => {
                let max = len as usize;
                let into = self.room_for(max, ctx.pool);
                if closer::is_choked() {
                    Op::Peek { fd, into, max }
                } else {
                    Op::Recv { fd, into, max, fds: true, dry: false }
                }
            }
            (kind, _) => {
                let socket = matches!(kind, Some(PumpKind::Socket));
                let into = self.filling(ctx.pool);
                let max = (room as usize).min(BULK_FRAME_MAX as usize).min(into.spare());
                let unseen = std::mem::take(&mut self.unseen);
                match socket {
                    // A byte of urgent data: a read goes past it. One byte, so that fds stay where they are.
                    true if unseen => Op::Recv { fd, into, max: 1, fds: true, dry: false },
                    // Fds that nobody may take are to stay where they are.
                    true if self.looks.is_wanted() || closer::is_choked() => Op::Peek { fd, into, max },
                    true => Op::Recv { fd, into, max, fds: true, dry },
                    false => Op::Read { fd, into, max },
                }
            }
        };
        self.source_op = Some(ctx.engine.submit(op, token));
    }

    /// What is left of the last buffer, unless a big read wants more than that.
    fn filling(&mut self, pool: &Pool) -> Filling {
        let (size, least) = if self.big { (Size::Large, LEFT_MIN_BIG) } else { (Size::Small, LEFT_MIN) };
        self.filling.take().filter(|f| f.spare() >= least).unwrap_or_else(|| pool.take(size))
    }

    /// A buffer for a whole record.
    fn room_for(&mut self, len: usize, pool: &Pool) -> Filling {
        let kept = self.filling.take().filter(|f| f.spare() >= len.max(1));
        kept.unwrap_or_else(|| match Size::for_bytes(len) {
            Some(size) => pool.take(size),
            None => Filling::of_its_own(len),
        })
    }

    pub(super) fn on_source_done(&mut self, done: Done, ctx: &mut Ctx, token: u64) -> Read {
        self.source_op = None;
        let was = self.source;
        if was == SourceState::Ended {
            closer::close(done.fds);
            return Read::Nothing;
        }
        self.source = SourceState::Idle;
        match (done.op, done.result) {
            (Op::Poll { .. }, Ok(_)) => Read::Ready,
            (Op::Accept { .. }, Ok(_)) => done.fds.into_iter().next().map_or(Read::Nothing, Read::Accepted),
            (Op::Peek { into, .. }, Ok(count)) => {
                let max = count as usize;
                if done.control_lost && (max > 0 || self.keeps_records()) {
                    self.looks.saw_fds();
                    self.filling = Some(into);
                    return Read::FdsAhead(max);
                }
                self.looks.saw_bytes();
                self.source = SourceState::Reading;
                let fd = Rc::clone(self.fd.as_ref().expect("the source is open"));
                // With 0 bytes ahead, the end: this read says so again.
                let max = max.max(1);
                self.source_op = Some(ctx.engine.submit(Op::Recv { fd, into, max, fds: true, dry: false }, token));
                Read::Underway
            }
            (Op::Measure { fd }, Ok(0)) => match record_end::has_ended(&*fd) {
                Ok(true) => Read::Eof,
                Ok(false) => {
                    self.measured = Some(0);
                    Read::Ready
                }
                Err(errno) => Read::Failed(errno),
            },
            (Op::Measure { .. }, Ok(len)) => {
                self.measured = Some(len);
                Read::Ready
            }
            (Op::Recv { into, max, .. } | Op::Read { into, max, .. }, Ok(count)) => {
                self.dry = (count as usize) < max;
                let lost = done.control_lost || done.record_cut;
                if lost {
                    closer::close(done.fds);
                    return Read::Failed(Errno::EMSGSIZE);
                }
                self.on_bytes(into, count as usize, done.fds)
            }
            (Op::Peek { .. }, Err(Errno::EAGAIN)) => {
                self.unseen = true;
                Read::Nothing
            }
            (_, Err(Errno::EAGAIN | Errno::EINTR | Errno::ECANCELED)) => Read::Nothing,
            // A terminal whose other end is gone.
            (Op::Read { .. }, Err(Errno::EIO)) => Read::Eof,
            (_, Err(errno)) => Read::Failed(errno),
            (op, Ok(_)) => unreachable!("a source has no {op:?}"),
        }
    }

    fn on_bytes(&mut self, mut into: Filling, count: usize, fds: Vec<OwnedFd>) -> Read {
        let chunk = into.cut(count);
        self.used = true;
        // One read that fills its buffer makes the next ones big, one that is far from full makes them small again.
        self.big = if self.big { count >= LEFT_MIN_BIG } else { into.spare() == 0 };
        self.filling = Some(into);
        if !fds.is_empty() {
            self.looks.saw_fds();
            return Read::WithFds(chunk, fds);
        }
        // A record was measured: one of no bytes is none the less one.
        if count == 0 && !self.keeps_records() { Read::Eof } else { Read::Bytes(chunk) }
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
        if let (true, false, Some(fd)) = (self.is_socket(), self.shared, &self.fd) {
            // ENOTCONN: its peer has gone already.
            let _ = shutdown(fd.as_raw_fd(), Shutdown::Read);
        }
        self.end_source();
    }

    /// Reads no more, and keeps the fd as it is for the helper who is to plant.
    pub(super) fn want_plant(&mut self) {
        self.source = SourceState::Ended;
        self.filling = None;
        self.held = None;
        self.plant = Plant::Wanted;
    }

    /// Its program has ended its half, and may go without another word.
    pub(super) fn watch_hangup(&mut self, ctx: &mut Ctx, token: u64) {
        let waits = self.is_socket() && !self.sink_closed && self.hangup.is_none();
        if let (true, Some(fd)) = (waits, &self.fd) {
            self.hangup = Some(ctx.engine.submit(Op::Hangup { fd: Rc::clone(fd) }, token));
        }
    }

    /// Both directions end at once. Operations in flight are cancelled; the fd is closed with the last of them.
    /// Returns the recipes that nobody will follow, as `drop_sink`.
    pub(super) fn abort(&mut self, engine: &mut dyn Engine) -> Vec<Recipes> {
        for op in [self.source_op, self.sink_op].into_iter().flatten() {
            engine.cancel(op);
        }
        self.source = SourceState::Ended;
        self.filling = None;
        self.held = None;
        let undelivered = self.drop_sink();
        self.fd = None;
        undelivered
    }
}

/// A small read goes on in its buffer while this much is left: several small requests fit.
const LEFT_MIN: usize = 1 << 10;
/// A big read wants at least half a BULK frame.
const LEFT_MIN_BIG: usize = 32 << 10;
