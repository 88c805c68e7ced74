//! fork(2) of a process with one thread, and letting go of what it was started with.

use crate::errno::{OsError, OsResult};

/// Forks. Returns true in the child, which has a session of its own; false in the parent.
///
/// # Panics
/// When the process has more than one thread: only the caller's would go on.
pub fn fork_away() -> OsResult<bool> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    assert!(threads == 1, "fork in a process with {threads} threads");
    // SAFETY: there is no other thread whose locks the child could inherit.
    match unsafe { libc::fork() } {
        -1 => Err(OsError::last("fork")),
        0 => {
            // SAFETY: a system call on this process.
            unsafe { libc::setsid() };
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// fds 0, 1 and 2 become /dev/null: whoever waits for their end gets it.
pub fn let_go_of_stdio() -> OsResult<()> {
    for number in 0..3 {
        super::inherited::release(number)?;
    }
    Ok(())
}
