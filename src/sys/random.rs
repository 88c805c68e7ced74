//! Random bytes from the kernel.

use crate::errno::{OsError, OsResult};

/// getrandom(2); never blocks once the machine has booted, and gives up to 256 bytes whole.
pub fn fill(out: &mut [u8]) -> OsResult<()> {
    assert!(out.len() <= 256, "larger requests may be cut short");
    // SAFETY: the kernel writes at most `len` bytes behind the pointer.
    let count = unsafe { libc::getrandom(out.as_mut_ptr().cast(), out.len(), 0) };
    if usize::try_from(count) == Ok(out.len()) { Ok(()) } else { Err(OsError::last("getrandom")) }
}
