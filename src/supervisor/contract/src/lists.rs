//! The parts of a plan that are as long as the command wants: fds and strings, read where they lie.

use core::ffi::CStr;

use crate::{FIRST_FD, Malformed};

/// Fds of the command: the number that each has in the supervisor, in ascending order, and the one that it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fds<'a>(&'a [u8]);

/// Bytes of one fd.
pub(crate) const FD_LEN: usize = 8;

impl<'a> Fds<'a> {
    /// # Errors
    /// A number below 0, a source that is one of the supervisor's own, or sources that do not ascend.
    #[inline]
    pub(crate) fn checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let fds = Self(bytes);
        let mut least = FIRST_FD;
        for (from, to) in fds.iter() {
            if from < least || to < 0 || to == i32::MAX {
                return Err(Malformed);
            }
            least = from.checked_add(1).ok_or(Malformed)?;
        }
        Ok(fds)
    }

    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = (i32, i32)> + 'a {
        self.0.chunks_exact(FD_LEN).filter_map(|chunk| match *chunk {
            [a, b, c, d, e, f, g, h] => Some((i32::from_ne_bytes([a, b, c, d]), i32::from_ne_bytes([e, f, g, h]))),
            _ => None,
        })
    }

    #[inline]
    pub fn len(&self) -> usize {
        self.0.len() / FD_LEN
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Strings, one behind the other, each with its NUL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strings<'a> {
    bytes: &'a [u8],
    count: usize,
}

impl<'a> Strings<'a> {
    /// Takes `count` strings from the head of `bytes`; also gives what is behind them.
    #[inline]
    pub(crate) fn split(bytes: &'a [u8], count: usize) -> Result<(Self, &'a [u8]), Malformed> {
        let mut rest = bytes;
        for _ in 0..count {
            (_, rest) = split_string(rest).ok_or(Malformed)?;
        }
        let (own, rest) = bytes.split_at_checked(bytes.len() - rest.len()).ok_or(Malformed)?;
        Ok((Self { bytes: own, count }, rest))
    }

    #[inline]
    pub fn len(&self) -> usize {
        self.count
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a CStr;

    #[inline]
    fn next(&mut self) -> Option<&'a CStr> {
        let (first, rest) = split_string(self.bytes)?;
        self.bytes = rest;
        self.count = self.count.saturating_sub(1);
        Some(first)
    }
}

#[inline]
pub(crate) fn split_string(bytes: &[u8]) -> Option<(&CStr, &[u8])> {
    let first = CStr::from_bytes_until_nul(bytes).ok()?;
    Some((first, bytes.get(first.count_bytes() + 1..)?))
}
