//! The local ends of a pair's streams, and how their ends depend on each other.

use std::collections::HashMap;

use slab::Slab;

use super::inbox::{Notice, Verdict};
use super::io::Io;
use crate::fdpass::OnRefusal;
use crate::mux::Key;
use crate::ring::Chunk;
use crate::slack;
use crate::stream::Stream;

/// A stream and its local end.
pub(in crate::link) struct Local {
    pub(super) stream: Stream<Chunk>,
    pub(super) io: Io,
    pub(super) kin: Kin,
    /// Called with the peer's answer.
    pub(super) verdict: Option<Verdict>,
}

/// How this stream's end depends on other streams.
pub(super) struct Kin {
    /// The stream whose message announced this one, when they end together (a command's stdio).
    pub(super) parent: Option<Box<Key>>,
    /// Streams that end with this one; some may have ended since.
    pub(super) children: Vec<Key>,
    /// Streams announced here end with this one: it is a command's.
    pub(super) owns_children: bool,
    /// It fills memory for a message of that stream.
    pub(super) fills_for: Option<Box<Key>>,
    /// What becomes of a message of its whose fd can't be made.
    pub(super) on_refusal: OnRefusal,
}

impl Local {
    fn new(key: Key) -> Self {
        let kin = Kin {
            parent: None,
            children: Vec::new(),
            owns_children: false,
            fills_for: None,
            on_refusal: OnRefusal::Fail,
        };
        Self { stream: Stream::new(key), io: Io::new(), kin, verdict: None }
    }
}

/// Indexed by slot, which completions carry, and by stream key.
#[derive(Default)]
pub(in crate::link) struct Locals {
    slots: Slab<Local>,
    /// Until the local end goes, which may be long after its stream.
    by_key: HashMap<Key, usize>,
}

impl Locals {
    pub(super) fn add(&mut self, key: Key) -> usize {
        let at = self.slots.insert(Local::new(key));
        self.by_key.insert(key, at);
        at
    }

    pub(super) fn remove(&mut self, at: usize) -> Local {
        let local = self.slots.remove(at);
        let ops = &local.io.ops;
        let idle = ops.source.is_none() && ops.sink.is_none() && ops.hangup.is_none();
        assert!(idle, "an operation in flight names this slot");
        self.by_key.remove(&local.stream.key());
        local
    }

    pub(super) fn find(&self, key: Key) -> Option<usize> {
        self.by_key.get(&key).copied()
    }

    /// If the place is still that stream's.
    pub(super) fn at(&mut self, (at, key): (usize, Key)) -> Option<&mut Local> {
        self.slots.get_mut(at).filter(|local| local.stream.key() == key)
    }

    pub(super) fn get(&mut self, at: usize) -> Option<&mut Local> {
        self.slots.get_mut(at)
    }

    pub(super) fn of(&self, key: Key) -> Option<&Local> {
        self.find(key).map(|at| &self.slots[at])
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Local)> {
        self.slots.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut Local)> {
        self.slots.iter_mut()
    }

    pub(in crate::link) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Gives back the memory that a burst of streams needed.
    pub(super) fn shrink(&mut self) {
        slack::slab(&mut self.slots);
        slack::map(&mut self.by_key);
    }
}

impl std::ops::Index<usize> for Locals {
    type Output = Local;

    fn index(&self, at: usize) -> &Local {
        &self.slots[at]
    }
}

impl std::ops::IndexMut<usize> for Locals {
    fn index_mut(&mut self, at: usize) -> &mut Local {
        &mut self.slots[at]
    }
}

/// Counts the children of each stream that still write, and holds the callback for the last one. A parent may end before
/// its children.
#[derive(Default)]
pub(super) struct Outputs(HashMap<Key, Output>);

#[derive(Default)]
struct Output {
    writing: usize,
    then: Option<Notice>,
}

impl Outputs {
    /// A child of `parent` begins to write.
    pub(super) fn begin(&mut self, parent: Key) {
        self.0.entry(parent).or_default().writing += 1;
    }

    /// And has ended.
    pub(super) fn end(&mut self, parent: Key) {
        let output = self.0.get_mut(&parent).expect("it has begun");
        output.writing -= 1;
        if output.writing == 0
            && let Some(Output { then: Some(then), .. }) = self.0.remove(&parent)
        {
            then();
        }
    }

    /// Calls `then` once no child writes.
    pub(super) fn when_done(&mut self, parent: Key, then: Notice) {
        match self.0.get_mut(&parent) {
            Some(output) => output.then = Some(then),
            None => then(),
        }
    }

    /// A child was cut off before it had written everything, so the callback must not run.
    pub(super) fn cut(&mut self, parent: Key) {
        if let Some(output) = self.0.get_mut(&parent) {
            output.then = None;
        }
    }

    /// The session is over, so no callback may run.
    pub(super) fn cut_all(&mut self) {
        self.0.values_mut().for_each(|output| output.then = None);
    }
}
