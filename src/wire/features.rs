//! Feature negotiation. Each node's HELLO lists the optional features that it supports, one bit each. A session uses only
//! features that both nodes support, so an older peer never receives a frame type or service that it does not know.

use super::hello::Hello;
use crate::limits::RECORD_MAX;

/// The peer accepts `service::REFUSED` streams, which report passed fds that could not be recreated.
pub const NOTICES: u64 = 1 << 0;
/// Sessions can be resumed: each lane keeps its frames until an ACK and replays them on a new link.
pub const RESUME: u64 = 1 << 1;
/// All features that this node supports.
pub const KNOWN: u64 = NOTICES | RESUME;
/// Not a feature: this link resumes a lane of an existing session.
pub const RESUMES: u64 = 1 << 63;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    features: u64,
    /// The largest record that this node may send to the peer.
    pub record_max: u32,
    /// Number of link pairs in the session. They share the limits of the replay buffers.
    pub pairs: u16,
}

impl Agreed {
    /// `known`: the features that this node offers.
    pub fn with(theirs: &Hello, known: u64, workers: u16) -> Self {
        let pairs = theirs.workers.max(workers).max(1);
        Self { features: theirs.features & known, record_max: theirs.record_max.min(RECORD_MAX), pairs }
    }

    pub fn has(self, feature: u64) -> bool {
        self.features & feature == feature
    }
}

/// Between two nodes of this version.
impl Default for Agreed {
    fn default() -> Self {
        Self { features: KNOWN, record_max: RECORD_MAX, pairs: 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::hello::tests::hello;

    #[test]
    fn only_what_both_know_is_agreed() {
        let older = Agreed::with(&Hello { features: 0, record_max: 1000, ..hello() }, KNOWN, 1);
        assert_eq!((older.has(NOTICES), older.record_max), (false, 1000));
        let newer = Agreed::with(&Hello { features: u64::MAX, record_max: u32::MAX, workers: 1, ..hello() }, KNOWN, 1);
        assert_eq!(newer, Agreed::default());
    }
}
