//! A stream between a local end and the peer: a pure state machine.
//!
//! ```text
//!                     ┌──────── Stream ────────┐
//!   on_* (completions,│ Source: end ─▶ mux     │──▶ poll: what is to be done next, until `None`
//!   the mux's events) │ Sink:   mux ─▶ end     │
//!                     └────────────────────────┘
//! ```
//!
//! No fd, no engine, no clock: the driver (link/worker) owns the local end, does what `poll` says, and tells what came of
//! it. What needs both halves is here: which end is a shutdown and which a close, and a close that must be a reset.

mod budget;
mod kind;
mod peek;
mod pieces;
mod sink;
mod source;
#[cfg(test)]
mod tests;

use std::fmt;

pub use budget::{Budget, Share};
pub use kind::{AtCommandEnd, Kind, Reads, WhenDeaf, Writes};
pub use pieces::Arrival;
pub use sink::{Payloads, Progress, SinkAction};
pub use source::{Buffer, SourceAction};

use crate::errno::Errno;
use crate::mux::{Key, Payload};
use sink::Sink;
use source::Source;

/// The peer's program closed with something unread, so that the close here must be a reset (`sys::unread`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ForcedReset {
    No,
    /// A helper that looks for fds must end first.
    AfterHelper,
    /// The read in flight must end first: it would take the byte.
    AfterRead,
    /// A helper is at it.
    Working,
    /// The local end is closed next; a shutdown before it would be seen first, as an orderly end.
    Done,
}

/// The wait for the end of a program that has ended its half, and may go without another word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hangup {
    Off,
    Wanted,
    Watching,
    Cancelled,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Action<P> {
    Source(SourceAction),
    Sink(SinkAction<P>),
    /// Have a helper make the close that comes a reset for the program.
    ForceReset,
    /// The program sees the end of what it reads. `unless_alone`: the close does that, if nobody else holds the socket.
    ShutWrites {
        unless_alone: bool,
    },
    /// The memory has got all its bytes.
    FinishFill,
    /// Tell when the program is gone.
    WatchHangup,
    CancelHangup,
}

pub struct Stream<P> {
    key: Key,
    kind: Option<Kind>,
    /// A program of this machine may hold the same socket: its end here is a close, and not a shutdown.
    shared: bool,
    /// Bytes came or went since the last look, and queues may have grown.
    used: bool,
    aborted: bool,
    source: Source,
    sink: Sink<P>,
    reset: ForcedReset,
    hangup: Hangup,
}

impl<P> fmt::Debug for Stream<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, kind, source, sink, reset, hangup, .. } = self;
        write!(f, "{key:?} {kind:?}: {source:?}, {sink:?}, {reset:?}, {hangup:?}")
    }
}

impl<P: Payload> Stream<P> {
    /// Without a local end.
    pub fn new(key: Key) -> Self {
        Self {
            key,
            kind: None,
            shared: false,
            used: false,
            aborted: false,
            source: Source::new(),
            sink: Sink::new(),
            reset: ForcedReset::No,
            hangup: Hangup::Off,
        }
    }

    pub fn key(&self) -> Key {
        self.key
    }

    pub fn kind(&self) -> Option<Kind> {
        self.kind
    }

    /// A program of this machine may hold the local end's socket too.
    pub fn share(&mut self) {
        self.shared = true;
    }

    /// There is a local end.
    ///
    /// # Errors
    /// As `on_data`, of what came before.
    pub fn attach(&mut self, kind: Kind, records: &Budget) -> Result<(), Errno> {
        assert!(self.kind.replace(kind).is_none(), "one local end a stream");
        self.source.attach(kind);
        self.sink.attach(kind, records)
    }

    /// Nothing is read before the peer's yes: it must know what this is first.
    pub fn hold(&mut self) {
        self.source.hold();
    }

    fn is(&self, what: impl FnOnce(Kind) -> bool) -> bool {
        self.kind.is_some_and(what)
    }

    /// Whether its records keep apart.
    pub fn keeps_records(&self) -> bool {
        self.is(Kind::keeps_records)
    }

    // ---- what it is at -------------------------------------------------------------------------------------------

    /// Both directions are over: the local end has no use any more.
    pub fn is_closed(&self) -> bool {
        self.source.is_ended() && self.sink.is_closed() && (self.kind != Some(Kind::Listening) || self.aborted)
    }

    /// And the kernel holds nothing of it.
    pub fn is_over(&self) -> bool {
        let idle = !self.source.is_in_flight() && !self.sink.is_in_flight();
        self.is_closed() && idle && matches!(self.hangup, Hangup::Off | Hangup::Wanted)
    }

    /// Whether its end needs nobody but its program and the kernel: no other stream, nor a helper's answer that would be
    /// refused once the session has ended.
    pub fn ends_alone(&self) -> bool {
        self.source.is_ended() && self.sink.ends_alone() && self.kind != Some(Kind::Listening)
    }

    pub fn is_deaf(&self) -> bool {
        self.sink.is_closed()
    }

    pub fn is_source_ended(&self) -> bool {
        self.source.is_ended()
    }

    /// Whether a helper may bring something for the source.
    pub fn awaits_helper(&self) -> bool {
        self.source.is_with_helper()
    }

    /// What it holds of the session's budget of records.
    pub fn held_records(&self) -> u64 {
        self.sink.held_records()
    }

    /// Whether bytes have come or gone since the last tick, and all have gone. The queue keeps no room then.
    pub fn shrink(&mut self) -> bool {
        let shrinks = self.used && self.sink.is_empty();
        if shrinks {
            self.used = false;
            self.sink.shrink();
        }
        shrinks
    }
}

mod inputs;
mod outputs;
