//! Whether others of this machine may look into this process.

use crate::errno::{Errno, OsResult, Step};

/// From now on no core dump is written of this process, and no process without CAP_SYS_PTRACE may read its memory, trace
/// it or take its fds, also one of the same user: prctl(2), PR_SET_DUMPABLE.
///
/// For processes that hold a machine's key. The key as this project keeps it lies in pages of its own (`sys::secret`). But
/// aws-lc has copies in the heap, for the TLS configuration and for each signature of a voucher, and so has whoever parses
/// the file. They can't be moved; this flag is what keeps them out of a core.
///
/// What is private in /proc/PID of such a process belongs to root. Its threads may still use all of /proc/self, whatever user each of them is;
/// SO_PEERCRED, pidfds, signals and what is readable by all (/proc/PID/stat, cmdline) are as before. A program that is
/// executed starts dumpable.
///
/// # Errors
/// The kernel's.
pub fn forbid() -> OsResult<()> {
    // SAFETY: numbers.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }).step("PR_SET_DUMPABLE").map(drop)
}
