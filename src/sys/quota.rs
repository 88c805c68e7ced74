//! How many of something each holder has: at most `each`, and all of them together at most `all`.
//!
//! Pure: whoever takes a place decides what a no means. `all` should be several times `each`, so that holders at their
//! quota leave room for others.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub each: usize,
    pub all: usize,
}

/// Why there is no place; shown as the number of places that are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// This holder has as many as one may have.
    Each(usize),
    /// All holders together have as many as there are.
    All(usize),
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Each(count) => write!(f, "{count} at once are the most for one"),
            Self::All(count) => write!(f, "{count} at once are the most for all"),
        }
    }
}

/// Clones share one count.
#[derive(Debug)]
pub struct Quota<K>(Arc<Shared<K>>);

#[derive(Debug)]
struct Shared<K> {
    limits: Limits,
    taken: Mutex<Taken<K>>,
}

#[derive(Debug)]
struct Taken<K> {
    by: HashMap<K, usize>,
    all: usize,
}

/// One that is taken; given back when it is dropped.
#[derive(Debug)]
pub struct Place<K: Eq + Hash> {
    shared: Arc<Shared<K>>,
    holder: K,
}

impl<K> Clone for Quota<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Eq + Hash + Copy> Quota<K> {
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Shared { limits, taken: Mutex::new(Taken { by: HashMap::new(), all: 0 }) }))
    }

    /// # Errors
    /// There is none for this holder.
    pub fn take(&self, holder: K) -> Result<Place<K>, Full> {
        let Limits { each, all } = self.0.limits;
        let mut taken = self.0.taken();
        if taken.by.get(&holder).is_some_and(|count| *count >= each) {
            return Err(Full::Each(each));
        }
        if taken.all >= all {
            return Err(Full::All(all));
        }
        *taken.by.entry(holder).or_default() += 1;
        taken.all += 1;
        Ok(Place { shared: Arc::clone(&self.0), holder })
    }
}

impl<K> Shared<K> {
    fn taken(&self) -> MutexGuard<'_, Taken<K>> {
        self.taken.lock().expect("no holder panics: panic is abort")
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.shared.taken();
        taken.all -= 1;
        let left = taken.by.get_mut(&self.holder).map(|count| {
            *count -= 1;
            *count
        });
        if left == Some(0) {
            taken.by.remove(&self.holder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_its_quota_leaves_places_for_others_and_a_place_comes_back() {
        let quota = Quota::new(Limits { each: 2, all: 5 });
        let mut held: Vec<_> = (0..2).map(|_| quota.take('a').unwrap()).collect();
        assert_eq!(quota.take('a').unwrap_err(), Full::Each(2));
        held.extend((0..2).map(|_| quota.take('b').unwrap()));
        held.push(quota.take('c').unwrap());
        assert_eq!(quota.take('c').unwrap_err(), Full::All(5));
        held.remove(0);
        held.push(quota.take('a').unwrap());
        drop(held);
        assert!(quota.0.taken().by.is_empty() && quota.0.taken().all == 0);
    }
}
