//! What goes in and out of a `Mux` besides frames.

use nix::errno::Errno;

use crate::limits::{FDS_MAX, INITIAL_WINDOW, RECIPES_MAX};
use crate::wire::features::Agreed;

/// A stream: its slot, and its birth against the slot's next tenant. The id would not do: the peer may give it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    pub(super) slot: u32,
    pub(super) id: u32,
    pub(super) birth: u64,
}

impl Key {
    pub(super) fn slot(self) -> usize {
        self.slot as usize
    }

    /// The number both ends know it by.
    pub fn id(self) -> u32 {
        self.id
    }
}

/// The encoded recipes of one message's fds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipes {
    pub(super) bytes: Vec<u8>,
    pub(super) count: u16,
    /// Some of `bytes` has left already.
    pub(super) begun: bool,
}

impl Recipes {
    /// `bytes` must not be empty: every fd has a recipe.
    pub fn new(bytes: Vec<u8>, count: usize) -> Self {
        assert!(!bytes.is_empty() && bytes.len() <= RECIPES_MAX && count <= FDS_MAX, "bounded by the caller");
        Self { bytes, count: u16::try_from(count).expect("at most 253"), begun: false }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn count(&self) -> usize {
        usize::from(self.count)
    }
}

/// What the driver must do.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<P> {
    /// The peer opened a stream: `accept` or `reset` it.
    Incoming { key: Key, service: u16, request: Vec<u8> },
    /// The peer's yes to `open` or `announce`.
    /// `said`: by its service, with the yes.
    Accepted { key: Key, said: Vec<u8> },
    /// Bytes for the sink; report `payload.len() + overhead` by `on_consumed` when they are written.
    Data { key: Key, payload: P, record_end: bool, recipes: Option<Recipes>, overhead: u32 },
    /// No more bytes for the sink.
    Fin { key: Key },
    /// Nobody reads what this side sends: stop the source. `unread`: the program over there left something unread.
    ReadClosed { key: Key, unread: bool },
    /// READ_CLOSED or RESET for a stream that has ended here, or whose sending half has. It concerns only streams that were
    /// announced on it: the peer will not accept those that it has not accepted by now.
    Unheard { id: u32 },
    /// The stream is gone, at once, both ways.
    Reset { key: Key, errno: Errno },
    /// `wait_for_room` is over.
    MayRead { key: Key },
    /// The peer takes no new streams.
    GoingAway,
}

#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// This side dialled: its streams have odd ids.
    pub dialer: bool,
    /// What this side grants a new stream.
    pub window: u32,
    /// What the peer said it grants (HELLO).
    pub peer_window: u32,
    pub agreed: Agreed,
    pub now_us: u64,
}

impl Options {
    /// Between two nodes of this version, with the usual windows. `dialer`: as the field.
    pub fn new(dialer: bool) -> Self {
        let window = INITIAL_WINDOW;
        Self { dialer, window, peer_window: window, agreed: Agreed::default(), now_us: 0 }
    }
}
