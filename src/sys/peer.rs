//! Who is at the other end of a unix socket, as the kernel wrote it down at connect or listen.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::errno::Errno;

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
