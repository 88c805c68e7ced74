//! Which reads of a stream socket are preceded by a look (MSG_PEEK) for passed fds.
//!
//! The kernel glues messages together in one read, and a read that met bytes and then fds cannot tell at which byte the
//! fds belong. A look can: so all reads are preceded by one, but for those of a stream that is busy and has never passed
//! an fd. That one pays for a few looks each tick, and is missed only if its first fd comes in the middle of a burst.

use crate::limits::{FRUITLESS_MAX, LOOKS_A_TICK};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Budget {
    /// So many until the next tick.
    Left(u32),
    /// It has passed fds.
    Unlimited,
    /// Every look sees something that is no fd.
    Spent,
}

#[derive(Debug)]
pub(super) struct Looks {
    budget: Budget,
    fruitless: u32,
}

impl Default for Looks {
    fn default() -> Self {
        Self { budget: Budget::Left(LOOKS_A_TICK), fruitless: 0 }
    }
}

impl Looks {
    /// Whether the next read is to be preceded by one.
    pub(super) fn is_wanted(&self) -> bool {
        !matches!(self.budget, Budget::Left(0) | Budget::Spent)
    }

    /// One saw nothing but bytes.
    pub(super) fn saw_bytes(&mut self) {
        if let Budget::Left(left) = &mut self.budget {
            *left = left.saturating_sub(1);
        }
    }

    /// A look, or a read, met fds.
    pub(super) fn saw_fds(&mut self) {
        self.budget = Budget::Unlimited;
    }

    /// One saw control data, and a helper found no fds with it, since a program has asked for something else (its own
    /// SO_PASSCRED) that every look sees. After some of these the looks end, until fds come. (Without that, the fds lie
    /// right behind the bytes that were looked at, of which the kernel tells too.)
    pub(super) fn was_fruitless(&mut self) {
        self.fruitless += 1;
        if self.fruitless >= FRUITLESS_MAX {
            *self = Self { budget: Budget::Spent, fruitless: 0 };
        }
    }

    pub(super) fn tick(&mut self) {
        if let Budget::Left(left) = &mut self.budget {
            *left = LOOKS_A_TICK;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_stream_pays_for_a_few_and_one_that_has_passed_fds_for_all() {
        let mut looks = Looks::default();
        for _ in 0..2 {
            for _ in 0..LOOKS_A_TICK {
                assert!(looks.is_wanted());
                looks.saw_bytes();
            }
            assert!(!looks.is_wanted());
            looks.tick();
        }
        looks.saw_fds();
        (0..=LOOKS_A_TICK).for_each(|_| looks.saw_bytes());
        assert!(looks.is_wanted());
    }

    #[test]
    fn looks_that_always_see_something_end_until_fds_come() {
        let mut looks = Looks::default();
        for _ in 0..FRUITLESS_MAX {
            assert!(looks.is_wanted());
            looks.saw_fds();
            looks.was_fruitless();
        }
        looks.tick();
        assert!(!looks.is_wanted());
        looks.saw_fds();
        assert!(looks.is_wanted());
    }
}
