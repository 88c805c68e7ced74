//! The state of one lane that outlives its links: the parser, the receive offset and the replay buffer.
//!
//! ```text
//!   link ──frames──▶ parser ──▶ mux      `received` is reported by ACK, and by RESUME on a new link
//!   link ◀── replay buffer ◀── mux       frames stay in the buffer until the peer acknowledges them
//! ```

use super::links::End;
use super::replay::Replay;
use crate::limits::{ACK_EVERY, REPLAY_BULK, REPLAY_LAT};
use crate::mux::Mux;
use crate::ring::Chunk;
use crate::wire::features::{Agreed, RESUME};
use crate::wire::frame::{FrameType, Header};
use crate::wire::hello::Lane;
use crate::wire::parser::Parser;

pub(super) struct Track {
    lane: Lane,
    pub(super) parser: Parser,
    pub(super) replay: Replay<Chunk>,
    /// Bytes of the peer's frames that reached the mux, and how many of them were reported to the peer.
    received: u64,
    told: u64,
    /// A tick has passed: report even a few bytes.
    due: bool,
    /// Bytes replayed on new links.
    replayed: u64,
    /// The replay buffer's limit in bytes. `None` if the session cannot be resumed, so that nothing is kept.
    bound: Option<u64>,
}

impl Track {
    pub(super) fn new(lane: Lane, agreed: Agreed) -> Self {
        let whole = if lane == Lane::Lat { REPLAY_LAT } else { REPLAY_BULK };
        let bound = agreed.has(RESUME).then(|| whole / u64::from(agreed.pairs.max(1)));
        Self {
            lane,
            parser: Parser::default(),
            replay: Replay::new(),
            received: 0,
            told: 0,
            due: false,
            replayed: 0,
            bound,
        }
    }

    pub(super) fn resumes(&self) -> bool {
        self.bound.is_some()
    }

    /// Counts bytes of the peer's frames.
    pub(super) fn on_received(&mut self, bytes: usize) {
        self.received += bytes as u64;
    }

    /// Whether the driver must wait for an ACK before it takes more frames from the mux.
    fn is_full(&self) -> bool {
        self.bound.is_some_and(|bound| self.replay.held() >= bound)
    }

    /// Makes the next batch available: one to replay, or a new one from the mux. Returns whether there is one.
    pub(super) fn refill(&mut self, mux: &mut Mux<Chunk>, budget: usize) -> bool {
        if self.replay.has_next() {
            return true;
        }
        if self.is_full() {
            return false;
        }
        let mut batch = self.replay.spare();
        mux.poll_transmit(self.lane, &mut batch, budget);
        if batch.is_empty() {
            self.replay.recycle(batch);
            return false;
        }
        if self.resumes() {
            // A small frame must not pin a large receive buffer until it is acknowledged.
            batch.compact();
        }
        self.replay.keep(batch);
        true
    }

    /// The batch was sealed. A session that cannot be resumed frees it now.
    pub(super) fn on_sealed(&mut self) {
        if self.bound.is_none() {
            self.replay.forget_all();
        }
    }

    /// The link was lost.
    pub(super) fn on_cut(&mut self) {
        self.parser.rewind();
    }

    /// The RESUME frame for a new link.
    pub(super) fn resume_frame(&mut self) -> Vec<u8> {
        self.count(FrameType::Resume)
    }

    /// The ACK frame that is due, if any.
    pub(super) fn ack(&mut self) -> Option<Vec<u8>> {
        let news = self.received - self.told;
        let bound = self.bound?;
        let due = news >= ACK_EVERY.min(bound / 8) || (self.due && news > 0);
        due.then(|| self.count(FrameType::Ack))
    }

    /// Called twice a second: acknowledges also what is below the threshold, so that an idle peer frees its buffer.
    pub(super) fn tick(&mut self) {
        self.due = self.bound.is_some();
        self.replay.shrink();
    }

    fn count(&mut self, kind: FrameType) -> Vec<u8> {
        self.told = self.received;
        self.due = false;
        let header = Header { len: 8, aux: self.lane as u16, ..Header::new(kind, 0) };
        [&header.encode()[..], &self.received.to_le_bytes()].concat()
    }

    /// The peer's ACK of this lane.
    ///
    /// # Errors
    /// The peer acknowledges bytes that were never sent.
    pub(super) fn on_ack(&mut self, body: &[u8]) -> Result<(), End> {
        let count = self.counted(body)?;
        self.replay.on_ack(count).ok_or_else(|| impossible(self.lane, count))
    }

    /// The peer's RESUME: replays what it has not received.
    ///
    /// # Errors
    /// As `on_ack`.
    pub(super) fn on_resume(&mut self, body: &[u8]) -> Result<(), End> {
        let count = self.counted(body)?;
        self.replayed += self.replay.resume(count).ok_or_else(|| impossible(self.lane, count))?;
        Ok(())
    }

    /// Bytes replayed since the last call.
    pub(super) fn take_replayed(&mut self) -> u64 {
        std::mem::take(&mut self.replayed)
    }

    fn counted(&self, body: &[u8]) -> Result<u64, End> {
        let count = body.try_into().map(u64::from_le_bytes).ok().filter(|_| self.bound.is_some());
        count.ok_or_else(|| End::Broken("ACK or RESUME without a count, or in a session that cannot be resumed".into()))
    }
}

fn impossible(lane: Lane, count: u64) -> End {
    End::Broken(format!("the peer acknowledges {count} bytes on {lane:?}, which were not sent"))
}
