//! What a mux holds at a moment: for tests and fuzzing, which add up what must stay bounded and what must be gone.

use super::{Mux, Payload};

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Books {
    pub streams: usize,
    pub events: usize,
    /// Control frames that wait for the LAT link.
    pub control: usize,
    /// Frames that came before their turn, and how many of them cost their sender nothing.
    pub early: usize,
    pub early_free: usize,
    /// Bytes of recipes whose message has not come.
    pub recipes: usize,
    /// Payload that waits to leave.
    pub queued: usize,
    pub growth: u64,
}

impl<P: Payload> Mux<P> {
    /// Adds everything up, and checks that the sums which the mux keeps by itself are right.
    pub fn books(&self) -> Books {
        let mut books = Books { streams: self.streams.len(), events: self.events.len(), ..Books::default() };
        books.control = self.lanes.iter().map(|lane| lane.control.len()).sum();
        for (slot, stream) in &self.streams {
            assert_eq!(self.by_id.get(&stream.id), Some(&slot), "every stream is found by its number");
            let (frames, free) = stream.recv.early_frames();
            books.early += frames;
            books.early_free += free;
            books.recipes += stream.recv.recipes_len();
            books.growth += stream.recv.growth();
            books.queued += stream.send.queued();
        }
        assert_eq!(self.by_id.len(), books.streams, "no number without a stream");
        assert_eq!(self.recipes_pending, books.recipes, "the session's sum of recipes");
        let records: u64 = self.streams.iter().map(|(_, s)| s.recv.early_records()).sum();
        assert_eq!(self.early_records, records, "the session's sum of early records");
        assert_eq!(self.growth, books.growth, "the session's sum of growth");
        books
    }
}
