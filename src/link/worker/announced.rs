//! Streams that this side announced with a message's fds and that the peer has not accepted yet.
//!
//! The peer accepts or refuses each stream when it makes the message's fds. If the message never reaches a program, there is
//! no answer. Then the peer's READ_CLOSED or RESET of the carrier tells, and it may arrive after the carrier ended here.

use std::collections::HashMap;

use crate::mux::Key;

/// Keyed by the id of the carrier, the stream whose message announced them.
#[derive(Debug, Default)]
pub(super) struct Announced(HashMap<u32, Vec<Key>>);

impl Announced {
    /// Entries that are answered are removed when the list would have to grow.
    pub(super) fn add(&mut self, carrier: Key, children: &[Key], waits: impl Fn(Key) -> bool) {
        if children.is_empty() {
            return;
        }
        let known = self.0.entry(carrier.id()).or_default();
        if known.len() + children.len() > known.capacity() {
            known.retain(|child| waits(*child));
        }
        known.extend(children);
    }

    /// The streams that the carrier announced. Some may have been answered.
    pub(super) fn take(&mut self, carrier: u32) -> Vec<Key> {
        self.0.remove(&carrier).unwrap_or_default()
    }

    pub(super) fn tick(&mut self, waits: impl Fn(Key) -> bool) {
        self.0.retain(|_, children| {
            children.retain(|child| waits(*child));
            !children.is_empty()
        });
    }
}
