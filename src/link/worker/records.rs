//! Seals frames into pooled buffers: one TLS record after the other, without an allocation for each.

use crate::auth::Room;
use crate::mux::Batch;
use crate::ring::{Chunk, Filling, Pool, Size};

/// Sealed records on their way into a batch, side by side in pooled buffers.
pub(super) struct Records<'a> {
    pool: &'a Pool,
    into: Option<Filling>,
    /// The last record's length: it is still to be cut.
    written: usize,
    batch: &'a mut Batch<Chunk>,
}

impl<'a> Records<'a> {
    /// `into`: what is left of the last buffer.
    pub(super) fn new(pool: &'a Pool, into: Option<Filling>, batch: &'a mut Batch<Chunk>) -> Self {
        Self { pool, into, written: 0, batch }
    }

    fn cut(&mut self) {
        let written = std::mem::take(&mut self.written);
        if let (Some(into), 1..) = (&mut self.into, written) {
            self.batch.push_body(into.cut(written));
        }
    }

    /// A small buffer serves the next small records too; a large one would be too much for each of many idle links.
    pub(super) fn finish(mut self) -> Option<Filling> {
        self.cut();
        self.into.filter(|into| into.is_small())
    }
}

impl Room for Records<'_> {
    fn take(&mut self, len: usize) -> &mut [u8] {
        self.cut();
        if self.into.as_ref().is_none_or(|into| into.spare() < len) {
            let size = if len <= SMALL_RECORD { Size::Small } else { Size::Large };
            self.into = Some(self.pool.take(size));
        }
        self.written = len;
        self.into.as_mut().expect("there is one now").tail_mut(len)
    }
}

/// Several such records share a small buffer.
const SMALL_RECORD: usize = 1 << 10;
