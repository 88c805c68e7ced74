//! The number of fds that this process may have: all it is allowed, and what it was given back for its children.

use std::sync::OnceLock;

use crate::errno::{Errno, OsResult, Step};

static GIVEN: OnceLock<libc::rlimit> = OnceLock::new();

/// Raises the soft limit to the hard one, getrlimit(2). A node needs one fd a stream, and the usual soft limit of 1024
/// is there for programs that use select(2).
///
/// # Errors
/// The kernel's; the limit stays as it was.
pub fn raise() -> OsResult<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes one rlimit.
    Errno::result(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }).step("getrlimit")?;
    GIVEN.get_or_init(|| limit);
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: setrlimit reads one rlimit.
    Errno::result(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }).step("setrlimit")?;
    Ok(limit.rlim_cur)
}

/// What this process was started with, for the programs that it starts; `None` if it was never raised.
pub fn given() -> Option<&'static libc::rlimit> {
    GIVEN.get()
}
