//! Who is at the other end of a unix socket, as the kernel wrote it down at connect or listen.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::pidfd::PidFd;
use crate::errno::{Errno, OsError, OsResult, Step};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// 0 when the process is not visible in our pid namespace.
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
}

/// SO_PEERCRED.
pub fn peer(fd: BorrowedFd<'_>) -> Result<Peer, Errno> {
    let mut value = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = libc::socklen_t::try_from(size_of::<libc::ucred>()).expect("12");
    let at = (&raw mut value).cast();
    // SAFETY: the kernel writes at most `len` bytes to `value`.
    let done = unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, at, &raw mut len) };
    Errno::result(done).map(|_| Peer { pid: value.pid, uid: value.uid, gid: value.gid })
}

/// The process that has connected, held. By SO_PEERPIDFD where the kernel has it (Linux 6.5); before that by its number,
/// which another process may have by now if this one has ended.
pub fn process(fd: BorrowedFd<'_>) -> OsResult<PidFd> {
    let mut value: RawFd = -1;
    let mut len = libc::socklen_t::try_from(size_of::<RawFd>()).expect("4");
    let at = (&raw mut value).cast();
    // SAFETY: the kernel writes at most `len` bytes to `value`.
    let done = unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, at, &raw mut len) };
    match Errno::result(done) {
        // SAFETY: the kernel has just made this fd for us.
        Ok(_) => Ok(PidFd::from(unsafe { OwnedFd::from_raw_fd(value) })),
        Err(Errno::ENOPROTOOPT) => PidFd::open(peer(fd).step("SO_PEERCRED")?.pid),
        Err(errno) => Err(OsError::new("SO_PEERPIDFD", errno)),
    }
}

/// asm-generic/socket.h; the libc crate has no name for it.
const SO_PEERPIDFD: libc::c_int = 77;

/// SO_PEERGROUPS: the peer's supplementary groups. ERANGE when there are more than `max`.
pub fn groups(fd: BorrowedFd<'_>, max: usize) -> Result<Vec<u32>, Errno> {
    let mut list = vec![0u32; max.min(32)];
    loop {
        let mut len = libc::socklen_t::try_from(size_of_val(&list[..])).map_err(|_| Errno::ERANGE)?;
        let at = list.as_mut_ptr().cast();
        // SAFETY: the kernel writes at most `len` bytes to `list`.
        let done = unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERGROUPS, at, &raw mut len) };
        let count = len as usize / size_of::<u32>();
        match Errno::result(done) {
            Ok(_) => {
                list.truncate(count);
                return Ok(list);
            }
            Err(Errno::ERANGE) if count > list.len() && count <= max => list.resize(count, 0),
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_peer_of_our_own_socketpair_is_this_process() {
        let (a, _b) = UnixStream::pair().unwrap();
        let who = peer(a.as_fd()).unwrap();
        assert_eq!(who.pid.unsigned_abs(), std::process::id());
        let all = groups(a.as_fd(), 65_536).unwrap();
        if !all.is_empty() {
            assert_eq!(groups(a.as_fd(), all.len() - 1), Err(Errno::ERANGE));
        }
    }
}
