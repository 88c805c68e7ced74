//! O_NONBLOCK of an open file.

use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::errno::{OsResult, Step};

/// Sets or clears O_NONBLOCK, and leaves the other flags as they are.
pub fn set_nonblocking(fd: &impl AsFd, on: bool) -> OsResult<()> {
    let old = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).step("F_GETFL")?);
    let mut new = old;
    new.set(OFlag::O_NONBLOCK, on);
    if new != old {
        fcntl(fd, FcntlArg::F_SETFL(new)).step("F_SETFL")?;
    }
    Ok(())
}
