//! Pauses between attempts to dial, longer each time, and what the log has said of the last failure.

use std::time::{Duration, Instant};

use super::node::Node;

pub(super) struct Backoff {
    first: Duration,
    most: Duration,
    pause: Duration,
    said: String,
}

impl Backoff {
    pub(super) fn new(first_ms: u64, most_ms: u64) -> Self {
        let (first, most) = (Duration::from_millis(first_ms), Duration::from_millis(most_ms));
        Self { first, most, pause: first, said: String::new() }
    }

    /// Whether the log should have a line about this failure: a peer that is down for a night must not fill it.
    pub(super) fn is_news(&mut self, text: &str) -> bool {
        let news = text != self.said;
        if news {
            text.clone_into(&mut self.said);
        }
        news
    }

    pub(super) fn forget_failures(&mut self) {
        self.said.clear();
    }

    pub(super) fn begin_again(&mut self) {
        self.pause = self.first;
    }

    /// Waits until the pause after an attempt that began at `begun` is over, or the node leaves.
    pub(super) fn wait(&mut self, node: &Node, begun: Instant) {
        node.pause(self.pause.saturating_sub(begun.elapsed()).max(self.first));
        self.pause = (self.pause * 2).min(self.most);
    }
}
