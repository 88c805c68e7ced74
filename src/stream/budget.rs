//! What the record streams of a pair hold for programs that have not read it yet, each stream's part and the sum.
//!
//! A record is only written whole, so its stream has a window of two, and a thousand such windows are gigabytes. They are
//! granted none the less, for small records need none of it; what is bounded is what has really come.

use std::cell::Cell;
use std::rc::Rc;

/// The sum. Cloning gives another handle.
#[derive(Clone, Default)]
pub struct Budget(Rc<Cell<u64>>);

/// One stream's part. Dropped, it is given back.
pub struct Share {
    of: Budget,
    held: u64,
}

impl Budget {
    pub fn held(&self) -> u64 {
        self.0.get()
    }

    pub fn share(&self) -> Box<Share> {
        Box::new(Share { of: self.clone(), held: 0 })
    }
}

impl Share {
    pub fn held(&self) -> u64 {
        self.held
    }

    /// So much, bytes and charges, has come.
    pub fn add(&mut self, count: u64) {
        self.held += count;
        self.of.0.set(self.of.0.get() + count);
    }

    /// The program has taken so much of it.
    pub fn sub(&mut self, count: u64) {
        self.held -= count;
        self.of.0.set(self.of.0.get() - count);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.sub(self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stream_held_is_given_back_with_it() {
        let budget = Budget::default();
        let (mut a, mut b) = (budget.share(), budget.share());
        a.add(10);
        b.add(5);
        a.sub(3);
        assert_eq!((a.held(), b.held(), budget.held()), (7, 5, 12));
        drop(a);
        assert_eq!(budget.held(), 5);
    }
}
