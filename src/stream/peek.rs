//! Which reads of a stream socket are preceded by a peek (MSG_PEEK) for passed fds.
//!
//! The kernel glues messages together in one read, and a read that met bytes and then fds cannot tell at which byte the
//! fds belong. A peek can: so all reads are preceded by one, but for those of a stream that is busy and has never passed
//! an fd. That one pays for a few peeks each tick, and is missed only if its first fd comes in the middle of a burst.

use crate::limits::PEEKS_A_TICK;

#[derive(Debug)]
pub(super) struct PeekPolicy {
    /// Until the next tick; `None`: the stream has passed fds.
    left: Option<u32>,
}

impl Default for PeekPolicy {
    fn default() -> Self {
        Self { left: Some(PEEKS_A_TICK) }
    }
}

impl PeekPolicy {
    /// Whether the next read is to be preceded by one.
    pub(super) fn is_wanted(&self) -> bool {
        self.left != Some(0)
    }

    /// One saw nothing but bytes.
    pub(super) fn saw_bytes(&mut self) {
        self.left = self.left.map(|left| left.saturating_sub(1));
    }

    /// A peek, or a read, met fds; or control data that some program has asked for (its own SO_PASSCRED), of which a peek
    /// cannot tell them.
    pub(super) fn saw_fds(&mut self) {
        self.left = None;
    }

    pub(super) fn has_seen_fds(&self) -> bool {
        self.left.is_none()
    }

    pub(super) fn tick(&mut self) {
        self.left = self.left.map(|_| PEEKS_A_TICK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_stream_pays_for_a_few_and_one_that_has_passed_fds_for_all() {
        let mut peek = PeekPolicy::default();
        for _ in 0..2 {
            for _ in 0..PEEKS_A_TICK {
                assert!(peek.is_wanted());
                peek.saw_bytes();
            }
            assert!(!peek.is_wanted());
            peek.tick();
        }
        peek.saw_fds();
        (0..=PEEKS_A_TICK).for_each(|_| peek.saw_bytes());
        assert!(peek.is_wanted());
    }
}
