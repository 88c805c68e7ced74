//! The bytes of a bulk measurement: each is known by its position, so that a lost, doubled or moved one is found.

use crate::outcome::float;

/// Prime, so that no buffer size hides a shift by whole buffers; and below 255, so that one byte can say the end.
const PERIOD: usize = 251;
/// The longest piece that is compared at once.
pub(crate) const PIECE_MAX: usize = 1 << 20;

/// A piece of the stream begins anywhere in the first period of `bytes`.
pub(crate) struct Pattern {
    bytes: Vec<u8>,
}

impl Pattern {
    pub(crate) fn new() -> Self {
        let bytes = (0..PERIOD + PIECE_MAX).map(|i| u8::try_from(i % PERIOD).expect("below 251")).collect();
        Self { bytes }
    }

    /// The `len` bytes at `position` of the stream.
    pub(crate) fn at(&self, position: u64, len: usize) -> &[u8] {
        let start = usize::try_from(position % PERIOD as u64).expect("below 251");
        &self.bytes[start..start + len]
    }
}

/// Reads to the end and compares.
///
/// # Errors
/// One line: what is wrong, and where.
pub(crate) fn check(mut from: impl std::io::Read) -> Result<u64, String> {
    let (pattern, mut buffer, mut position) = (Pattern::new(), vec![0; 256 << 10], 0_u64);
    loop {
        let count = from.read(&mut buffer).map_err(|e| format!("read after {position} bytes: {e}"))?;
        if count == 0 {
            return Ok(position);
        }
        if buffer[..count] != *pattern.at(position, count) {
            return Err(format!("wrong bytes within {count} behind {position}"));
        }
        position += count as u64;
    }
}

/// Writes `total` bytes of it.
pub(crate) fn write(mut to: impl std::io::Write, total: u64) -> std::io::Result<()> {
    let (pattern, mut position) = (Pattern::new(), 0_u64);
    while position < total {
        let left = usize::try_from(total - position).unwrap_or(usize::MAX).min(256 << 10);
        to.write_all(pattern.at(position, left))?;
        position += left as u64;
    }
    to.flush()
}

/// 10^6 bytes a second.
pub(crate) fn megabytes_per_s(bytes: u64, seconds: f64) -> f64 {
    float(bytes) / 1e6 / seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_byte_is_found() {
        let mut bytes = Vec::new();
        write(&mut bytes, 1_000_000).unwrap();
        assert_eq!(check(&bytes[..]), Ok(1_000_000));
        bytes.remove(700_000);
        assert!(check(&bytes[..]).unwrap_err().contains("wrong bytes"));
    }
}
