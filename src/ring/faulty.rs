//! An engine for the simulation of links: the kernel's own sockets, and nothing else that can be relied on.
//!
//! ```text
//!   submit ─▶ pending ── attempted at a random turn, in a random order ──▶ done ──some turns later─▶ told
//!                │          perhaps for fewer bytes, perhaps EAGAIN
//!                └─ cancel ─▶ ECANCELED, or what it has done, at a random turn
//! ```
//!
//! All that happens comes of one seed. A quiet send that went well is told only with another completion, or after `hurry`:
//! whoever waits for it without saying so waits for ever.

use std::cell::RefCell;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::socket::{SockType, getsockopt, sockopt};

use super::calls;
use super::envelope::Envelope;
use super::op::{Done, Engine, Op, OpId, Outcome};
use crate::errno::{Errno, OsResult};
use crate::mux::sim::Rng;

struct Pending {
    id: u64,
    token: u64,
    op: Op,
    cancelled: bool,
    quiet: bool,
}

pub(crate) struct FaultyEngine {
    rng: Rc<RefCell<Rng>>,
    /// Percent of attempts that are made less of than they could be.
    faults: u64,
    next: u64,
    pending: Vec<Pending>,
    /// Ended, and told when so many more turns have passed.
    late: Vec<(usize, Done)>,
    quiet: Vec<Done>,
    hurried: bool,
    envelope: Box<Envelope>,
}

impl FaultyEngine {
    pub(crate) fn new(rng: &Rc<RefCell<Rng>>, faults: u64) -> Self {
        Self {
            rng: Rc::clone(rng),
            faults,
            next: 0,
            pending: Vec::new(),
            late: Vec::new(),
            quiet: Vec::new(),
            hurried: false,
            envelope: Envelope::new(),
        }
    }

    fn add(&mut self, op: Op, token: u64, quiet: bool) -> OpId {
        self.next += 1;
        self.pending.push(Pending { id: self.next, token, op, cancelled: false, quiet });
        OpId::new(self.next)
    }

    /// Tries one of the pending operations; puts it back if it has to wait on.
    fn attempt(&mut self, at: usize) {
        let mut one = self.pending.swap_remove(at);
        let (fault, late) = {
            let mut rng = self.rng.borrow_mut();
            (rng.chance(self.faults), if rng.chance(self.faults) { rng.below(4) } else { 0 })
        };
        // A cancel may come too late, or in time.
        let outcome = match (one.cancelled && !fault, fault && may_be_again(&one.op)) {
            (true, _) => Outcome::from(Err(Errno::ECANCELED)),
            (_, true) if self.rng.borrow_mut().chance(30) => Outcome::from(Err(Errno::EAGAIN)),
            (_, shorter) => {
                if shorter {
                    self.shorten(&mut one.op);
                }
                calls::attempt(&one.op, &mut self.envelope)
            }
        };
        let waits =
            outcome.result == Err(Errno::EAGAIN) && !one.op.ends_at_eagain() && !(fault && may_be_again(&one.op));
        if waits && one.cancelled {
            let done = Outcome::from(Err(Errno::ECANCELED)).done(one.token, one.op);
            return self.late.push((late, done));
        }
        if waits {
            return self.pending.push(one);
        }
        let whole = outcome.result.is_ok_and(|sent| sent as usize == one.op.to_send());
        let done = outcome.done(one.token, one.op);
        match one.quiet && whole {
            true => self.quiet.push(done),
            false => self.late.push((late, done)),
        }
    }

    /// A read may take less than there is, but for a record, which is measured.
    fn shorten(&mut self, op: &mut Op) {
        let (Op::Recv { fd, max, .. } | Op::Peek { fd, max, .. } | Op::Read { fd, max, .. }) = op else { return };
        let stream = getsockopt(&**fd, sockopt::SockType).is_ok_and(|kind| kind == SockType::Stream);
        if *max > 1 && (stream || getsockopt(&**fd, sockopt::SockType).is_err()) {
            *max = 1 + self.rng.borrow_mut().below((*max - 1).min(600));
        }
    }
}

/// Whether the operation may say EAGAIN, or do less, at any time. A wake-up by an eventfd is read whole.
fn may_be_again(op: &Op) -> bool {
    match op {
        Op::Recv { .. } | Op::Peek { .. } | Op::Send { .. } | Op::SendChunk { .. } => true,
        Op::Read { max, .. } => *max != 8,
        _ => false,
    }
}

impl Engine for FaultyEngine {
    fn submit(&mut self, op: Op, token: u64) -> OpId {
        assert!(op.fd().as_raw_fd() >= 0);
        self.add(op, token, false)
    }

    fn submit_quietly(&mut self, op: Op, token: u64) -> OpId {
        self.add(op, token, true)
    }

    fn hurry(&mut self) {
        self.hurried = true;
        // Those that have not begun are told of as soon as they end: a real engine tries them before its next wait.
        self.pending.iter_mut().for_each(|one| one.quiet = false);
    }

    fn cancel(&mut self, id: OpId) {
        let id = id.0.get();
        self.pending.iter_mut().filter(|one| one.id == id).for_each(|one| one.cancelled = true);
    }

    fn wait(&mut self, _timeout: Option<Duration>, done: &mut Vec<Done>) -> OsResult<()> {
        for _ in 0..self.pending.len() {
            let at = {
                let mut rng = self.rng.borrow_mut();
                if rng.chance(self.faults) || self.pending.is_empty() {
                    continue;
                }
                rng.below(self.pending.len())
            };
            self.attempt(at);
        }
        let mut still = Vec::new();
        for (turns, one) in self.late.drain(..) {
            match turns {
                0 => done.push(one),
                more => still.push((more - 1, one)),
            }
        }
        self.late = still;
        if !done.is_empty() || std::mem::take(&mut self.hurried) {
            done.append(&mut self.quiet);
        }
        Ok(())
    }

    fn rest(&mut self) {}
}
