//! Lines about fds that could not be made, as many as somebody can read: a peer chooses how many there are to say.

use crate::limits::NOTICES_A_TICK;

#[derive(Debug, Default)]
pub(super) struct Notices {
    /// Since the last tick.
    said: u32,
    unsaid: u32,
}

impl Notices {
    /// Whether one more may be said.
    pub(super) fn may_say(&mut self) -> bool {
        let may = self.said < NOTICES_A_TICK;
        *if may { &mut self.said } else { &mut self.unsaid } += 1;
        may
    }

    /// How many were not said since the last tick.
    pub(super) fn tick(&mut self) -> u32 {
        std::mem::take(self).unsaid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_said_and_the_others_are_counted() {
        let mut notices = Notices::default();
        assert_eq!((0..NOTICES_A_TICK + 5).filter(|_| notices.may_say()).count(), NOTICES_A_TICK as usize);
        assert_eq!((notices.tick(), notices.tick()), (5, 0));
        assert!(notices.may_say());
    }
}
