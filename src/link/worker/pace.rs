//! How busy a worker is, and so whether it should wake for every message (`sys::sched`).

use crate::limits::BUSY_A_TICK;

/// Counts a worker's completions.
#[derive(Debug, Default)]
pub(super) struct Pace {
    count: usize,
    busy: bool,
}

impl Pace {
    /// So many more have come. `Some(true)`: the worker has just become busy.
    pub(super) fn add(&mut self, count: usize) -> Option<bool> {
        self.count += count;
        (self.count >= BUSY_A_TICK && !std::mem::replace(&mut self.busy, true)).then_some(true)
    }

    /// A tick is over. `Some(false)`: the worker is no longer busy.
    pub(super) fn tick(&mut self) -> Option<bool> {
        let calm = std::mem::take(&mut self.count) < BUSY_A_TICK / 2;
        (calm && std::mem::take(&mut self.busy)).then_some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_told_once_and_so_is_calm() {
        let mut pace = Pace::default();
        assert_eq!((pace.add(BUSY_A_TICK - 1), pace.tick()), (None, None));
        assert_eq!((pace.add(BUSY_A_TICK), pace.add(1)), (Some(true), None));
        // Somewhat less than it takes to become busy is still busy.
        assert_eq!((pace.tick(), pace.add(BUSY_A_TICK / 2), pace.tick()), (None, None, None));
        assert_eq!((pace.add(BUSY_A_TICK / 2 - 1), pace.tick(), pace.tick()), (None, Some(false), None));
    }
}
