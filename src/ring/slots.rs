//! Operations in flight, by an id that is never used twice.
//!
//! A slot's number is used again; the generation in the id tells a late word about an operation that has ended from
//! the slot's next tenant.
//!
//! After a burst the last slots are those of operations that are renewed for ever (a link's read), and would keep all the
//! others: from then on a high slot that falls free is used when no low one is left.

use crate::limits::SLACK_MIN;
use crate::slack;

#[derive(Debug)]
pub(super) struct Slots<T> {
    slots: Vec<(u32, Option<T>)>,
    /// Free slots below `high_from`, and the others.
    low: Vec<u32>,
    high: Vec<u32>,
    high_from: usize,
    generation: u32,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), low: Vec::new(), high: Vec::new(), high_from: usize::MAX, generation: 0 }
    }
}

impl<T> Slots<T> {
    pub(super) fn insert(&mut self, value: T) -> u64 {
        self.generation = self.generation.wrapping_add(1).max(1);
        let entry = (self.generation, Some(value));
        let index = match self.low.pop().or_else(|| self.high.pop()) {
            Some(free) => {
                self.slots[free as usize] = entry;
                free
            }
            None => {
                self.slots.push(entry);
                u32::try_from(self.slots.len() - 1).expect("far fewer than 2^32 operations")
            }
        };
        u64::from(self.generation) << 32 | u64::from(index)
    }

    /// `None`, here and below: the operation has ended already.
    pub(super) fn get(&self, id: u64) -> Option<&T> {
        let (generation, value) = self.slots.get(index_of(id))?;
        value.as_ref().filter(|_| u64::from(*generation) == id >> 32)
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        let (generation, value) = self.slots.get_mut(index_of(id))?;
        let generation = u64::from(*generation);
        value.as_mut().filter(|_| generation == id >> 32)
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<T> {
        let index = index_of(id);
        let (generation, value) = self.slots.get_mut(index)?;
        let value = if u64::from(*generation) == id >> 32 { value.take()? } else { return None };
        let free = if index < self.high_from { &mut self.low } else { &mut self.high };
        free.push(u32::try_from(index).expect("32 bits of an id"));
        Some(value)
    }

    pub(super) fn ids(&self) -> Vec<u64> {
        let used = self.slots.iter().enumerate().filter(|(_, (_, value))| value.is_some());
        used.map(|(index, (generation, _))| u64::from(*generation) << 32 | index as u64).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.low.len() - self.high.len()
    }

    /// Gives back what a burst needed.
    pub(super) fn rest(&mut self) {
        let loose = slack::is_loose(self.len(), self.slots.len());
        if !loose && self.high_from == usize::MAX {
            return;
        }
        self.high_from = if loose { (2 * self.len()).max(SLACK_MIN) } else { usize::MAX };
        let used = self.slots.iter().rposition(|(_, value)| value.is_some()).map_or(0, |last| last + 1);
        self.slots.truncate(used);
        self.slots.shrink_to(SLACK_MIN);
        let free = (0..used).rev().filter(|at| self.slots[*at].1.is_none());
        let free = free.map(|at| u32::try_from(at).expect("32 bits of an id"));
        let bound = self.high_from;
        (self.high, self.low) = free.partition(|at| *at as usize >= bound);
    }
}

fn index_of(id: u64) -> usize {
    usize::try_from(id & 0xffff_ffff).expect("32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_id_does_not_find_the_next_tenant() {
        let mut slots = Slots::default();
        let old = slots.insert('a');
        assert_eq!(slots.remove(old), Some('a'));
        let new = slots.insert('b');
        assert_eq!((slots.remove(old), slots.get_mut(old)), (None, None));
        assert_eq!((slots.ids(), slots.remove(new)), (vec![new], Some('b')));
    }

    #[test]
    fn after_a_burst_an_operation_that_is_renewed_moves_down_and_the_rest_goes() {
        let mut slots = Slots::default();
        let ids: Vec<u64> = (0..10_000).map(|n| slots.insert(n)).collect();
        let (last, others) = ids.split_last().unwrap();
        others.iter().for_each(|id| assert!(slots.remove(*id).is_some()));
        slots.rest();
        assert_eq!((slots.slots.len(), slots.len(), slots.get(*last)), (10_000, 1, Some(&9_999)));
        slots.remove(*last);
        let renewed = slots.insert(1);
        assert_eq!(index_of(renewed), 0);
        slots.rest();
        assert_eq!((slots.slots.len(), slots.get(renewed)), (1, Some(&1)));
        // And as many again find their places.
        let again: Vec<u64> = (0..10_000).map(|n| slots.insert(n)).collect();
        assert_eq!(slots.len(), 10_001);
        assert!(again.iter().all(|id| slots.get(*id).is_some()));
    }
}
