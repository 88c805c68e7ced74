//! One direction of a stream, the receiving half: what the peer may send, and the order of its frames.
//!
//! ```text
//!   Open ──FIN──▶ Ended        Open ──sink gone──▶ Closed (READ_CLOSED was said; late frames are dropped)
//! ```
//!
//! A direction's frames come on one lane at a time. Frames of the other lane are early: they wait here, bounded by the
//! credit they have been charged, until MOVE or MOVE_BACK says that nothing more comes on this one.

use std::collections::VecDeque;

use super::send::cost;
use super::{Payload, Recipes, reaches};
use crate::limits::{
    BULK_WINDOW, EARLY_CONTROL_MAX, FDS_MAX, RECIPE_COST, RECIPE_MAX, RECIPES_MAX, RECORD_COST, SESSION_GROWTH_MAX,
    WINDOW_MAX,
};
use crate::wire::frame::{FrameType, Header, flags};
use crate::wire::hello::Lane;
use crate::wire::{WireResult, bad};

/// The charges of one message that its sender could not foresee.
#[expect(clippy::cast_possible_truncation, reason = "253 fds")]
const OVERRUN_MAX: u32 = RECORD_COST + FDS_MAX as u32 * RECIPE_COST;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Open,
    /// FIN came: the last byte has been delivered to the driver.
    Ended,
    /// Nobody reads here any more.
    Closed,
}

/// A frame that came before its turn.
#[derive(Debug)]
pub(super) struct Early<P> {
    pub header: Header,
    pub payload: P,
    pub first: bool,
    pub last: bool,
}

impl<P: Payload> Early<P> {
    /// Whether nothing else bounds how many of these may wait: DATA has its charge, and each recipe's last frame its
    /// message's.
    fn is_free(&self) -> bool {
        match self.header.kind {
            FrameType::Data => cost(self.header.len as usize, self.header.flags & flags::EOR != 0, 0) == 0,
            FrameType::Recipe => self.header.flags & flags::MORE != 0,
            _ => true,
        }
    }

    pub(super) fn recipe_len(&self) -> usize {
        if self.header.kind == FrameType::Recipe { self.payload.len() } else { 0 }
    }
}

#[derive(Debug)]
pub(super) struct RecvHalf<P> {
    pub(super) state: State,
    /// The lane whose frames are in order now.
    lane: Lane,
    early: VecDeque<Early<P>>,
    early_control: usize,
    early_bytes: u32,
    /// Bytes of RECIPE frames among them.
    early_recipes: usize,
    /// Charged by frames that came; modulo 2^32, as `granted` and `consumed`.
    charged: u32,
    granted: u32,
    consumed: u32,
    window: u32,
    /// The part of `window` that was paid from the session's growth budget.
    grown: u32,
    last_grant_us: u64,
    /// Its window was widened.
    pub(super) is_wide: bool,
    pub(super) credit_due: bool,
    /// RECIPE frames of the message to come.
    pub(super) recipes: Vec<u8>,
    pub(super) recipes_whole: bool,
}

impl<P: Payload> RecvHalf<P> {
    pub(super) fn new(window: u32) -> Self {
        Self {
            state: State::Open,
            lane: Lane::Lat,
            early: VecDeque::new(),
            early_control: 0,
            early_bytes: 0,
            early_recipes: 0,
            charged: 0,
            granted: window,
            consumed: 0,
            window,
            grown: 0,
            last_grant_us: 0,
            is_wide: false,
            credit_due: false,
            recipes: Vec::new(),
            recipes_whole: false,
        }
    }

    pub(super) fn granted(&self) -> u32 {
        self.granted
    }

    /// Charges a DATA frame whose first byte has come.
    pub(super) fn charge(&mut self, header: &Header) -> WireResult<()> {
        let fds = if header.flags & flags::HAS_FDS != 0 { usize::from(header.aux) } else { 0 };
        let record_end = header.flags & flags::EOR != 0;
        self.charged = self.charged.wrapping_add(cost(header.len as usize, record_end, fds));
        // A sender reads within the credit and learns of the record's end and the fds only then: one message's charges
        // may lie beyond it.
        if !reaches(self.granted.wrapping_add(OVERRUN_MAX), self.charged) {
            bad!("stream {}: {} bytes past the credit", header.stream, self.charged.wrapping_sub(self.granted));
        }
        Ok(())
    }

    /// Whether a frame that came on `lane` is in order now.
    pub(super) fn in_order(&self, lane: Lane) -> bool {
        self.lane == lane
    }

    /// Keeps a frame for later. DATA is bounded by its charge; of all else the number is bounded here, and the bytes by
    /// the session (`recipes_len`).
    pub(super) fn keep(&mut self, frame: Early<P>) -> WireResult<()> {
        if frame.is_free() {
            self.early_control += 1;
            if self.early_control > EARLY_CONTROL_MAX {
                bad!("stream {}: {EARLY_CONTROL_MAX} frames wait for a MOVE that does not come", frame.header.stream);
            }
        }
        self.early_recipes += frame.recipe_len();
        self.early_bytes += u32::try_from(frame.payload.len()).expect("a frame is short");
        self.early.push_back(frame);
        Ok(())
    }

    pub(super) fn take_early(&mut self) -> Option<Early<P>> {
        let frame = self.early.pop_front()?;
        if frame.is_free() {
            self.early_control -= 1;
        }
        self.early_recipes -= frame.recipe_len();
        self.early_bytes -= u32::try_from(frame.payload.len()).expect("as when it was kept");
        Some(frame)
    }

    /// Nobody reads here any more. Returns how many bytes of recipes that frees.
    pub(super) fn drop_early(&mut self) -> usize {
        self.early.clear();
        self.early_control = 0;
        self.early_bytes = 0;
        std::mem::take(&mut self.early_recipes)
    }

    /// Bytes of records that came before their turn; other streams' are bounded by their windows' budget.
    pub(super) fn early_records(&self) -> u64 {
        if self.is_wide { u64::from(self.early_bytes) } else { 0 }
    }

    /// An empty queue keeps no room.
    pub(super) fn relax(&mut self) {
        if self.early.is_empty() {
            self.early = VecDeque::new();
        }
    }

    /// Bytes of recipes whose message has not come.
    pub(super) fn recipes_len(&self) -> usize {
        self.recipes.len() + self.early_recipes
    }

    /// How many frames wait for their turn, and how many of them are DATA that was charged nothing.
    pub(super) fn early_frames(&self) -> (usize, usize) {
        let free = |f: &&Early<P>| f.header.kind == FrameType::Data && f.header.len == 0 && f.header.flags == 0;
        (self.early.len(), self.early.iter().filter(free).count())
    }

    /// MOVE or MOVE_BACK in its turn: from now on the other lane is in order.
    pub(super) fn on_move(&mut self, kind: FrameType) -> WireResult<()> {
        self.lane = match (kind, self.lane) {
            (FrameType::Move, Lane::Lat) => Lane::Bulk,
            (FrameType::MoveBack, Lane::Bulk) => Lane::Lat,
            _ => bad!("{kind:?} on the lane it would leave"),
        };
        Ok(())
    }

    /// Whether the peer should hear of new credit when the sink has taken `count` more.
    pub(super) fn is_due_after(&self, count: u32) -> bool {
        let consumed = self.consumed.wrapping_add(count);
        // Charges that its sender could not foresee may lie past the grant; then nothing is outstanding.
        !reaches(self.granted, consumed) || self.granted.wrapping_sub(consumed) <= self.window / 2
    }

    /// The sink took `count` (payload and charges). Returns whether the peer should hear of new credit now.
    pub(super) fn on_consumed(&mut self, count: u32, growth: &mut u64, rtt_us: u64, now_us: u64) -> bool {
        let due = self.is_due_after(count);
        self.consumed = self.consumed.wrapping_add(count);
        assert!(reaches(self.charged, self.consumed), "no more is consumed than has come");
        if !due {
            return false;
        }
        self.grow(growth, rtt_us, now_us);
        self.last_grant_us = now_us;
        self.granted = self.consumed.wrapping_add(self.window);
        self.credit_due = true;
        true
    }

    /// A window that was used up within two round trips is what limits this stream: double it.
    fn grow(&mut self, growth: &mut u64, rtt_us: u64, now_us: u64) {
        if self.lane != Lane::Bulk {
            return;
        }
        let fast = now_us.saturating_sub(self.last_grant_us) <= 2 * rtt_us;
        let target = if self.window < BULK_WINDOW {
            BULK_WINDOW
        } else if fast {
            (self.window * 2).min(WINDOW_MAX)
        } else {
            return;
        };
        let more = target - self.window;
        if *growth + u64::from(more) <= SESSION_GROWTH_MAX {
            *growth += u64::from(more);
            self.grown += more;
            self.window = target;
        }
    }

    /// Grants more than a new stream's window. Returns the credit to say.
    pub(super) fn widen(&mut self, window: u32) -> u32 {
        if window > self.window {
            self.granted = self.granted.wrapping_add(window - self.window);
            self.window = window;
        }
        self.granted
    }

    /// A part of the recipes of the message to come.
    pub(super) fn on_recipe(&mut self, header: &Header, part: &[u8]) -> WireResult<()> {
        if self.recipes_whole || self.recipes.len() + part.len() > RECIPES_MAX {
            bad!("stream {}: recipes without a message, or too many", header.stream);
        }
        self.recipes.extend_from_slice(part);
        self.recipes_whole = header.flags & flags::MORE == 0;
        Ok(())
    }

    /// The message has come whose fds the recipes are for.
    pub(super) fn take_recipes(&mut self, count: usize) -> WireResult<Recipes> {
        if !std::mem::take(&mut self.recipes_whole) || self.recipes.is_empty() || count == 0 || count > FDS_MAX {
            bad!("a message with {count} fds and no recipes for them");
        }
        if self.recipes.len() > count * RECIPE_MAX {
            bad!("{} bytes of recipes for {count} fds", self.recipes.len());
        }
        Ok(Recipes::new(std::mem::take(&mut self.recipes), count))
    }

    /// The stream ends: what it took from the session's growth budget.
    pub(super) fn growth(&self) -> u64 {
        u64::from(self.grown)
    }
}
