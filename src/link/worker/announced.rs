//! Streams that were announced here with a message's fds, and that the peer has not taken up yet.
//!
//! The peer gives each of them its verdict when it rebuilds the message. A message that never reaches a program has no
//! verdicts: then it is the end of the peer's reading that tells, and it may come when the carrier has long ended here.

use std::collections::HashMap;

use crate::mux::Key;

/// By the id of the stream whose message announced them.
#[derive(Debug, Default)]
pub(super) struct Announced(HashMap<u32, Vec<Key>>);

impl Announced {
    /// As many again may pile up before those are forgotten for which nobody waits any more.
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

    /// Nobody reads what this carrier sends. Some of these may have been taken up before.
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
