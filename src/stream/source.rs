//! A stream's source: decides what to read next from the local end, and when.
//!
//! ```text
//!   Off ─▶ Idle ─read─▶ Reading ─bytes─▶ Idle ...            an fd in the message: WithHelper ─described─▶ Idle
//!           │ ▲            └─nothing there─▶ Dry ─▶ Polling ─readable─▶ Idle      (cold: no buffer is held)
//!           │ └─MayRead── Starved ◀── no room                EOF, error, nobody reads: Ended, from anywhere
//! ```
//!
//! A stream socket's reads may be preceded by a peek for fds (peek.rs): a read that met bytes and then fds could not tell
//! where the fds belong. A record is measured before it is read. At most one operation is in flight.

use super::kind::{Kind, Reads};
use super::peek::PeekPolicy;
use crate::limits::BULK_FRAME_MAX;

/// The next read, once the window has room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Any,
    /// One byte. poll(2) reported data that MSG_PEEK cannot see: urgent data. A read passes it, and one byte leaves fds behind
    /// it in place.
    Urgent,
    /// This many bytes, which a peek found free of fds.
    Seen(u32),
    /// A record of this length.
    Record(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// There is no local end yet.
    Off,
    /// Nothing is read before the peer has accepted the stream.
    Held,
    /// No operation is in flight; `poll` returns the next one.
    Idle(Next),
    /// The local end is empty; `poll` returns a wait for readiness.
    Dry(Next),
    /// A wait for readiness is in flight. It holds no buffer.
    Polling(Next),
    /// A read is in flight. `ticked`: it was in flight at the last tick too.
    Reading { ticked: bool },
    /// The window is used up; `on_room` continues.
    Starved(Next),
    /// accept(2) found no free fd. The next tick tries again.
    Resting,
    /// A helper thread reads the file, or describes received fds.
    WithHelper,
    /// Nothing more is read. The action that must still follow.
    Ended(Parting),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parting {
    /// Tell the peer (FIN).
    SayEof,
    /// Make the program's writes fail with EPIPE.
    ShutReads,
    Nothing,
}

/// State of the one operation that may be in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flight {
    None,
    Running,
    /// `poll` returns the cancellation.
    Cancel,
    /// The cancellation was requested.
    Cancelled,
}

/// Whether the source ends once it is empty, even if another process still holds the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finishing {
    No,
    /// `poll` asks whether anything is left before it reads.
    Asks,
    /// Something is left.
    Reads,
}

/// The buffer that a read needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buffer {
    Small,
    Large,
    /// One that holds `max` bytes.
    Whole,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceAction {
    /// Wait for readiness without a buffer.
    Poll,
    Accept,
    /// The length of the next record.
    Measure,
    /// Find out with MSG_PEEK what a `Recv` would return.
    Peek {
        max: u32,
        into: Buffer,
    },
    /// recvmsg(2) with fds. `dry`: the last one emptied the socket.
    Recv {
        max: u32,
        into: Buffer,
        dry: bool,
    },
    /// read(2).
    Read {
        max: u32,
        into: Buffer,
    },
    /// read(2) by a helper.
    ReadFile {
        max: u32,
    },
    /// Call `on_room` once the window has `need` bytes.
    WaitForRoom {
        need: u32,
    },
    /// Call `on_left` if anything is left to be read, or report the end.
    SeeWhatIsLeft,
    /// Cancel the operation in flight.
    Cancel,
    SayEof,
    ShutReads,
}

#[derive(Debug)]
pub struct Source {
    state: State,
    flight: Flight,
    finishing: Finishing,
    peek: PeekPolicy,
    /// The last read filled its buffer.
    big: bool,
    /// The last read emptied the local end.
    dry: bool,
    /// The program closed its socket with unread data (ECONNRESET). Records that it sent before may still be queued.
    was_reset: bool,
}

/// A big read that brings less than this makes the next ones small again: half a BULK frame.
const BIG_MIN: usize = BULK_FRAME_MAX as usize / 2;

impl Source {
    pub(super) fn new() -> Self {
        Self {
            state: State::Off,
            flight: Flight::None,
            finishing: Finishing::No,
            peek: PeekPolicy::default(),
            big: false,
            dry: false,
            was_reset: false,
        }
    }

    /// Attaches the local end. The peer may have stopped reading already.
    pub(super) fn attach(&mut self, kind: Kind) {
        match self.state {
            State::Off if kind.row().reads == Reads::Nothing => self.state = State::Ended(Parting::SayEof),
            State::Off => self.state = State::Idle(Next::Any),
            State::Ended(_) => {}
            state => unreachable!("attached once, and not {state:?}"),
        }
    }

    /// Delays reads until `on_accepted`.
    pub fn hold(&mut self) {
        if let State::Idle(_) = self.state {
            self.state = State::Held;
        }
    }

    pub fn on_accepted(&mut self) {
        if self.state == State::Held {
            self.state = State::Idle(Next::Any);
        }
    }

    pub fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended(_))
    }

    pub fn is_with_helper(&self) -> bool {
        self.state == State::WithHelper
    }

    pub(super) fn is_in_flight(&self) -> bool {
        self.flight != Flight::None
    }

    /// A read is in flight and its result is still wanted.
    pub(super) fn is_reading(&self) -> bool {
        self.is_in_flight() && !self.is_ended()
    }

    pub(super) fn is_finishing(&self) -> bool {
        self.finishing != Finishing::No
    }

    pub(super) fn has_seen_fds(&self) -> bool {
        self.peek.has_seen_fds()
    }

    pub(super) fn was_reset(&self) -> bool {
        self.was_reset
    }

    // ---- what happened -------------------------------------------------------------------------------------------

    /// The operation completed. Returns false if its result is not wanted any more.
    pub fn on_done(&mut self) -> bool {
        assert!(self.is_in_flight(), "one completion for each operation");
        self.flight = Flight::None;
        !self.is_ended()
    }

    /// The local end is readable.
    pub fn on_ready(&mut self) {
        let State::Polling(next) = self.state else { unreachable!("a poll in {:?}", self.state) };
        self.state = State::Idle(next);
    }

    /// The local end was empty, or the operation was cancelled.
    pub fn on_nothing(&mut self) {
        self.dry_up(if let State::Polling(next) = self.state { next } else { Next::Any });
    }

    /// A peek found nothing although poll(2) had reported data.
    pub fn on_unseen(&mut self) {
        self.dry_up(Next::Urgent);
    }

    fn dry_up(&mut self, next: Next) {
        self.state = if self.is_finishing() { State::Idle(next) } else { State::Dry(next) };
    }

    /// A peek found `count` bytes and no fds. Zero bytes is the end of the stream, which the next read reports.
    pub fn on_seen(&mut self, count: u32) {
        self.peek.saw_bytes();
        self.state = State::Idle(Next::Seen(count.max(1)));
    }

    pub fn on_measured(&mut self, len: u32) {
        self.state = State::Idle(Next::Record(len));
    }

    /// A read of at most `max` brought `count`. `filled`: its buffer has no room left.
    pub fn on_bytes(&mut self, count: usize, max: usize, filled: bool) {
        self.dry = count < max;
        // One read that fills its buffer makes the next ones big, one that is far from full makes them small again.
        self.big = if self.big { count >= BIG_MIN } else { filled };
        self.state = State::Idle(Next::Any);
    }

    /// A client was accepted, or a helper delivered its result.
    pub fn on_brought(&mut self) {
        self.state = State::Idle(Next::Any);
    }

    /// A peek or read found fds, and a helper describes them.
    pub fn on_fds(&mut self) {
        self.peek.saw_fds();
        self.state = State::WithHelper;
    }

    /// accept(2) found no free fd. The client stays in the queue.
    pub fn on_want_of_fds(&mut self) {
        self.state = State::Resting;
    }

    /// A record socket reported ECONNRESET. The kernel reports it once, before the records that are still queued. Returns
    /// false the second time.
    pub fn on_reset_records(&mut self) -> bool {
        self.state = State::Idle(Next::Any);
        !std::mem::replace(&mut self.was_reset, true)
    }

    pub fn on_room(&mut self) {
        if let State::Starved(next) = self.state {
            self.state = State::Idle(next);
        }
    }

    /// A finishing source has something left to read.
    pub fn on_left(&mut self) {
        self.finishing = Finishing::Reads;
    }

    pub fn finish(&mut self) {
        self.finishing = Finishing::Asks;
        self.cancel();
        if let State::Dry(next) = self.state {
            self.state = State::Idle(next);
        }
    }

    pub(super) fn end(&mut self, parting: Parting) {
        self.state = State::Ended(parting);
        self.cancel();
    }

    fn cancel(&mut self) {
        if self.flight == Flight::Running {
            self.flight = Flight::Cancel;
        }
    }

    /// Cancels a read that has been in flight for two ticks, so that it frees its buffer. Returns whether `poll` has an action.
    pub(super) fn tick(&mut self, kind: Kind) -> bool {
        self.peek.tick();
        match self.state {
            State::Reading { ticked: true } if !kind.is_listener() => self.cancel(),
            State::Reading { .. } => self.state = State::Reading { ticked: true },
            State::Resting => self.state = State::Idle(Next::Any),
            _ => {}
        }
        self.flight == Flight::Cancel || matches!(self.state, State::Idle(_))
    }

    // ---- what is to be done --------------------------------------------------------------------------------------

    /// `room`: asked for the bytes that the window allows. `choked`: fds must not be received.
    pub(super) fn poll(&mut self, kind: Kind, room: impl FnOnce() -> u32, choked: bool) -> Option<SourceAction> {
        if self.flight == Flight::Cancel {
            self.flight = Flight::Cancelled;
            return Some(SourceAction::Cancel);
        }
        match self.state {
            State::Ended(parting) => {
                self.state = State::Ended(Parting::Nothing);
                match parting {
                    Parting::SayEof => Some(SourceAction::SayEof),
                    Parting::ShutReads => Some(SourceAction::ShutReads),
                    Parting::Nothing => None,
                }
            }
            State::Dry(next) => {
                self.state = State::Polling(next);
                self.launch();
                Some(SourceAction::Poll)
            }
            State::Idle(_) if self.finishing == Finishing::Asks => Some(SourceAction::SeeWhatIsLeft),
            State::Idle(next) => {
                let (need, room) = (if let Next::Record(len) = next { len.max(1) } else { 1 }, room());
                if room < need {
                    self.state = State::Starved(next);
                    return Some(SourceAction::WaitForRoom { need });
                }
                if self.is_finishing() {
                    self.finishing = Finishing::Asks;
                }
                Some(self.read(kind, next, room, choked))
            }
            _ => None,
        }
    }

    fn launch(&mut self) {
        assert!(!self.is_in_flight(), "one operation of a source");
        self.flight = Flight::Running;
    }

    fn read(&mut self, kind: Kind, next: Next, room: u32, choked: bool) -> SourceAction {
        let dry = std::mem::take(&mut self.dry);
        let max = room.min(BULK_FRAME_MAX);
        if kind.row().reads == Reads::File {
            self.state = State::WithHelper;
            return SourceAction::ReadFile { max };
        }
        self.state = State::Reading { ticked: false };
        self.launch();
        let into = if self.big { Buffer::Large } else { Buffer::Small };
        match (kind.row().reads, next) {
            (Reads::Clients, _) => SourceAction::Accept,
            (Reads::Records, Next::Record(max)) if choked => SourceAction::Peek { max, into: Buffer::Whole },
            (Reads::Records, Next::Record(max) | Next::Seen(max)) => {
                SourceAction::Recv { max, into: Buffer::Whole, dry: false }
            }
            (Reads::Records, _) => SourceAction::Measure,
            (Reads::Socket, Next::Seen(max)) => SourceAction::Recv { max, into, dry: false },
            (Reads::Socket, Next::Urgent) => SourceAction::Recv { max: 1, into, dry: false },
            // While fds must not be received, they stay in the socket.
            (Reads::Socket, _) if self.peek.is_wanted() || choked => SourceAction::Peek { max, into },
            (Reads::Socket, _) => SourceAction::Recv { max, into, dry },
            (Reads::Bytes, _) => SourceAction::Read { max, into },
            (reads @ (Reads::Nothing | Reads::File), _) => unreachable!("{reads:?} is not read here"),
        }
    }
}
