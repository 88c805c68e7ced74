//! A stream between a local end and the peer: a pure state machine.
//!
//! ```text
//!                     ┌──────── Stream ────────┐
//!   on_* (completions,│ Source: end ─▶ mux     │──▶ poll: what is to be done next, until `None`
//!   the mux's events) │ Sink:   mux ─▶ end     │
//!                     └────────────────────────┘
//! ```
//!
//! The stream knows no fd, engine or clock. The driver (link/worker) owns the local end, performs the actions that `poll`
//! returns and reports the results. `Stream` decides what concerns both halves: whether an end is a shutdown or a close,
//! and when a close must look like a reset.

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
pub use sink::{Payloads, Progress, Sink, SinkAction};
pub use source::{Buffer, Source, SourceAction};

use crate::errno::Errno;
use crate::mux::{Key, Mux, Payload};
use source::Parting;

/// The peer's program closed its socket with unread data, so this program must see ECONNRESET (`sys::unread`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ForcedReset {
    No,
    /// Waiting for a helper that still reads from the socket.
    AfterHelper,
    /// Waiting for the read in flight, which would consume the planted byte.
    AfterRead,
    /// A helper plants the unread byte.
    Working,
    /// The close follows. A shutdown before it would be seen as an orderly end.
    Done,
}

/// The wait for POLLHUP of a program that has shut down its writing half.
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
    /// Have a helper turn the close that follows into a reset for the program.
    ForceReset,
    /// shutdown(SHUT_WR). `unless_alone`: skip it if this process has the only reference, because the close does the same.
    ShutWrites {
        unless_alone: bool,
    },
    /// All bytes of the memfd were written: seal it.
    FinishFill,
    /// Wait for the program's hang-up.
    WatchHangup,
    CancelHangup,
}

pub struct Stream<P> {
    key: Key,
    kind: Option<Kind>,
    /// A program of this machine may hold the same socket: its end here is a close, and not a shutdown.
    shared: bool,
    /// Something was done for it since the last tick, and queues may have grown.
    used: bool,
    aborted: bool,
    pub source: Source,
    pub sink: Sink<P>,
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

    /// Marks the local end as a socket that a program of this machine may hold too.
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

    /// Whether something was done for it since the last tick, and all that came has gone. The queue keeps no room then.
    pub fn shrink(&mut self) -> bool {
        let shrinks = self.used && self.sink.is_empty();
        if shrinks {
            self.used = false;
            self.sink.shrink();
        }
        shrinks
    }

    // ---- what happened to both halves ----------------------------------------------------------------------------

    /// The peer's program does not read what this source gives. If it closed with something unread, this program's next
    /// read must say ECONNRESET, as a local socket's would.
    pub fn on_read_closed(&mut self, unread: bool) {
        let ours = self.is(Kind::is_socket) && !self.shared;
        if unread && ours && !self.source.is_ended() {
            let helped = self.source.is_with_helper();
            self.reset = if helped { ForcedReset::AfterHelper } else { ForcedReset::AfterRead };
            return self.source.end(Parting::Nothing);
        }
        self.source.end(Parting::ShutReads);
    }

    /// The source has ended. `unread`: its program left something unread. `gone`: it is gone altogether, not only half
    /// of it.
    pub fn on_eof(&mut self, unread: bool, gone: bool) {
        let unread = unread || self.source.was_reset();
        // A master reads its end when nobody has the slave open: nothing can be written to it either.
        let hung_up = self.kind == Some(Kind::Master) || unread || gone;
        let finishes = self.source.is_finishing() && self.is(Kind::is_socket);
        self.source.end(Parting::SayEof);
        if hung_up || finishes {
            self.sink.close(Some(unread));
        } else if self.is(Kind::is_socket) && !self.sink.is_closed() && self.hangup == Hangup::Off {
            self.hangup = Hangup::Wanted;
        }
    }

    /// What `WatchHangup` waited for has come, or was cancelled. `true`: the program is gone, `on_hung_up` is to follow.
    pub fn on_hangup_done(&mut self, gone: bool) -> bool {
        assert!(matches!(self.hangup, Hangup::Watching | Hangup::Cancelled), "one completion for each wait");
        self.hangup = Hangup::Off;
        gone && !self.sink.is_closed()
    }

    /// A program that had ended its half is gone. `unread`: it left something unread.
    pub fn on_hung_up(&mut self, unread: bool) {
        self.sink.close(Some(unread));
    }

    /// Nobody takes what comes. `gone`: the program is gone altogether, and a read in flight is about to tell how.
    ///
    /// # Errors
    /// The stream is to be reset.
    pub fn on_deaf(&mut self, errno: Errno, gone: impl FnOnce() -> bool) -> Result<(), Errno> {
        if self.is(|kind| kind.row().when_deaf == WhenDeaf::Reset) {
            return Err(errno);
        }
        let says = if self.source.is_reading() && gone() { None } else { Some(false) };
        self.sink.close(says);
        Ok(())
    }

    /// The helper that looked for fds is through. `true`: only that was waited for.
    pub fn on_helper_done(&mut self) -> bool {
        let waited = self.reset == ForcedReset::AfterHelper;
        if waited {
            self.reset = ForcedReset::AfterRead;
        }
        waited
    }

    /// What could be done to make the close a reset has been done.
    pub fn on_reset_forced(&mut self) {
        if self.reset == ForcedReset::Working {
            self.reset = ForcedReset::Done;
            self.source.end(Parting::ShutReads);
        }
    }

    /// Both directions end at once.
    pub fn abort(&mut self) {
        self.aborted = true;
        self.source.end(Parting::Nothing);
        self.sink.close(None);
    }

    /// Returns whether something is to be done.
    pub fn tick(&mut self) -> bool {
        self.kind.is_some_and(|kind| self.source.tick(kind))
    }

    // ---- what is to be done --------------------------------------------------------------------------------------

    /// The next thing to be done, until there is none. `choked`: no fds may be taken. `speaks`: what is written goes out
    /// under its sender's name.
    pub fn poll(&mut self, mux: &Mux<P>, choked: bool, speaks: bool) -> Option<Action<P>> {
        let action = self.next(mux, choked, speaks);
        self.used |= action.is_some();
        action
    }

    fn next(&mut self, mux: &Mux<P>, choked: bool, speaks: bool) -> Option<Action<P>> {
        if let Some(kind) = self.kind
            && let Some(action) = self.poll_source(kind, mux, choked)
        {
            return Some(Action::Source(action));
        }
        if self.reset == ForcedReset::AfterRead && !self.source.is_in_flight() {
            self.reset = ForcedReset::Working;
            return Some(Action::ForceReset);
        }
        if let Some(action) = self.poll_close() {
            return Some(action);
        }
        let key = self.key;
        if let Some(action) = self.sink.poll(|count| mux.tells_of(key, count), speaks) {
            return Some(Action::Sink(action));
        }
        self.poll_hangup()
    }

    fn poll_source(&mut self, kind: Kind, mux: &Mux<P>, choked: bool) -> Option<SourceAction> {
        let key = self.key;
        let room = || match kind.row().reads {
            Reads::Clients => u32::from(mux.is_open(key)),
            _ => mux.room(key),
        };
        match self.source.poll(kind, room, choked)? {
            // Of a stream that is closed the close has done it, and there may be no fd any more.
            SourceAction::ShutReads if !kind.is_socket() || self.shared || self.is_closed() => None,
            action => Some(action),
        }
    }

    /// After FIN, when all is written: the program sees the end.
    fn poll_close(&mut self) -> Option<Action<P>> {
        use ForcedReset::{AfterHelper, AfterRead, Working};
        if !self.sink.is_done() || matches!(self.reset, AfterHelper | AfterRead | Working) {
            return None;
        }
        self.sink.close(None);
        if self.kind == Some(Kind::Fill) {
            return Some(Action::FinishFill);
        }
        // When both directions have ended over there, it was a close: other holders of a shared socket must not feel it.
        let ended = self.source.is_ended();
        let closes = self.reset == ForcedReset::Done || (ended && self.shared);
        // One that nobody else holds is shut down by its close; a helper that takes fds out of it holds another number of
        // it.
        let unless_alone = ended && !self.source.has_seen_fds();
        (self.is(Kind::is_socket) && !closes).then_some(Action::ShutWrites { unless_alone })
    }

    fn poll_hangup(&mut self) -> Option<Action<P>> {
        match self.hangup {
            Hangup::Wanted if self.sink.is_closed() => {
                self.hangup = Hangup::Off;
                None
            }
            Hangup::Wanted => {
                self.hangup = Hangup::Watching;
                Some(Action::WatchHangup)
            }
            Hangup::Watching if self.sink.is_closed() => {
                self.hangup = Hangup::Cancelled;
                Some(Action::CancelHangup)
            }
            _ => None,
        }
    }
}
