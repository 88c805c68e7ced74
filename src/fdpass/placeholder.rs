//! An fd that stands where another could not be made: it holds the place, and every use of it fails with EBADF.
//!
//! Where a conversation must go on (a monitor of a virtual machine), its message is delivered whole, and the program hears
//! of the fd when it uses it. An O_PATH fd does that: read(2), write(2), ioctl(2), mmap(2), poll(2), epoll_ctl(2) and the
//! socket calls all say EBADF, open(2) says so under "O_PATH". It is one of nothing: a memfd without a byte, which nobody
//! may fill, so that opening it again by /proc gives nothing either.

use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fchmod};

use crate::errno::{OsResult, Step};
use crate::sys::{file, sealed};

pub(super) fn make() -> OsResult<OwnedFd> {
    let nothing = sealed::memfd(c"farside-refused", &[])?;
    fchmod(&nothing, Mode::empty()).step("fchmod")?;
    file::reopen(nothing.as_fd(), OFlag::O_PATH).step("open a placeholder")
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent};
    use nix::sys::socket::{getsockopt, sockopt};
    use nix::unistd::{read, write};

    use super::*;

    #[test]
    fn every_use_of_it_fails_with_ebadf() {
        let fd = make().unwrap();
        assert_eq!(read(&fd, &mut [0]), Err(Errno::EBADF));
        assert_eq!(write(&fd, &[0]), Err(Errno::EBADF));
        assert_eq!(fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)), Err(Errno::EBADF));
        assert_eq!(getsockopt(&fd, sockopt::SockType).err(), Some(Errno::EBADF));
        assert_eq!(nix::sys::termios::tcgetattr(&fd).err(), Some(Errno::EBADF));
        let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
        assert_eq!(epoll.add(&fd, EpollEvent::empty()), Err(Errno::EBADF));
        let mut polled = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO).unwrap();
        assert_eq!(polled[0].revents(), Some(PollFlags::POLLNVAL));
        // Root may open it again, and finds nothing in it, for ever.
        if let Ok(again) = file::reopen(fd.as_fd(), OFlag::O_RDWR) {
            assert_eq!(read(&again, &mut [0]), Ok(0));
            assert_eq!(write(&again, &[0]), Err(Errno::EPERM));
        }
    }
}
