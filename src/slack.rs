//! Room that a burst has left behind: collections give it back once they use little of it.
//!
//! Asked now and then, never on the way of a byte: to shrink is to copy.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use slab::Slab;

use crate::limits::SLACK_MIN;

/// Whether so many places are not worth keeping for `len` things.
pub fn is_loose(len: usize, capacity: usize) -> bool {
    capacity > SLACK_MIN && len < capacity / 4
}

pub fn vec<T>(it: &mut Vec<T>) {
    if is_loose(it.len(), it.capacity()) {
        it.shrink_to((2 * it.len()).max(SLACK_MIN));
    }
}

pub fn queue<T>(it: &mut VecDeque<T>) {
    if is_loose(it.len(), it.capacity()) {
        it.shrink_to((2 * it.len()).max(SLACK_MIN));
    }
}

pub fn map<K: Eq + Hash, V>(it: &mut HashMap<K, V>) {
    if is_loose(it.len(), it.capacity()) {
        it.shrink_to((2 * it.len()).max(SLACK_MIN));
    }
}

/// Keys stay what they are, so only the places behind the last one can go.
pub fn slab<T>(it: &mut Slab<T>) {
    if is_loose(it.len(), it.capacity()) {
        it.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slab_keeps_its_keys_and_gives_back_what_lies_behind_them() {
        let mut it: Slab<usize> = (0..10_000).map(|n| (n, n)).collect();
        slab(&mut it);
        assert!(it.capacity() >= 10_000, "all of it is used");
        it.retain(|key, _| key == 17);
        slab(&mut it);
        assert!(it.capacity() < 1000 && it[17] == 17);
    }

    #[test]
    fn what_is_small_or_well_filled_stays_as_it_is() {
        let mut few: Vec<u8> = Vec::with_capacity(SLACK_MIN);
        vec(&mut few);
        assert!(few.capacity() >= SLACK_MIN);
        let mut many: VecDeque<usize> = (0..4 * SLACK_MIN).collect();
        let before = many.capacity();
        queue(&mut many);
        assert_eq!(many.capacity(), before);
        many.clear();
        queue(&mut many);
        assert!(many.capacity() < before);
    }
}
