//! What the record streams of a pair hold for programs that have not read it yet, each stream's part and the sum.
//!
//! A record is only written whole, so its stream has a window of two, and a thousand such windows are gigabytes. They are
//! granted none the less, for small records need none of it; what is bounded is what has really come.

use std::cell::Cell;
use std::rc::Rc;

/// The sum. Cloning gives another handle.
#[derive(Clone, Default)]
pub(super) struct Budget(Rc<Cell<u64>>);

/// One stream's part. Dropped, it is given back.
pub(super) struct Share {
    of: Budget,
    held: u64,
}

impl Budget {
    pub(super) fn held(&self) -> u64 {
        self.0.get()
    }

    pub(super) fn share(&self) -> Box<Share> {
        Box::new(Share { of: self.clone(), held: 0 })
    }
}

impl Share {
    pub(super) fn held(&self) -> u64 {
        self.held
    }

    /// So much, bytes and charges, has come.
    pub(super) fn add(&mut self, count: u64) {
        self.held += count;
        self.of.0.set(self.of.0.get() + count);
    }

    /// The program has taken so much of it.
    pub(super) fn sub(&mut self, count: u64) {
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
    use crate::fdpass::PumpKind;
    use crate::limits::INITIAL_WINDOW;
    use crate::link::port::Port;
    use crate::mux::{Mux, Options, Payload};
    use crate::ring::Chunk;

    #[test]
    fn what_came_before_the_stream_was_one_of_records_counts_too() {
        let options = Options { dialer: true, window: INITIAL_WINDOW, peer_window: INITIAL_WINDOW, now_us: 0 };
        let key = Mux::<Chunk>::new(options).open(1, Vec::new(), INITIAL_WINDOW).unwrap();
        let (mut port, budget) = (Port::new(key), Budget::default());
        port.take_in(Chunk::from_vec(vec![0; 100]), true, None, 64).unwrap();
        assert_eq!(budget.held(), 0);
        let (fd, _theirs, kind) = crate::link::tests::pair_of(nix::sys::socket::SockType::SeqPacket);
        assert!(matches!(kind, PumpKind::SeqPacket));
        port.attach(fd, kind, &budget);
        port.take_in_early().unwrap();
        assert_eq!(budget.held(), 164);
        port.drop_sink();
        assert_eq!(budget.held(), 0);
    }

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
