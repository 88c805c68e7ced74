//! Operations in flight, by an id that is never used twice.
//!
//! A slot's number is used again; the generation in the id tells a late word about an operation that has ended from
//! the slot's next tenant.

use slab::Slab;

#[derive(Debug)]
pub(super) struct Slots<T> {
    slots: Slab<(u32, T)>,
    generation: u32,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { slots: Slab::new(), generation: 0 }
    }
}

impl<T> Slots<T> {
    pub(super) fn insert(&mut self, value: T) -> u64 {
        self.generation = self.generation.wrapping_add(1);
        let index = self.slots.insert((self.generation, value));
        u64::from(self.generation) << 32 | u64::try_from(index).expect("far fewer than 2^32 operations")
    }

    /// `None`, here and below: the operation has ended already.
    pub(super) fn get(&self, id: u64) -> Option<&T> {
        let (generation, value) = self.slots.get(index_of(id))?;
        (u64::from(*generation) == id >> 32).then_some(value)
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        let (generation, value) = self.slots.get_mut(index_of(id))?;
        (u64::from(*generation) == id >> 32).then_some(value)
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<T> {
        self.get(id)?;
        Some(self.slots.remove(index_of(id)).1)
    }

    pub(super) fn ids(&self) -> Vec<u64> {
        let id = |(index, (generation, _)): (usize, &(u32, T))| u64::from(*generation) << 32 | index as u64;
        self.slots.iter().map(id).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
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
}
