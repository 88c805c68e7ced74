//! Fixed little-endian fields and length-prefixed bytes, written and read in order.

use super::{WireResult, bad};

#[derive(Debug, Default)]
pub struct Encoder {
    out: Vec<u8>,
}

impl Encoder {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn u8(&mut self, v: u8) -> &mut Self {
        self.out.push(v);
        self
    }

    pub fn u16(&mut self, v: u16) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }

    pub fn u32(&mut self, v: u32) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }

    pub fn u64(&mut self, v: u64) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }

    /// Bytes without a length: the reader must know it.
    pub fn raw(&mut self, v: &[u8]) -> &mut Self {
        self.out.extend_from_slice(v);
        self
    }

    /// A u32 length, then the bytes.
    pub fn bytes(&mut self, v: &[u8]) -> &mut Self {
        self.u32(u32::try_from(v.len()).expect("a field is shorter than 4 GiB")).raw(v)
    }

    /// How many bytes are written.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    pub fn finish(self) -> Vec<u8> {
        self.out
    }
}

/// Reads what `Encoder` wrote; never past the end, never a length it has not got.
#[derive(Debug, Clone)]
pub struct Decoder<'a> {
    rest: &'a [u8],
    /// What is being read, for the error's text.
    what: &'static str,
}

impl<'a> Decoder<'a> {
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { rest: bytes, what }
    }

    pub fn raw(&mut self, len: usize) -> WireResult<&'a [u8]> {
        let Some((head, rest)) = self.rest.split_at_checked(len) else {
            bad!("{} ends {} bytes early", self.what, len - self.rest.len());
        };
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> WireResult<[u8; N]> {
        Ok(self.raw(N)?.try_into().expect("raw returns the length asked"))
    }

    pub fn u8(&mut self) -> WireResult<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> WireResult<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> WireResult<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> WireResult<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Length-prefixed bytes of at most `max`.
    pub fn bytes(&mut self, max: usize) -> WireResult<&'a [u8]> {
        let len = self.u32()? as usize;
        if len > max {
            bad!("{}: a field of {len} bytes where {max} are the most", self.what);
        }
        self.raw(len)
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// How many bytes are left.
    pub fn len(&self) -> usize {
        self.rest.len()
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Nothing may follow.
    pub fn end(self) -> WireResult<()> {
        if !self.rest.is_empty() {
            bad!("{}: {} bytes too many", self.what, self.rest.len());
        }
        Ok(())
    }
}

/// The first `max` bytes of `text`, cut at a character's edge.
pub fn clip(text: &str, max: usize) -> &[u8] {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text.as_bytes()[..end]
}
