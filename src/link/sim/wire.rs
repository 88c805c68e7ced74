//! The wire between two workers: what one sends arrives in pieces, when the seed likes.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use crate::mux::sim::Rng;

pub(super) struct Wire {
    ends: [UnixStream; 2],
    /// Towards `ends[at]`.
    held: [VecDeque<u8>; 2],
    closed: [bool; 2],
}

/// As much as a connection's buffers hold.
const HELD_MAX: usize = 256 << 10;

impl Wire {
    /// And the workers' two ends of it.
    pub(super) fn new() -> (Self, [OwnedFd; 2]) {
        let (pairs, ours): (Vec<_>, Vec<_>) = (0..2).map(|_| UnixStream::pair().unwrap()).unzip();
        let ends = <[UnixStream; 2]>::try_from(pairs).unwrap();
        ends.iter().for_each(|end| end.set_nonblocking(true).unwrap());
        let wire = Self { ends, held: Default::default(), closed: [false; 2] };
        (wire, <[UnixStream; 2]>::try_from(ours).unwrap().map(OwnedFd::from))
    }

    /// Takes what a worker has sent, and delivers a part of what is on its way.
    pub(super) fn carry(&mut self, rng: &mut Rng) {
        let from = rng.below(2);
        let to = 1 - from;
        let mut bytes = vec![0; 1 + rng.below(64 << 10)];
        if self.held[to].len() < HELD_MAX {
            match self.ends[from].read(&mut bytes) {
                Ok(0) => self.closed[from] = true,
                Ok(count) => self.held[to].extend(&bytes[..count]),
                Err(e) => assert!(e.kind() == ErrorKind::WouldBlock || e.kind() == ErrorKind::ConnectionReset),
            }
        }
        let part = match rng.chance(40) {
            true => self.held[to].len(),
            false => rng.below(self.held[to].len().min(5000) + 1),
        };
        let (front, _) = self.held[to].as_slices();
        let sent = match self.ends[to].write(&front[..part.min(front.len())]) {
            Ok(sent) => sent,
            Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
            // The worker has closed its end.
            Err(_) => front.len(),
        };
        self.held[to].drain(..sent);
        if self.closed[from] && self.held[to].is_empty() {
            let _ = self.ends[to].shutdown(std::net::Shutdown::Write);
        }
    }
}
