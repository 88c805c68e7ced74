//! Many streams over one link pair (LAT and BULK): a pure state machine.
//!
//! ```text
//!   open/on_read/on_consumed ... ──▶ ┌─────┐ ──▶ poll_transmit(lane): frames, payloads by reference
//!   on_control/on_data (frames)  ──▶ │ Mux │ ──▶ poll_event: what the driver must do
//!   now_ms, in each call         ──▶ └─────┘
//! ```
//!
//! No socket, no clock, no thread: two of these over a fake wire are the whole protocol (see `sim`). The payload type
//! is the driver's; the mux splits it and never looks inside.
//!
//! A stream is two directions (`send.rs`, `recv.rs`), each with its own end; credit is absolute and counts payload
//! plus a charge for each record and each fd, so that nothing a peer sends is unbounded. Every stream starts on LAT;
//! a direction that carries much moves to BULK and comes back after a pause, and the receiver keeps the order.

mod arrive;
mod batch;
mod books;
mod lane;
mod machine;
mod recv;
mod send;
#[cfg(test)]
pub(crate) mod sim;
mod types;

pub use batch::{Batch, Part};
pub use books::Books;
pub use machine::Mux;
pub use types::{Event, Key, Options, Recipes};

/// What a frame carries. A driver's buffer slice in production, plain bytes in tests.
pub trait Payload: Sized + AsRef<[u8]> {
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `count` bytes; the rest stays.
    fn split_to(&mut self, count: usize) -> Self;

    /// A copy in memory of its own, if this one keeps much more than it fills.
    fn compacted(&self) -> Option<Self> {
        None
    }

    /// Bytes that the mux itself made: an OPEN's request, recipes.
    fn from_vec(bytes: Vec<u8>) -> Self;
}

impl Payload for bytes::Bytes {
    fn len(&self) -> usize {
        bytes::Bytes::len(self)
    }

    fn split_to(&mut self, count: usize) -> Self {
        bytes::Bytes::split_to(self, count)
    }

    fn from_vec(bytes: Vec<u8>) -> Self {
        bytes.into()
    }
}

/// `a` is not behind `b` on the circle of u32: serial number arithmetic, RFC 1982.
fn reaches(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) < 1 << 31
}
