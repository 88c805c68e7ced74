//! Nodes whose files are on their way to a program of this machine.
//!
//! A program of the near side passes a file and closes it; its recipe comes by a link of the session. The close comes by
//! the file link, and may be first: then the kernel has forgotten the node, and a file without a name would be gone.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::fdcache::NodeFd;
use super::nodes::Node;
use crate::limits::{PIN_MS, PINS_MAX};

#[derive(Debug)]
struct Pin {
    until: Instant,
    node: Arc<Node>,
    /// Keeps the inode, if it was open.
    _fd: Option<Arc<NodeFd>>,
}

/// The oldest first, which end first.
#[derive(Debug, Default)]
pub(super) struct Pins(Mutex<VecDeque<Pin>>);

impl Pins {
    fn pins(&self) -> MutexGuard<'_, VecDeque<Pin>> {
        self.0.lock().expect("never poisoned: panics abort")
    }

    pub(super) fn add(&self, node: Arc<Node>, fd: Option<Arc<NodeFd>>) {
        let mut pins = self.pins();
        // The same file again takes no place of another's.
        let at = pins.iter().position(|pin| pin.node.id == node.id);
        let gone = if at.is_some() || pins.len() >= PINS_MAX { pins.remove(at.unwrap_or(0)) } else { None };
        pins.push_back(Pin { until: Instant::now() + Duration::from_millis(PIN_MS), node, _fd: fd });
        // Its file may close now; not under the lock.
        drop(pins);
        drop(gone);
    }

    pub(super) fn find(&self, id: u64) -> Option<Arc<Node>> {
        let now = Instant::now();
        self.pins().iter().find(|pin| pin.node.id == id && now < pin.until).map(|pin| Arc::clone(&pin.node))
    }

    /// Lets go of what nobody has come for.
    pub(super) fn expire(&self) {
        let mut pins = self.pins();
        if pins.is_empty() {
            return;
        }
        let now = Instant::now();
        let old = pins.iter().take_while(|pin| pin.until <= now).count();
        let old: Vec<Pin> = pins.drain(..old).collect();
        drop(pins);
        drop(old);
    }
}
