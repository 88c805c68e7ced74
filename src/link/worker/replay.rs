//! The replay buffer of one lane: frames that were sent and are not acknowledged. A new link replays them.
//!
//! ```text
//!            acked                     next                   sent
//!   ── freed ──┤── sent on this link ────┤── to be replayed ────┤── still in the mux
//! ```
//!
//! Offsets count plaintext bytes of the lane's frames, because replayed frames are sealed again with the new link's keys.
//! PING, PONG, ACK and RESUME belong to a link, so they are neither counted nor kept. When the buffer is full, the driver
//! stops taking frames from the mux, and flow control then stops the senders.

use std::collections::VecDeque;

use crate::mux::{Batch, Payload};

pub(super) struct Replay<P> {
    /// In the order in which they were sent. The last batch ends at `sent`.
    kept: VecDeque<Kept<P>>,
    sent: u64,
    acked: u64,
    /// Index into `kept` of the batch to send next. If it is `kept.len()`, the next batch comes from the mux.
    next: usize,
    spare: Option<Batch<P>>,
}

struct Kept<P> {
    batch: Batch<P>,
    start: u64,
}

impl<P: Payload> Replay<P> {
    pub(super) fn new() -> Self {
        Self { kept: VecDeque::new(), sent: 0, acked: 0, next: 0, spare: None }
    }

    /// Bytes that are not acknowledged.
    pub(super) fn held(&self) -> u64 {
        self.sent - self.acked
    }

    /// An empty batch, for the mux to fill.
    pub(super) fn spare(&mut self) -> Batch<P> {
        self.spare.take().unwrap_or_default()
    }

    /// Takes over a batch that is about to be sent.
    pub(super) fn keep(&mut self, batch: Batch<P>) {
        assert!(self.next == self.kept.len(), "replayed batches are sent before new ones");
        let start = self.sent;
        self.sent += batch.bytes() as u64;
        self.kept.push_back(Kept { batch, start });
    }

    /// Frees everything without waiting for an acknowledgement.
    pub(super) fn forget_all(&mut self) {
        let sent = self.sent;
        self.on_ack(sent).expect("as much as there is");
    }

    /// Takes back a batch that is not needed.
    pub(super) fn recycle(&mut self, mut batch: Batch<P>) {
        batch.clear();
        self.spare = Some(batch);
    }

    /// The next batch to send, as slices, without the bytes that the peer has already.
    pub(super) fn take_next(&mut self) -> Option<impl Iterator<Item = &[u8]>> {
        let kept = self.kept.get(self.next)?;
        self.next += 1;
        let mut skip = usize::try_from(self.acked.saturating_sub(kept.start)).expect("less than a batch");
        Some(kept.batch.slices().map(move |slice| {
            let cut = skip.min(slice.len());
            skip -= cut;
            &slice[cut..]
        }))
    }

    /// Whether a batch must be replayed on this link.
    pub(super) fn has_next(&self) -> bool {
        self.next < self.kept.len()
    }

    /// The peer has received `count` bytes since the session began. `None` if that is impossible.
    pub(super) fn on_ack(&mut self, count: u64) -> Option<()> {
        if !(self.acked..=self.sent).contains(&count) {
            return None;
        }
        self.acked = count;
        while let Some(first) = self.kept.front()
            && first.start + first.batch.bytes() as u64 <= count
        {
            let first = self.kept.pop_front().expect("there is one");
            // The peer may have received it on the previous link, before this one replays it.
            self.next = self.next.saturating_sub(1);
            self.recycle(first.batch);
        }
        Some(())
    }

    /// A new link begins and the peer has received `count` bytes. Returns the number of bytes to replay, or `None` if the
    /// count is impossible.
    pub(super) fn resume(&mut self, count: u64) -> Option<u64> {
        self.on_ack(count)?;
        self.next = 0;
        Some(self.held())
    }

    /// The session is over.
    pub(super) fn clear(&mut self) {
        self.kept.clear();
        self.spare = None;
        self.acked = self.sent;
        self.next = 0;
    }

    /// Frees memory that is not needed now.
    pub(super) fn shrink(&mut self) {
        if self.kept.is_empty() {
            self.kept.shrink_to(0);
            self.spare = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn batch(bytes: &'static [u8]) -> Batch<Bytes> {
        let mut batch = Batch::default();
        batch.push_body(Bytes::from_static(bytes));
        batch
    }

    fn all(replay: &mut Replay<Bytes>) -> Vec<u8> {
        let mut out = Vec::new();
        while let Some(slices) = replay.take_next() {
            slices.for_each(|slice| out.extend_from_slice(slice));
        }
        out
    }

    fn sent(all: &[&'static [u8]]) -> Replay<Bytes> {
        let mut replay = Replay::new();
        for bytes in all {
            replay.keep(batch(bytes));
            assert!(replay.take_next().is_some());
        }
        replay
    }

    #[test]
    fn a_replay_begins_with_the_first_byte_that_the_peer_lacks() {
        let mut replay = sent(&[b"abc", b"def", b"ghi"]);
        assert_eq!(replay.on_ack(3), Some(()));
        assert_eq!(replay.resume(5), Some(4));
        assert_eq!(all(&mut replay), b"fghi");
        replay.keep(batch(b"j"));
        assert_eq!(all(&mut replay), b"j");
        assert_eq!((replay.on_ack(10), replay.held()), (Some(()), 0));
    }

    #[test]
    fn a_second_cut_during_a_replay_loses_nothing() {
        let mut replay = sent(&[b"abc", b"def"]);
        replay.resume(1);
        assert_eq!(replay.take_next().unwrap().collect::<Vec<_>>().concat(), b"bc");
        replay.resume(1);
        assert_eq!(all(&mut replay), b"bcdef");
    }

    #[test]
    fn impossible_counts_are_refused() {
        let mut replay = sent(&[b"abc"]);
        assert_eq!((replay.on_ack(4), replay.resume(4)), (None, None));
        replay.on_ack(2);
        assert_eq!((replay.on_ack(1), replay.resume(1)), (None, None));
        assert_eq!(replay.resume(2), Some(1));
    }
}
