//! What two nodes agree on when their HELLOs have crossed. Each says which optional behaviour it knows, a bit each; what
//! both know is agreed, and nothing else is used. So a new frame type or service comes with a bit: an older peer's session
//! never meets what it does not know.

use super::hello::Hello;
use crate::limits::RECORD_MAX;

/// The peer may be told by a stream of `service::REFUSED` which fd could not be made.
pub const NOTICES: u64 = 1 << 0;
/// A session survives the loss of its links: each lane's frames are kept until an ACK, and said again on the next link.
pub const RESUME: u64 = 1 << 1;
/// All that this node knows.
pub const KNOWN: u64 = NOTICES | RESUME;
/// Not a thing to know, but what this link is: it goes on with a lane of a session that is there.
pub const RESUMES: u64 = 1 << 63;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    features: u64,
    /// The largest record that the peer takes and this node sends.
    pub record_max: u32,
    /// Link pairs of the session, which share its bounds.
    pub pairs: u16,
}

impl Agreed {
    /// `known`: what this node wants to use.
    pub fn with(theirs: &Hello, known: u64, workers: u16) -> Self {
        let pairs = theirs.workers.max(workers).max(1);
        Self { features: theirs.features & known, record_max: theirs.record_max.min(RECORD_MAX), pairs }
    }

    pub fn has(self, feature: u64) -> bool {
        self.features & feature == feature
    }
}

/// With a node of this very program.
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
