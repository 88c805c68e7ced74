//! A stream's sink: writes what the peer sent to the local end.
//!
//! ```text
//!   Off ─▶ Idle ─▶ Writing ─written─▶ Idle ...      fds in front: Rebuilding ─made─▶ Idle
//!           ├─▶ WritingFile ─written─▶ Idle
//!           └── FIN and all is written, nobody reads, aborted ──▶ Closed, from anywhere
//! ```
//!
//! One write is in flight at a time. A message with fds waits until a helper has made the fds and filled their memory.

use std::collections::VecDeque;
use std::fmt;

use super::budget::{Budget, Share};
use super::kind::{Kind, Writes};
use super::pieces::{self, Arrival, Assembly, Item};
use crate::errno::Errno;
use crate::limits::{BULK_BATCH, GATHER_MAX};
use crate::mux::{Payload, Recipes};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No local end is attached.
    Off,
    /// No write is in flight.
    Idle,
    /// A write is in flight.
    Writing,
    /// A helper makes the fds of the first message.
    Rebuilding,
    /// A helper writes this many bytes to a file.
    WritingFile { bytes: u32 },
    /// Nothing more is written.
    Closed,
}

/// State of the one write that may be in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flight {
    None,
    Running,
    /// Its success does not wake the worker.
    Quiet,
    Cancelled,
}

#[derive(Debug, PartialEq, Eq)]
pub enum SinkAction<P> {
    /// send(2) or write(2). `fds`: with the fds that were made for this message. `quiet`: its success need not wake the worker.
    Write { payloads: Payloads<P>, fds: bool, quiet: bool },
    /// write(2) by a helper.
    WriteFile(Vec<u8>),
    /// Have a helper make the fds of the first message.
    Rebuild(Recipes),
    /// Something now waits for the quiet write: flush it.
    Hurry,
    /// Cancel the write in flight.
    Cancel,
    /// Tell the peer that nobody reads. `unread`: the program left unread data.
    SayReadClosed { unread: bool },
    /// These recipes will not be used: refuse the streams that they announce.
    Refuse(Recipes),
    /// Nothing more is written: close fds that were made for a message.
    Closed,
}

/// One payload, or several that are written together.
#[derive(Debug, PartialEq, Eq)]
pub enum Payloads<P> {
    One(P),
    Message(Vec<P>),
}

/// Result of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Partly written; the rest is in flight again.
    Part,
    All,
}

/// How data enters the queue.
enum Inflow<P> {
    /// No local end is attached, so data is only kept.
    Early(Vec<Arrival<P>>),
    Bytes,
    /// Boxed, because thousands of idle streams must stay small.
    Records(Option<Box<Assembly<P>>>, Box<Share>),
}

pub struct Sink<P> {
    kind: Option<Kind>,
    state: State,
    flight: Flight,
    inflow: Inflow<P>,
    queue: VecDeque<Item<P>>,
    /// Credit charged for the write in flight, besides its bytes.
    charges: u32,
    /// Number of memfds that must be filled before the first message is written.
    fills: u32,
    /// The peer has sent FIN.
    fin: bool,
    /// READ_CLOSED that must still be sent, with its `unread` flag.
    says: Option<bool>,
    /// The `Closed` action must still be returned.
    closing: bool,
}

impl<P> fmt::Debug for Sink<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { state, flight, queue, fin, fills, .. } = self;
        write!(f, "{state:?} {flight:?}, {} wait, fin {fin}, {fills} fills", queue.len())
    }
}

impl<P: Payload> Sink<P> {
    pub(super) fn new() -> Self {
        Self {
            kind: None,
            state: State::Off,
            flight: Flight::None,
            inflow: Inflow::Early(Vec::new()),
            queue: VecDeque::new(),
            charges: 0,
            fills: 0,
            fin: false,
            says: None,
            closing: false,
        }
    }

    /// There is a local end: takes in what came before.
    ///
    /// # Errors
    /// As `take_in`.
    pub(super) fn attach(&mut self, kind: Kind, records: &Budget) -> Result<(), Errno> {
        self.kind = Some(kind);
        if self.state != State::Off {
            return Ok(());
        }
        if kind.row().writes == Writes::Nothing {
            let deaf = matches!(&self.inflow, Inflow::Early(early) if !early.is_empty());
            self.close(deaf.then_some(false));
            return Ok(());
        }
        self.state = State::Idle;
        let inflow = if kind.keeps_records() { Inflow::Records(None, records.share()) } else { Inflow::Bytes };
        let Inflow::Early(early) = std::mem::replace(&mut self.inflow, inflow) else { unreachable!("it was off") };
        early.into_iter().try_for_each(|arrival| self.take_in(arrival))
    }

    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    pub(super) fn is_in_flight(&self) -> bool {
        self.flight != Flight::None
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The queue keeps no room.
    pub(super) fn shrink(&mut self) {
        self.queue.shrink_to(0);
    }

    /// What it holds of the session's budget of records.
    pub fn held_records(&self) -> u64 {
        if let Inflow::Records(_, share) = &self.inflow { share.held() } else { 0 }
    }

    /// Whether all that came can be written without another stream's or a helper's doing.
    pub(super) fn ends_alone(&self) -> bool {
        let waits = self.state == State::Rebuilding || self.fills > 0;
        let fds = self.queue.iter().any(Item::has_recipes);
        self.is_closed() || (self.fin && self.state != State::Off && !waits && !fds)
    }

    // ---- what happened -------------------------------------------------------------------------------------------

    /// A fragment came. Of a sink that is closed nobody may come here.
    ///
    /// # Errors
    /// EMSGSIZE: a record longer than any may be. EPROTO: fds for something that is no socket.
    pub fn take_in(&mut self, arrival: Arrival<P>) -> Result<(), Errno> {
        assert!(!self.is_closed(), "nothing is taken in behind the end");
        if arrival.recipes.is_some() && self.kind.is_some_and(|kind| !kind.is_socket()) {
            return Err(Errno::EPROTO);
        }
        match &mut self.inflow {
            Inflow::Early(early) => pieces::keep_early(early, arrival),
            Inflow::Records(assembly, share) => {
                share.add(arrival.payload.len() as u64 + u64::from(arrival.overhead));
                let ends = arrival.record_end;
                let assembly = assembly.get_or_insert_default();
                assembly.add(arrival)?;
                if ends {
                    self.queue.push_back(assembly.take());
                }
            }
            Inflow::Bytes => self.push_bytes(arrival),
        }
        Ok(())
    }

    fn push_bytes(&mut self, Arrival { payload, recipes, overhead, .. }: Arrival<P>) {
        if recipes.is_some() {
            self.queue.push_back(Item::message(recipes, vec![payload], overhead));
        } else if self.queue.len() < GATHER_MAX || !pieces::merge(self.queue.back_mut(), &payload, overhead) {
            self.queue.push_back(Item::Bytes { payload, overhead });
        }
    }

    pub fn on_fin(&mut self) {
        self.fin = true;
    }

    /// Bytes left. Returns how many, with the charges, if anybody still counts.
    pub fn on_written(&mut self, count: u32, progress: Progress) -> Option<u32> {
        assert!(self.is_in_flight(), "one completion for each write");
        let rest = progress == Progress::Part;
        self.flight = match self.flight {
            // What was to be told of goes on loudly.
            Flight::Running | Flight::Quiet if rest => Flight::Running,
            Flight::Cancelled if rest => Flight::Cancelled,
            _ => Flight::None,
        };
        if self.is_closed() {
            return None;
        }
        assert!(self.state == State::Writing, "a write of {:?}", self.state);
        let mut taken = count;
        if !rest {
            self.state = State::Idle;
            taken += std::mem::take(&mut self.charges);
        }
        if let Inflow::Records(_, share) = &mut self.inflow {
            share.sub(u64::from(taken));
        }
        Some(taken)
    }

    /// The write failed: it is over. `false`: nobody asks any more.
    pub fn on_failed(&mut self) -> bool {
        assert!(self.is_in_flight(), "one completion for each write");
        self.flight = Flight::None;
        !self.is_closed()
    }

    /// A helper has written to the file. Returns how much left, with the charges.
    pub fn on_file_written(&mut self) -> Option<u32> {
        let State::WritingFile { bytes } = self.state else { return None };
        self.state = State::Idle;
        Some(bytes + std::mem::take(&mut self.charges))
    }

    /// A helper has made the fds of the message in front. `fills`: so much memory must be whole before it may leave.
    /// `false`: it will never leave.
    pub fn on_made(&mut self, fills: u32) -> bool {
        if self.state != State::Rebuilding {
            return false;
        }
        let Some(Item::Message { made, .. }) = self.queue.front_mut() else {
            unreachable!("the message stays in front while its fds are made");
        };
        *made = true;
        self.fills = fills;
        self.state = State::Idle;
        true
    }

    pub fn is_rebuilding(&self) -> bool {
        self.state == State::Rebuilding
    }

    /// Memory that the message in front names is whole.
    pub fn on_filled(&mut self) {
        self.fills = self.fills.checked_sub(1).expect("told once for each");
    }

    /// Nothing more is written. `says`: what the peer is to hear, whether its program left something unread.
    pub(super) fn close(&mut self, says: Option<bool>) {
        self.says = says.or(self.says);
        self.closing |= self.state != State::Closed;
        self.state = State::Closed;
    }

    // ---- what is to be done --------------------------------------------------------------------------------------

    /// Whether FIN came and all is written.
    pub(super) fn is_done(&self) -> bool {
        self.fin && self.state == State::Idle && self.queue.is_empty()
    }

    /// `hears`: whether the peer is to hear of so much having been written.
    pub(super) fn poll(&mut self, hears: impl FnOnce(u32) -> bool, speaks: bool) -> Option<SinkAction<P>> {
        if self.flight == Flight::Quiet && (!self.queue.is_empty() || self.fin || self.is_closed()) {
            self.flight = Flight::Running;
            return Some(SinkAction::Hurry);
        }
        match self.state {
            State::Closed => self.poll_closed(),
            State::Idle if self.fills == 0 => self.write(hears, speaks),
            _ => None,
        }
    }

    fn poll_closed(&mut self) -> Option<SinkAction<P>> {
        if self.flight == Flight::Running {
            self.flight = Flight::Cancelled;
            return Some(SinkAction::Cancel);
        }
        if let Some(unread) = self.says.take() {
            return Some(SinkAction::SayReadClosed { unread });
        }
        while let Some(item) = self.queue.pop_front() {
            if let Item::Message { recipes: Some(recipes), .. } = item {
                return Some(SinkAction::Refuse(recipes));
            }
        }
        let recipes = match &mut self.inflow {
            Inflow::Early(early) => std::iter::from_fn(|| early.pop()).find_map(|arrival| arrival.recipes),
            Inflow::Records(assembly, _) => assembly.take().and_then(|assembly| assembly.into_recipes()),
            Inflow::Bytes => None,
        };
        if let Some(recipes) = recipes {
            return Some(SinkAction::Refuse(recipes));
        }
        self.inflow = Inflow::Bytes;
        std::mem::take(&mut self.closing).then_some(SinkAction::Closed)
    }

    fn write(&mut self, hears: impl FnOnce(u32) -> bool, speaks: bool) -> Option<SinkAction<P>> {
        let kind = self.kind?;
        if kind.row().writes == Writes::File {
            return self.write_file();
        }
        if let Item::Message { recipes: recipes @ Some(_), .. } = self.queue.front_mut()? {
            self.state = State::Rebuilding;
            return recipes.take().map(SinkAction::Rebuild);
        }
        let (payloads, fds) = match self.queue.pop_front()? {
            Item::Message { payloads, made, overhead, .. } => {
                self.charges = overhead;
                (Payloads::Message(payloads), made)
            }
            Item::Bytes { payload, overhead } => {
                self.charges = overhead;
                let more = matches!(self.queue.front(), Some(Item::Bytes { .. }));
                match kind.is_socket() && (more || speaks) {
                    true => (Payloads::Message(self.gather(payload)), false),
                    false => (Payloads::One(payload), false),
                }
            }
        };
        let quiet = match &payloads {
            // Nothing waits for its end: no more bytes, no close, and no credit.
            Payloads::One(payload) if kind.is_socket() && self.queue.is_empty() && !self.fin => {
                let len = u32::try_from(payload.len()).expect("a payload is a frame's, or less");
                !hears(len + self.charges)
            }
            _ => false,
        };
        self.state = State::Writing;
        assert!(!self.is_in_flight(), "one write of a sink");
        self.flight = if quiet { Flight::Quiet } else { Flight::Running };
        Some(SinkAction::Write { payloads, fds, quiet })
    }

    fn gather(&mut self, first: P) -> Vec<P> {
        let mut payloads = vec![first];
        while payloads.len() < GATHER_MAX
            && let Some(Item::Bytes { .. }) = self.queue.front()
            && let Some(Item::Bytes { payload, overhead }) = self.queue.pop_front()
        {
            self.charges += overhead;
            payloads.push(payload);
        }
        payloads
    }

    /// The pieces that are there, as one. A stream to a file brings no fds.
    fn write_file(&mut self) -> Option<SinkAction<P>> {
        let mut bytes = Vec::new();
        while bytes.len() < BULK_BATCH
            && let Some(Item::Bytes { payload, overhead }) = self.queue.pop_front()
        {
            self.charges += overhead;
            bytes.extend_from_slice(payload.as_ref());
        }
        if bytes.is_empty() {
            return None;
        }
        self.state = State::WritingFile { bytes: u32::try_from(bytes.len()).expect("little more than a batch") };
        Some(SinkAction::WriteFile(bytes))
    }
}
