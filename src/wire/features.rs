//! What two nodes agree on when their HELLOs have crossed. Each says which optional behaviour it knows, a bit each; what
//! both know is agreed, and nothing else is used. So a new frame type or service comes with a bit: an older peer's session
//! never meets what it does not know.

use super::hello::Hello;
use crate::limits::RECORD_MAX;

/// The peer may be told by a stream of `service::REFUSED` which fd could not be made.
pub const NOTICES: u64 = 1 << 0;
/// All that this node knows.
pub const KNOWN: u64 = NOTICES;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    features: u64,
    /// The largest record that the peer takes and this node sends.
    pub record_max: u32,
}

impl Agreed {
    pub fn with(theirs: &Hello) -> Self {
        Self { features: theirs.features & KNOWN, record_max: theirs.record_max.min(RECORD_MAX) }
    }

    pub fn has(self, feature: u64) -> bool {
        self.features & feature == feature
    }
}

/// With a node of this very program.
impl Default for Agreed {
    fn default() -> Self {
        Self { features: KNOWN, record_max: RECORD_MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::hello::tests::hello;

    #[test]
    fn only_what_both_know_is_agreed() {
        let older = Agreed::with(&Hello { features: 0, record_max: 1000, ..hello() });
        assert_eq!((older.has(NOTICES), older.record_max), (false, 1000));
        let newer = Agreed::with(&Hello { features: u64::MAX, record_max: u32::MAX, ..hello() });
        assert_eq!(newer, Agreed::default());
    }
}
