//! Frames on their way out: what one SENDMSG will carry.

use super::Payload;
use crate::wire::frame::{HEADER_LEN, Header};

/// A run of headers and short payloads, or one frame's long payload.
#[derive(Debug)]
pub enum Part<P> {
    /// Bytes `start..end` of `Batch::heads`.
    Heads(usize, usize),
    Body(P),
}

/// Headers and short payloads side by side in one buffer, long payloads by reference, in the order they leave.
#[derive(Debug)]
pub struct Batch<P> {
    pub heads: Vec<u8>,
    pub parts: Vec<Part<P>>,
    bytes: usize,
}

/// Copied, a payload costs less than a slice of its own, and keeps no buffer that is larger than itself.
const INLINE_MAX: usize = 512;

impl<P> Default for Batch<P> {
    fn default() -> Self {
        Self { heads: Vec::new(), parts: Vec::new(), bytes: 0 }
    }
}

impl<P: Payload> Batch<P> {
    pub fn clear(&mut self) {
        self.heads.clear();
        self.parts.clear();
        self.bytes = 0;
    }

    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Headers and payloads together.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All bytes, in order, as slices.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(|part| match part {
            Part::Heads(start, end) => &self.heads[*start..*end],
            Part::Body(body) => body.as_ref(),
        })
    }

    /// A payload without a header: what leaves for a program, or is sealed already.
    pub fn push_body(&mut self, body: P) {
        self.bytes += body.len();
        self.parts.push(Part::Body(body));
    }

    /// Long payloads that keep much more memory than they fill are copied.
    pub fn compact(&mut self) {
        for part in &mut self.parts {
            if let Part::Body(body) = part
                && let Some(compact) = body.compacted()
            {
                *body = compact;
            }
        }
    }

    pub(super) fn push(&mut self, mut header: Header, body: Option<P>) {
        let len = body.as_ref().map_or(0, Payload::len);
        header.len = u32::try_from(len).expect("a frame is shorter than its lane's limit");
        let start = self.heads.len();
        self.heads.extend_from_slice(&header.encode());
        let long = body.filter(|body| {
            let short = len <= INLINE_MAX;
            if short {
                self.heads.extend_from_slice(body.as_ref());
            }
            !short
        });
        match self.parts.last_mut() {
            Some(Part::Heads(_, end)) if *end == start => *end = self.heads.len(),
            _ => self.parts.push(Part::Heads(start, self.heads.len())),
        }
        self.parts.extend(long.map(Part::Body));
        self.bytes += HEADER_LEN + len;
    }
}
