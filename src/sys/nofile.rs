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

/// An errno in words; where it is about too many fds, with the limit that was met.
pub fn explained(errno: Errno) -> String {
    match (errno, nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)) {
        (Errno::EMFILE, Ok((soft, _))) => format!("{} (RLIMIT_NOFILE {soft})", errno.desc()),
        (Errno::ENFILE, _) => format!("{} (fs.file-max of this machine)", errno.desc()),
        _ => errno.desc().into(),
    }
}
