//! One direction of a stream, the sending half: what was read here waits for its turn on a link.
//!
//! ```text
//!   Held ──ACCEPT──▶ Open ──source EOF──▶ Ending ──queue empty, FIN sent──▶ Done
//!    (announced by    └────────────────────┴──────READ_CLOSED, RESET────────▲
//!     a recipe)
//! ```
//!
//! The driver reads at most `room()`, so everything queued may be sent at once: credit stops the reading, not the link.

use std::collections::VecDeque;

use super::{Payload, Recipes, reaches};
use crate::limits::{MOVE_AFTER_BYTES, MOVE_PAUSE_MS, RECIPE_COST, RECORD_COST, WINDOW_MAX};
use crate::wire::hello::Lane;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Announced by a recipe; the peer has not made its end yet.
    Held,
    /// Bytes flow.
    Open,
    /// Nothing more comes in; what is queued still goes out, then FIN.
    Ending,
    /// FIN has been sent, or nobody reads any more.
    Done,
}

/// Bytes (possibly none) of one record or of a byte stream, with what belongs to their first and last byte.
#[derive(Debug)]
pub(super) struct Piece<P> {
    pub payload: P,
    pub record_end: bool,
    pub recipes: Option<Recipes>,
}

/// What the link pair does next for this direction.
#[derive(Debug)]
pub(super) enum Turn<P> {
    Nothing,
    /// The encoding of the next piece's recipes, or a part of it.
    Recipe {
        part: P,
        more: bool,
    },
    Data {
        payload: P,
        record_end: bool,
        fds: u16,
        fin: bool,
    },
    /// This lane's last frame; the next turn is on `to`.
    Move {
        to: Lane,
    },
}

#[derive(Debug)]
pub(super) struct SendHalf<P> {
    state: State,
    lane: Lane,
    /// The lane that the next frame should use, when it differs from `lane`.
    moving: Option<Lane>,
    queue: VecDeque<Piece<P>>,
    /// Charged so far (payload, records, recipes), queued pieces included; modulo 2^32.
    charged: u32,
    /// The peer's word: `charged` may reach this.
    limit: u32,
    /// Bytes read without a pause of MOVE_PAUSE_MS.
    burst_bytes: u64,
    last_read_us: u64,
    /// In the lane's round-robin queue.
    pub(super) scheduled: bool,
    /// The source ended before the peer had made its end.
    ended_early: bool,
    /// The driver wants to hear when there is room for so much.
    wanted: Option<u32>,
}

/// What a piece is charged against the window.
pub(super) fn cost(len: usize, record_end: bool, fds: usize) -> u32 {
    let records = if record_end { RECORD_COST } else { 0 };
    u32::try_from(len).expect("a piece fits the window")
        + records
        + RECIPE_COST * u32::try_from(fds).expect("at most 253")
}

fn room(limit: u32, charged: u32) -> u32 {
    if reaches(limit, charged) { limit.wrapping_sub(charged) } else { 0 }
}

impl<P: Payload> SendHalf<P> {
    pub(super) fn new(held: bool, limit: u32) -> Self {
        Self {
            state: if held { State::Held } else { State::Open },
            lane: Lane::Lat,
            moving: None,
            queue: VecDeque::new(),
            charged: 0,
            limit: limit.min(WINDOW_MAX),
            burst_bytes: 0,
            last_read_us: 0,
            scheduled: false,
            ended_early: false,
            wanted: None,
        }
    }

    /// What may be read from the source now, in bytes of payload.
    pub(super) fn room(&self) -> u32 {
        if self.state == State::Open { room(self.limit, self.charged) } else { 0 }
    }

    /// Asks for `take_starved` to say so once there is room for `need`.
    pub(super) fn wait_for_room(&mut self, need: u32) {
        self.wanted = Some(need.max(1));
    }

    pub(super) fn take_starved(&mut self) -> bool {
        let room = self.room();
        self.wanted.take_if(|need| room >= *need).is_some()
    }

    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    pub(super) fn lane(&self) -> Lane {
        self.lane
    }

    pub(super) fn on_accept(&mut self) {
        if self.state == State::Held {
            self.state = if self.ended_early { State::Ending } else { State::Open };
        }
    }

    /// The peer's absolute credit. An older word than the last one changes nothing.
    pub(super) fn on_credit(&mut self, limit: u32) -> bool {
        // No more than a window can be: what a peer grants beyond it is nobody's memory but ours.
        let most = self.charged.wrapping_add(WINDOW_MAX);
        let limit = if reaches(most, limit) { limit } else { most };
        let newer = reaches(limit, self.limit) && limit != self.limit;
        if newer {
            self.limit = limit;
        }
        newer
    }

    /// The source gave a piece. The driver may overrun the room by a record's and the fds' charges only.
    pub(super) fn on_read(&mut self, piece: Piece<P>, bulk_up: bool, now_us: u64) {
        assert!(matches!(self.state, State::Open | State::Held), "read after the source's end");
        let fds = piece.recipes.as_ref().map_or(0, |r| usize::from(r.count));
        self.charged = self.charged.wrapping_add(cost(piece.payload.len(), piece.record_end, fds));
        let paused = now_us.saturating_sub(self.last_read_us) >= MOVE_PAUSE_MS * 1000;
        self.last_read_us = now_us;
        if paused {
            self.burst_bytes = 0;
        }
        self.burst_bytes += piece.payload.len() as u64;
        let wanted = match self.lane {
            Lane::Lat if bulk_up && self.burst_bytes >= MOVE_AFTER_BYTES => Lane::Bulk,
            Lane::Bulk if paused && self.queue.is_empty() => Lane::Lat,
            stay => stay,
        };
        self.moving = (wanted != self.lane).then_some(wanted);
        self.queue.push_back(piece);
    }

    pub(super) fn on_eof(&mut self) {
        match self.state {
            State::Open => self.state = State::Ending,
            State::Held => self.ended_early = true,
            State::Ending | State::Done => {}
        }
    }

    /// Nobody reads this direction any more.
    pub(super) fn stop(&mut self) {
        self.state = State::Done;
        self.queue.clear();
    }

    /// An empty queue keeps no room.
    pub(super) fn relax(&mut self) {
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
        }
    }

    pub(super) fn has_turn(&self) -> bool {
        match self.state {
            State::Open => !self.queue.is_empty(),
            State::Ending => true,
            State::Held | State::Done => false,
        }
    }

    /// Bytes that wait for their turn.
    pub(super) fn queued(&self) -> usize {
        self.queue.iter().map(|piece| piece.payload.len()).sum()
    }

    /// The next frame for this direction, of at most `max` payload bytes.
    pub(super) fn turn(&mut self, max: usize) -> Turn<P> {
        if !self.has_turn() {
            return Turn::Nothing;
        }
        // A message's recipes and its first bytes stay on one lane, so a direction moves between messages only.
        let at_edge = self.queue.front().is_none_or(|p| p.recipes.as_ref().is_none_or(|r| !r.begun));
        if at_edge && let Some(to) = self.moving.take() {
            self.lane = to;
            return Turn::Move { to };
        }
        let Some(front) = self.queue.front_mut() else {
            self.state = State::Done;
            return Turn::Data { payload: P::from_vec(Vec::new()), record_end: false, fds: 0, fin: true };
        };
        if let Some(recipes) = &mut front.recipes
            && !recipes.bytes.is_empty()
        {
            recipes.begun = true;
            let rest = recipes.bytes.split_off(recipes.bytes.len().min(max));
            let part = std::mem::replace(&mut recipes.bytes, rest);
            return Turn::Recipe { part: P::from_vec(part), more: !recipes.bytes.is_empty() };
        }
        let fds = front.recipes.take().map_or(0, |r| r.count);
        if front.payload.len() > max {
            return Turn::Data { payload: front.payload.split_to(max), record_end: false, fds, fin: false };
        }
        let last = self.queue.pop_front().expect("front was there");
        let fin = self.state == State::Ending && self.queue.is_empty();
        if fin {
            self.state = State::Done;
        }
        Turn::Data { payload: last.payload, record_end: last.record_end, fds, fin }
    }
}
