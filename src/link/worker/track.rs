//! One lane of a session, whichever link carries it: what has come, what has left and is not acknowledged.
//!
//! ```text
//!   link ──frames──▶ parser ──▶ mux        `received`: told by ACK, and by RESUME on the next link
//!   link ◀── replay ◀── mux                what is kept until the peer's ACK
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
    /// Bytes of the peer's frames that the mux has got, and how many of them the peer knows of.
    received: u64,
    told: u64,
    /// An ACK is due whatever came since.
    due: bool,
    /// So much may be kept; `None`: the session ends with its links, and nothing is.
    bound: Option<u64>,
}

impl Track {
    pub(super) fn new(lane: Lane, agreed: Agreed) -> Self {
        let whole = if lane == Lane::Lat { REPLAY_LAT } else { REPLAY_BULK };
        let bound = agreed.has(RESUME).then(|| whole / u64::from(agreed.pairs.max(1)));
        Self { lane, parser: Parser::default(), replay: Replay::new(), received: 0, told: 0, due: false, bound }
    }

    pub(super) fn resumes(&self) -> bool {
        self.bound.is_some()
    }

    /// Frames of this lane have come, so many bytes of them.
    pub(super) fn on_received(&mut self, bytes: usize) {
        self.received += bytes as u64;
    }

    /// Whether no more may be taken from the mux before the peer has acknowledged something.
    pub(super) fn is_full(&self) -> bool {
        self.bound.is_some_and(|bound| self.replay.held() >= bound)
    }

    /// Whether something is to leave: what is to be said again, or the mux's next batch, which is kept from now on.
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
            self.replay.forget(batch);
            return false;
        }
        if self.resumes() {
            // It stays until its ACK, and must not keep much more memory than it fills.
            batch.compact();
        }
        self.replay.keep(batch);
        true
    }

    /// What left last has left for good, where nothing is kept.
    pub(super) fn on_sealed(&mut self) {
        if self.bound.is_none() {
            self.replay.forget_all();
        }
    }

    /// The link is lost.
    pub(super) fn on_cut(&mut self) {
        self.parser.rewind();
    }

    /// What the other end of the next link must know.
    pub(super) fn resume_frame(&mut self) -> Vec<u8> {
        self.count(FrameType::Resume)
    }

    /// The peer is to hear what has come, of this lane.
    pub(super) fn ack(&mut self) -> Option<Vec<u8>> {
        let news = self.received - self.told;
        let bound = self.bound?;
        let due = news >= ACK_EVERY.min(bound / 8) || (self.due && news > 0);
        due.then(|| self.count(FrameType::Ack))
    }

    /// What has come by now is acknowledged soon, however little it is.
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
    /// It counts what was never sent.
    pub(super) fn on_ack(&mut self, body: &[u8]) -> Result<(), End> {
        let count = self.counted(body)?;
        self.replay.on_ack(count).ok_or_else(|| impossible(self.lane, count))
    }

    /// The peer's RESUME. Returns how many bytes are said again.
    ///
    /// # Errors
    /// As `on_ack`.
    pub(super) fn on_resume(&mut self, body: &[u8]) -> Result<u64, End> {
        let count = self.counted(body)?;
        self.replay.resume(count).ok_or_else(|| impossible(self.lane, count))
    }

    fn counted(&self, body: &[u8]) -> Result<u64, End> {
        let count = body.try_into().map(u64::from_le_bytes).ok().filter(|_| self.bound.is_some());
        count.ok_or_else(|| End::Broken("a count of bytes that was not agreed, or none".into()))
    }
}

fn impossible(lane: Lane, count: u64) -> End {
    End::Broken(format!("{count} bytes on {lane:?} are acknowledged, and that cannot be"))
}
