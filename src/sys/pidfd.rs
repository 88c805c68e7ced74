//! A process held by a descriptor: a signal through it never meets another process that got the same number.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::errno::{Errno, OsError, OsResult, Step};

#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for PidFd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl PidFd {
    pub fn open(pid: i32) -> OsResult<Self> {
        // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        match i32::try_from(fd) {
            // SAFETY: the descriptor is new, so nobody else owns it.
            Ok(fd) if fd >= 0 => Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) })),
            _ => Err(OsError::on("pidfd_open", pid, Errno::last())),
        }
    }

    pub fn signal(&self, signal: Signal) -> OsResult<()> {
        let info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a null siginfo_t asks for what kill(2) would send.
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal as i32, info, 0) };
        if sent == 0 { Ok(()) } else { Err(OsError::on("pidfd_send_signal", signal, Errno::last())) }
    }

    /// Whether the process ends within the time; a zombie has ended.
    pub fn ends_within(&self, time: Duration) -> OsResult<bool> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        Ok(poll(&mut fds, timeout).step("poll a pidfd")? > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_signalled_and_awaited() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let held = PidFd::open(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(!held.ends_within(Duration::from_millis(1)).unwrap());
        held.signal(Signal::SIGTERM).unwrap();
        assert!(held.ends_within(Duration::from_secs(5)).unwrap());
        child.wait().unwrap();
        assert_eq!(held.signal(Signal::SIGTERM).unwrap_err().errno, Errno::ESRCH);
    }
}
