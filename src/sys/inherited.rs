//! The fds that this process was started with.

use std::os::fd::{FromRawFd, OwnedFd};

use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::errno::{OsError, OsResult, Step};

/// The numbers of all open fds without close-on-exec, in order. What std or a library has opened since has the flag.
pub fn numbers() -> OsResult<Vec<u32>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut list = Dir::open("/proc/self/fd", flags, Mode::empty()).step_on("open", "/proc/self/fd")?;
    let mut all: Vec<u32> = Vec::new();
    for entry in list.iter() {
        let entry = entry.step_on("read", "/proc/self/fd")?;
        let Some(number) = entry.file_name().to_str().ok().and_then(|n| n.parse::<u32>().ok()) else { continue };
        // SAFETY: F_GETFD takes a number; EBADF is an answer too.
        let flags = unsafe { libc::fcntl(number.cast_signed(), libc::F_GETFD) };
        if flags != -1 && flags & libc::FD_CLOEXEC == 0 {
            all.push(number);
        }
    }
    all.sort_unstable();
    Ok(all)
}

/// Whether a record lock is held through this fd: a `lock:` line in its fdinfo, proc_pid_fdinfo(5).
pub fn is_locked(number: u32) -> bool {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}"));
    info.is_ok_and(|text| text.lines().any(|l| l.starts_with("lock:")))
}

/// A second fd of the same open file, close-on-exec. The first stays as it is.
pub fn duplicate(number: u32) -> OsResult<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes a number and makes a new fd.
    let fd = unsafe { libc::fcntl(number.cast_signed(), libc::F_DUPFD_CLOEXEC, 3) };
    if fd == -1 {
        return Err(OsError::on("dup", format!("fd {number}"), crate::errno::Errno::last()));
    }
    // SAFETY: it is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Closes an fd that was inherited and has been duplicated; a standard one becomes /dev/null instead, so that no later
/// file takes its number.
pub fn release(number: u32) -> OsResult<()> {
    if number > 2 {
        // SAFETY: nobody in this process has taken this fd as its own: it came by exec, and `duplicate` made a second.
        unsafe { libc::close(number.cast_signed()) };
        return Ok(());
    }
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").step_on("open", "/dev/null")?;
    // SAFETY: replaces this process's own fd; std holds no state that depends on what is behind it.
    if unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), number.cast_signed()) } == -1 {
        return Err(OsError::last("dup2"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stdio_is_there_and_our_own_files_are_not() {
        let own = std::fs::File::open("/dev/null").unwrap();
        let all = numbers().unwrap();
        let number = u32::try_from(std::os::fd::AsRawFd::as_raw_fd(&own)).unwrap();
        assert!(!all.contains(&number), "{all:?}");
        assert!(!is_locked(number));
    }
}
