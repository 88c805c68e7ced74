//! What has left on a lane and the peer has not acknowledged: it is said again on the lane's next link.
//!
//! ```text
//!              acked                      next                     sent
//!   ── forgotten ─┤──── on its way, kept ───┤── to be said again ────┤── still the mux's
//! ```
//!
//! Counted are the bytes of the lane's frames, before they are sealed: what is said again is sealed anew. Frames about a
//! link itself are neither counted nor kept. When as much is kept as may be, nothing more is taken from the mux, and the
//! streams' credit stops whoever writes.

use std::collections::VecDeque;

use crate::mux::{Batch, Payload};

pub(super) struct Replay<P> {
    /// In order; the last one ends at `sent`.
    kept: VecDeque<Kept<P>>,
    sent: u64,
    acked: u64,
    /// Which of `kept` leaves next; behind them: the mux's.
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

    /// Bytes that wait for their acknowledgement.
    pub(super) fn held(&self) -> u64 {
        self.sent - self.acked
    }

    /// An empty batch, for the mux to fill.
    pub(super) fn spare(&mut self) -> Batch<P> {
        self.spare.take().unwrap_or_default()
    }

    /// It leaves now, and again if its link is lost before it is acknowledged.
    pub(super) fn keep(&mut self, batch: Batch<P>) {
        assert!(self.next == self.kept.len(), "what is to be said again goes first");
        let start = self.sent;
        self.sent += batch.bytes() as u64;
        self.kept.push_back(Kept { batch, start });
    }

    /// Nothing of it is wanted.
    pub(super) fn forget(&mut self, batch: Batch<P>) {
        self.recycle(batch);
    }

    /// What is kept has left, and nobody wants it again.
    pub(super) fn forget_all(&mut self) {
        let sent = self.sent;
        self.on_ack(sent).expect("as much as there is");
    }

    fn recycle(&mut self, mut batch: Batch<P>) {
        batch.clear();
        self.spare = Some(batch);
    }

    /// What leaves next of what is kept, as slices.
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

    /// Whether something is kept that has not left on this link.
    pub(super) fn has_next(&self) -> bool {
        self.next < self.kept.len()
    }

    /// The peer has got so much, counted from the session's birth. `None`: that can't be.
    pub(super) fn on_ack(&mut self, count: u64) -> Option<()> {
        if !(self.acked..=self.sent).contains(&count) {
            return None;
        }
        self.acked = count;
        while let Some(first) = self.kept.front()
            && first.start + first.batch.bytes() as u64 <= count
        {
            let first = self.kept.pop_front().expect("there is one");
            // What it has not been sent on this link it cannot have got, but by the one before.
            self.next = self.next.saturating_sub(1);
            self.recycle(first.batch);
        }
        Some(())
    }

    /// Another link begins, to whose other end so much has come. `None`: that can't be.
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

    /// Memory that a burst needed is given back.
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
    fn what_has_not_come_is_said_again_from_its_very_byte() {
        let mut replay = sent(&[b"abc", b"def", b"ghi"]);
        assert_eq!(replay.on_ack(3), Some(()));
        assert_eq!(replay.resume(5), Some(4));
        assert_eq!(all(&mut replay), b"fghi");
        replay.keep(batch(b"j"));
        assert_eq!(all(&mut replay), b"j");
        assert_eq!((replay.on_ack(10), replay.held()), (Some(()), 0));
    }

    #[test]
    fn a_second_cut_while_it_is_said_again() {
        let mut replay = sent(&[b"abc", b"def"]);
        replay.resume(1);
        assert_eq!(replay.take_next().unwrap().collect::<Vec<_>>().concat(), b"bc");
        replay.resume(1);
        assert_eq!(all(&mut replay), b"bcdef");
    }

    #[test]
    fn no_count_that_cannot_be_is_believed() {
        let mut replay = sent(&[b"abc"]);
        assert_eq!((replay.on_ack(4), replay.resume(4)), (None, None));
        replay.on_ack(2);
        assert_eq!((replay.on_ack(1), replay.resume(1)), (None, None));
        assert_eq!(replay.resume(2), Some(1));
    }
}
