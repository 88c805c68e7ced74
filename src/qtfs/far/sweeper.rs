//! The thread of a link that closes what nobody uses any more.
//!
//! The last close of a deleted file deletes it, which takes a while for a large one. So no request waits for it, nor
//! does the thread that reads the link.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

use super::nodes::Nodes;
use crate::limits::NODE_IDLE;

#[derive(Debug, Default)]
struct State {
    rung: bool,
    over: bool,
}

#[derive(Debug, Default)]
pub(super) struct Bell {
    state: Mutex<State>,
    wake: Condvar,
}

impl Bell {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("never poisoned: panics abort")
    }

    /// There is something to close at once.
    pub(super) fn ring(&self) {
        // To wake nobody costs a system call too.
        if !std::mem::replace(&mut self.state().rung, true) {
            self.wake.notify_one();
        }
    }

    /// The link is over.
    pub(super) fn end(&self) {
        self.state().over = true;
        self.wake.notify_one();
    }

    /// Waits until somebody rings or it is `tick`; `false` when the link is over.
    fn wait(&self, tick: Instant) -> bool {
        let mut state = self.state();
        while !state.rung && !state.over {
            let left = tick.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.wake.wait_timeout(state, left).expect("never poisoned: panics abort").0;
        }
        state.rung = false;
        !state.over
    }
}

/// Runs until the link is over.
pub(super) fn sweep(nodes: &Nodes) {
    let mut tick = Instant::now() + NODE_IDLE;
    while nodes.bell.wait(tick) {
        let now = Instant::now();
        let due = now >= tick;
        if due {
            // A close that took long delays the next tick, so that an fd always has a whole one to be touched in.
            tick = now + NODE_IDLE;
        }
        nodes.sweep(due);
    }
}
