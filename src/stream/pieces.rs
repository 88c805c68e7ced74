//! What came from the peer for a local end, in the pieces in which it is to be written.
//!
//! ```text
//!   no local end yet:  fragments ─▶ Arrival ...  ─attach─▶ as one of these:
//!   bytes:             fragments ────────────────▶ Item::Bytes
//!   records:           fragments ─▶ Assembly ────▶ Item::Message, whole
//! ```
//!
//! No fragment may cost more than its bytes: small ones are copied together where many wait.

use crate::errno::Errno;
use crate::limits::{FRAGMENTS_MAX, GATHER_MAX, MERGE_MAX, RECORD_MAX};
use crate::mux::{Payload, Recipes};

/// A fragment, as the mux tells of it. `overhead`: what it is charged besides its bytes.
#[derive(Debug)]
pub struct Arrival<P> {
    pub payload: P,
    pub record_end: bool,
    pub recipes: Option<Recipes>,
    pub overhead: u32,
}

/// A piece on its way to the local end.
#[derive(Debug)]
pub(super) enum Item<P> {
    Bytes {
        payload: P,
        overhead: u32,
    },
    /// Bytes with fds, or a record: they leave together.
    Message {
        /// How its fds are made, until a helper has them.
        recipes: Option<Recipes>,
        /// It has fds, and a helper has made them.
        made: bool,
        payloads: Vec<P>,
        overhead: u32,
    },
}

impl<P> Item<P> {
    pub(super) fn message(recipes: Option<Recipes>, payloads: Vec<P>, overhead: u32) -> Self {
        Self::Message { recipes, made: false, payloads, overhead }
    }

    pub(super) fn has_recipes(&self) -> bool {
        matches!(self, Self::Message { recipes: Some(_), .. })
    }
}

fn merged<P: Payload>(a: &P, b: &P) -> P {
    P::from_vec([a.as_ref(), b.as_ref()].concat())
}

/// What came before there was a local end, and so before it was known whether it keeps records.
pub(super) fn keep_early<P: Payload>(early: &mut Vec<Arrival<P>>, arrival: Arrival<P>) {
    if early.len() >= GATHER_MAX
        && let Some(last) = early.last_mut()
        && !last.record_end
        && last.recipes.is_none()
        && arrival.recipes.is_none()
        && last.payload.len() + arrival.payload.len() <= MERGE_MAX
    {
        last.payload = merged(&last.payload, &arrival.payload);
        last.record_end = arrival.record_end;
        last.overhead += arrival.overhead;
        return;
    }
    early.push(arrival);
}

/// Behind a slow reader: the window counts bytes, and each piece costs more. `false`: it does not go into the last one.
pub(super) fn merge<P: Payload>(last: Option<&mut Item<P>>, more: &P, overhead: u32) -> bool {
    let Some(Item::Bytes { payload, overhead: before }) = last else { return false };
    if payload.len() + more.len() > MERGE_MAX {
        return false;
    }
    *payload = merged(payload, more);
    *before += overhead;
    true
}

/// The record that is coming in, fragment by fragment. Its bytes are bounded by the window.
#[derive(Debug)]
pub(super) struct Assembly<P> {
    recipes: Option<Recipes>,
    payloads: Vec<P>,
    /// What came in more fragments than a fair sender makes, copied together.
    rest: Vec<u8>,
    len: usize,
    overhead: u32,
}

impl<P> Default for Assembly<P> {
    fn default() -> Self {
        Self { recipes: None, payloads: Vec::new(), rest: Vec::new(), len: 0, overhead: 0 }
    }
}

impl<P: Payload> Assembly<P> {
    /// # Errors
    /// EMSGSIZE: longer than any record may be.
    pub(super) fn add(&mut self, fragment: Arrival<P>) -> Result<(), Errno> {
        self.len += fragment.payload.len();
        self.overhead += fragment.overhead;
        if self.len > RECORD_MAX as usize {
            return Err(Errno::EMSGSIZE);
        }
        self.recipes = fragment.recipes.or(self.recipes.take());
        if fragment.payload.is_empty() {
        } else if self.payloads.len() < FRAGMENTS_MAX {
            self.payloads.push(fragment.payload);
        } else {
            self.rest.extend_from_slice(fragment.payload.as_ref());
        }
        Ok(())
    }

    pub(super) fn take(&mut self) -> Item<P> {
        let Self { recipes, mut payloads, rest, overhead, .. } = std::mem::take(self);
        if !rest.is_empty() {
            payloads.push(P::from_vec(rest));
        }
        Item::message(recipes, payloads, overhead)
    }

    /// Of a record that will not be whole.
    pub(super) fn into_recipes(self) -> Option<Recipes> {
        self.recipes
    }
}
