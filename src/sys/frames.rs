//! Length-prefixed messages on a blocking socket.

use std::io::{self, Read, Write};

use crate::errno::{Errno, OsError, OsResult, Step};

/// Reads a u32 little-endian length and that many bytes. `None` at a clean end.
///
/// # Errors
/// EMSGSIZE for a length above `max`; a stream that ends inside a message is ECONNRESET.
pub fn read(mut from: impl Read, max: usize) -> OsResult<Option<Vec<u8>>> {
    let mut length = [0; 4];
    let mut have = 0;
    while have < 4 {
        match from.read(&mut length[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(OsError::new("read a message", Errno::ECONNRESET)),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e).step("read a message"),
        }
    }
    let length = u32::from_le_bytes(length) as usize;
    body(from, length, max).map(Some)
}

/// Reads `length` bytes.
///
/// # Errors
/// As `read`.
pub fn body(from: impl Read, length: usize, max: usize) -> OsResult<Vec<u8>> {
    if length > max {
        return Err(OsError::on("read a message", format!("of {length} bytes"), Errno::EMSGSIZE));
    }
    let mut bytes = Vec::new();
    // Grows with what really comes: a length alone reserves nothing.
    from.take(length as u64).read_to_end(&mut bytes).step("read a message")?;
    if bytes.len() < length {
        return Err(OsError::new("read a message", Errno::ECONNRESET));
    }
    Ok(bytes)
}

/// Writes all of it.
pub fn write(mut to: impl Write, bytes: &[u8]) -> OsResult<()> {
    to.write_all(bytes).step("write a message")
}
