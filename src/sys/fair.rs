//! Turns for holders of very different appetites: each has so many jobs under way at most, and its further ones wait for its
//! own, not for anybody else's.
//!
//! ```text
//!   enter ──under its share──▶ Now ──▶ done ──▶ leave ──▶ the next one of the same holder, if any
//!     ├── at its share ──▶ Later: kept here
//!     └── too many wait ──▶ Full
//! ```

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Jobs of one holder under way at once.
    pub each: usize,
    /// Further ones of one holder that wait.
    pub waiting: usize,
}

#[derive(Debug)]
pub struct Fair<K, J> {
    share: Share,
    holders: Mutex<HashMap<K, Holder<J>>>,
}

#[derive(Debug)]
struct Holder<J> {
    under_way: usize,
    waiting: VecDeque<J>,
}

/// When a job's turn is.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn<J> {
    /// At once; `leave` says when it is done.
    Now(J),
    /// `leave` gives it to whoever has finished another one of the same holder.
    Later,
    /// Never.
    Full(J),
}

impl<K: Eq + Hash, J> Fair<K, J> {
    pub fn new(share: Share) -> Self {
        Self { share, holders: Mutex::default() }
    }

    fn holders(&self) -> MutexGuard<'_, HashMap<K, Holder<J>>> {
        self.holders.lock().expect("no holder panics: panic is abort")
    }

    pub fn enter(&self, holder: K, job: J) -> Turn<J> {
        let mut holders = self.holders();
        let own = holders.entry(holder).or_insert_with(|| Holder { under_way: 0, waiting: VecDeque::new() });
        if own.under_way < self.share.each {
            own.under_way += 1;
            return Turn::Now(job);
        }
        if own.waiting.len() >= self.share.waiting {
            return Turn::Full(job);
        }
        own.waiting.push_back(job);
        Turn::Later
    }

    /// Whether a job of that holder would have a turn, now or later.
    pub fn has_room(&self, holder: &K) -> bool {
        let Share { each, waiting } = self.share;
        self.holders().get(holder).is_none_or(|own| own.under_way < each || own.waiting.len() < waiting)
    }

    /// A job whose turn was now is done. The one that is returned takes its place.
    pub fn leave(&self, holder: &K) -> Option<J> {
        let mut holders = self.holders();
        let own = holders.get_mut(holder)?;
        let next = own.waiting.pop_front();
        if next.is_none() {
            own.under_way -= 1;
            if own.under_way == 0 {
                holders.remove(holder);
            }
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_its_share_waits_for_itself_and_nobody_else_does() {
        let fair = Fair::new(Share { each: 2, waiting: 1 });
        assert_eq!((fair.enter('a', 1), fair.enter('a', 2)), (Turn::Now(1), Turn::Now(2)));
        assert_eq!((fair.enter('a', 3), fair.enter('a', 4)), (Turn::Later, Turn::Full(4)));
        assert_eq!(fair.enter('b', 5), Turn::Now(5));
        assert_eq!((fair.leave(&'a'), fair.leave(&'a')), (Some(3), None));
        assert_eq!((fair.leave(&'a'), fair.leave(&'b')), (None, None));
        assert!(fair.holders().is_empty());
    }
}
