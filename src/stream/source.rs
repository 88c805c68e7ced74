//! A stream's source: what is to be read next from the local end, and when.
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

/// What comes when there is room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Any,
    /// A peek has found nothing where there is something, a byte of urgent data: a read goes past it. One byte, so that fds
    /// stay where they are.
    Urgent,
    /// So many bytes, in which a peek has seen no fds.
    Seen(u32),
    /// A record of this length.
    Record(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// There is no local end yet.
    Off,
    /// The peer must know what this is before it gets a byte.
    Held,
    /// Nothing is in flight; `poll` says what comes next.
    Idle(Next),
    /// Nothing is there; readiness is to be waited for.
    Dry(Next),
    /// Readiness is waited for, without a buffer.
    Polling(Next),
    /// A read is in flight. `ticked`: it was already at the last tick.
    Reading { ticked: bool },
    /// The window is used up.
    Starved(Next),
    /// No fd was to be had for a client; the next tick tries again.
    Resting,
    /// A helper reads the file, or describes the fds that came.
    WithHelper,
    /// It gives no more. What is still to be done about that.
    Ended(Parting),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parting {
    /// The peer is to hear it.
    SayEof,
    /// The program's writes are to fail with EPIPE from now on.
    ShutReads,
    Nothing,
}

/// The one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flight {
    None,
    Running,
    /// Its end is to be asked for.
    Cancel,
    /// And has been.
    Cancelled,
}

/// Read what is there, then end, whoever still holds the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finishing {
    No,
    /// Whether something is there is to be seen before each read.
    Asks,
    /// Something is.
    Reads,
}

/// What a read needs of buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buffer {
    Small,
    Large,
    /// One that holds all of it.
    Whole,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceAction {
    /// Wait for readiness, without a buffer.
    Poll,
    Accept,
    /// The length of the next record.
    Measure,
    /// See what a `Recv` would take.
    Peek {
        max: u32,
        into: Buffer,
    },
    /// recvmsg(2), fds and all. `dry`: the last one took all that there was.
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
    /// `on_room` comes when there is so much.
    WaitForRoom {
        need: u32,
    },
    /// Tell by `on_left` whether there is anything to be read.
    SeeWhatIsLeft,
    /// End the operation in flight.
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
    /// It took all that there was.
    dry: bool,
    /// Its program closed with something unread; what it had sent before may still be in the queue.
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

    /// There is a local end. The peer may have stopped reading before.
    pub(super) fn attach(&mut self, kind: Kind) {
        match self.state {
            State::Off if kind.row().reads == Reads::Nothing => self.state = State::Ended(Parting::SayEof),
            State::Off => self.state = State::Idle(Next::Any),
            State::Ended(_) => {}
            state => unreachable!("attached once, and not {state:?}"),
        }
    }

    /// Nothing is read before `on_accepted`.
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

    /// A read is in flight that is about to tell how it went.
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

    /// The operation is over. `false`: nobody wants what it brought.
    pub fn on_done(&mut self) -> bool {
        assert!(self.is_in_flight(), "one completion for each operation");
        self.flight = Flight::None;
        !self.is_ended()
    }

    /// Something is there.
    pub fn on_ready(&mut self) {
        let State::Polling(next) = self.state else { unreachable!("a poll in {:?}", self.state) };
        self.state = State::Idle(next);
    }

    /// Nothing was there, or the operation was cancelled.
    pub fn on_nothing(&mut self) {
        self.dry_up(if let State::Polling(next) = self.state { next } else { Next::Any });
    }

    /// A peek found nothing where the kernel had said that there is something.
    pub fn on_unseen(&mut self) {
        self.dry_up(Next::Urgent);
    }

    fn dry_up(&mut self, next: Next) {
        self.state = if self.is_finishing() { State::Idle(next) } else { State::Dry(next) };
    }

    /// A peek saw so many bytes, and no fds. With none at all it is the end, which a read says again.
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

    /// A client came, or a helper has brought what it was to bring.
    pub fn on_brought(&mut self) {
        self.state = State::Idle(Next::Any);
    }

    /// A peek, or a read, met fds: a helper describes them.
    pub fn on_fds(&mut self) {
        self.peek.saw_fds();
        self.state = State::WithHelper;
    }

    /// No fd was to be had for a client, which stays in the queue.
    pub fn on_want_of_fds(&mut self) {
        self.state = State::Resting;
    }

    /// Of records the kernel says once that their program closed with something unread, before those that are still in
    /// the queue. `false`: it has said so before.
    pub fn on_reset_records(&mut self) -> bool {
        self.state = State::Idle(Next::Any);
        !std::mem::replace(&mut self.was_reset, true)
    }

    pub fn on_room(&mut self) {
        if let State::Starved(next) = self.state {
            self.state = State::Idle(next);
        }
    }

    /// Whether something is there to be read, of one that is to finish. `false` ends it, by `end`.
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

    /// A read that is still in flight at a second tick gives its buffer back. Returns whether something is to be done.
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

    /// `room`: so much may be read. `choked`: no fds may be taken.
    pub(super) fn poll(&mut self, kind: Kind, room: u32, choked: bool) -> Option<SourceAction> {
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
                let need = if let Next::Record(len) = next { len.max(1) } else { 1 };
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
            // Fds that nobody may take are to stay where they are.
            (Reads::Socket, _) if self.peek.is_wanted() || choked => SourceAction::Peek { max, into },
            (Reads::Socket, _) => SourceAction::Recv { max, into, dry },
            (Reads::Bytes, _) => SourceAction::Read { max, into },
            (reads @ (Reads::Nothing | Reads::File), _) => unreachable!("{reads:?} is not read here"),
        }
    }
}
