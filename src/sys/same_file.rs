//! Whether two fds are one open file, and what family a socket is of.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname};
use nix::sys::stat::fstat;

/// kcmp(2)'s KCMP_FILE; the libc crate has no name for it.
const KCMP_FILE: libc::c_int = 0;

/// Whether both fds share one open file description (offset, flags). Where kcmp(2) is not to be had (seccomp, kernel
/// without it), two ends of the same pipe or socket inode with the same access count as one.
pub fn same_open_file(a: &impl AsFd, b: &impl AsFd) -> bool {
    let (a, b) = (a.as_fd(), b.as_fd());
    let pid = std::process::id();
    // SAFETY: kcmp takes five integers and touches no memory of ours.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_FILE, a.as_raw_fd(), b.as_raw_fd()) };
    match order {
        0 => true,
        n if n > 0 => false,
        _ => match (fstat(a), fstat(b)) {
            (Ok(x), Ok(y)) => {
                let pipe_or_socket = matches!(x.st_mode & libc::S_IFMT, libc::S_IFIFO | libc::S_IFSOCK);
                pipe_or_socket && (x.st_dev, x.st_ino) == (y.st_dev, y.st_ino) && access(a) == access(b)
            }
            _ => false,
        },
    }
}

fn access(fd: BorrowedFd<'_>) -> Option<libc::c_int> {
    nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFL).ok().map(|f| f & libc::O_ACCMODE)
}

/// Whether the socket is a unix one.
pub fn is_unix(fd: BorrowedFd<'_>) -> bool {
    let address = getsockname::<SockaddrStorage>(fd.as_raw_fd());
    matches!(address.map(|a| a.family()), Ok(Some(AddressFamily::Unix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dup_is_the_same_file_and_a_second_open_is_not() {
        let one = std::fs::File::open("/dev/null").unwrap();
        let other = std::fs::File::open("/dev/null").unwrap();
        assert!(same_open_file(&one, &one.try_clone().unwrap()));
        assert!(!same_open_file(&one, &other));
    }
}
