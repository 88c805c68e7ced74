//! Records with fds over a unix socket.

use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::errno::Errno;
use crate::limits::{FDS_MAX, SECURITY_LABEL_MAX};

/// linux/socket.h; the libc crate has no name for it.
const SCM_PIDFD: libc::c_int = 0x04;

/// CMSG_SPACE of so many bytes.
const fn space(bytes: usize) -> usize {
    size_of::<libc::cmsghdr>() + bytes.next_multiple_of(8)
}

/// All that one message of a unix socket may bring. Whoever owns the socket may have switched on any of it, and what is
/// in front of the fds must not take their room: SO_TIMESTAMP, SO_PASSCRED, SO_PASSSEC, SO_PASSPIDFD, the fds, SO_INQ.
pub const CONTROL_BYTES: usize = space(size_of::<libc::timespec>())
    + space(size_of::<libc::ucred>())
    + space(SECURITY_LABEL_MAX)
    + space(size_of::<RawFd>())
    + space(FDS_MAX * size_of::<RawFd>())
    + space(size_of::<libc::c_int>());

/// The same in 8-byte words, so that a buffer of them is aligned like a cmsghdr.
pub const CONTROL_WORDS: usize = CONTROL_BYTES / 8;
const _: () = assert!(CONTROL_WORDS * 8 == CONTROL_BYTES && space(FDS_MAX * size_of::<RawFd>()) == 1032);
const _: () = assert!(align_of::<u64>() >= align_of::<libc::cmsghdr>());

/// Whom a message is of, for a receiver with SO_PASSCRED. Only root may say another than itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
}

/// One record as it came.
#[derive(Debug)]
pub struct Record {
    pub len: usize,
    /// All that came with it, close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// The record was longer than the buffer, or lost fds: MSG_TRUNC or MSG_CTRUNC.
    pub truncated: bool,
    /// Some of its fds are lost: MSG_CTRUNC. There is room for all that a message may bring (CONTROL_BYTES), so as a rule this
    /// process may have no further ones.
    pub lost_fds: bool,
}

impl Record {
    /// # Errors
    /// EMFILE: the kernel could not give this process all fds that came; recvmsg(2) does not say so itself.
    pub fn whole(self) -> Result<Self, Errno> {
        if self.lost_fds { Err(Errno::EMFILE) } else { Ok(self) }
    }
}

/// Receives one record without waiting.
///
/// # Errors
/// The kernel's: EAGAIN when there is none.
pub fn receive(fd: BorrowedFd<'_>, into: &mut [u8]) -> Result<Record, Errno> {
    receive_flags(fd, into, libc::MSG_DONTWAIT)
}

/// As `receive`, and leaves everything where it is; the fds are further ones of the same files.
///
/// # Errors
/// As `receive`.
pub fn peek(fd: BorrowedFd<'_>, into: &mut [u8]) -> Result<Record, Errno> {
    receive_flags(fd, into, libc::MSG_DONTWAIT | libc::MSG_PEEK)
}

/// Receives one record, or some bytes of a stream and the fds that belong to them, as soon as they come.
///
/// # Errors
/// The kernel's; EAGAIN when a timeout that was set on the socket is over.
pub fn receive_waiting(fd: BorrowedFd<'_>, into: &mut [u8]) -> Result<Record, Errno> {
    receive_flags(fd, into, 0)
}

fn receive_flags(fd: BorrowedFd<'_>, into: &mut [u8], flags: i32) -> Result<Record, Errno> {
    let mut control = [0u64; CONTROL_WORDS];
    // SAFETY: a msghdr is integers and pointers, for which zero is a value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    let mut part = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the message points to `into`, `part` and `control`, which outlive the call.
    let got = Errno::result(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) })?;
    Ok(Record {
        len: usize::try_from(got).expect("a result that is not an error"),
        // SAFETY: recvmsg has just filled the control data, and nobody has looked at it yet.
        fds: unsafe { take_fds(&message) },
        truncated: message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0,
        lost_fds: message.msg_flags & libc::MSG_CTRUNC != 0,
    })
}

/// Takes over every fd of received control data, so that none leaks whatever happens next.
///
/// # Safety
/// `message` was filled by recvmsg, its control buffer is alive, and this is called once.
pub unsafe fn take_fds(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the walk stays inside the control buffer that recvmsg filled; each fd in it is new and ours.
    unsafe {
        let mut head = libc::CMSG_FIRSTHDR(message);
        while let Some(cmsg) = head.as_ref() {
            if cmsg.cmsg_level == libc::SOL_SOCKET && cmsg.cmsg_type == libc::SCM_RIGHTS {
                let bytes = cmsg.cmsg_len - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(cmsg).cast::<RawFd>();
                for at in 0..bytes / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(at).read_unaligned()));
                }
            }
            // SO_PASSPIDFD, kernel 6.5: an fd of ours all the same, and closed here.
            if cmsg.cmsg_level == libc::SOL_SOCKET && cmsg.cmsg_type == SCM_PIDFD {
                drop(OwnedFd::from_raw_fd(libc::CMSG_DATA(cmsg).cast::<RawFd>().read_unaligned()));
            }
            head = libc::CMSG_NXTHDR(message, cmsg);
        }
    }
    fds
}

/// Sends one record with fds; never raises SIGPIPE.
pub fn send(fd: BorrowedFd<'_>, record: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    assert!(fds.len() <= FDS_MAX, "more fds than one message carries");
    let mut control = [0u64; CONTROL_WORDS];
    // SAFETY: a msghdr is integers and pointers, for which zero is a value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    let mut part = libc::iovec { iov_base: record.as_ptr().cast_mut().cast(), iov_len: record.len() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if !fds.is_empty() {
        message.msg_controllen = put(&mut control, 0, libc::SCM_RIGHTS, fds.iter().map(AsRawFd::as_raw_fd)) as _;
        message.msg_control = control.as_mut_ptr().cast();
    }
    // SAFETY: the message points to `record`, `part` and `control`, which outlive the call.
    Errno::result(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) }).map(drop)
}

/// Writes one control message of a socket at that byte, a multiple of 8. Returns how many bytes it takes.
///
/// # Panics
/// Without room for it: CONTROL_BYTES is enough for all that one message carries.
pub fn put<T>(
    control: &mut [u64; CONTROL_WORDS],
    at: usize,
    kind: i32,
    data: impl ExactSizeIterator<Item = T>,
) -> usize {
    let bytes = u32::try_from(data.len() * size_of::<T>()).expect("253 fds at most");
    // SAFETY: both only compute.
    let (space, len) = unsafe { (libc::CMSG_SPACE(bytes) as usize, libc::CMSG_LEN(bytes)) };
    assert!(at.is_multiple_of(align_of::<u64>()) && at + space <= CONTROL_BYTES, "no room for control data");
    // SAFETY: there is room for a header and the data behind it, and the place is aligned for a header.
    unsafe {
        let head = control.as_mut_ptr().cast::<u8>().add(at).cast::<libc::cmsghdr>();
        (*head).cmsg_len = len as _;
        (*head).cmsg_level = libc::SOL_SOCKET;
        (*head).cmsg_type = kind;
        let to = libc::CMSG_DATA(head).cast::<T>();
        // No more than there is room for, whatever the iterator says of itself.
        for (i, one) in data.take(bytes as usize / size_of::<T>()).enumerate() {
            to.add(i).write_unaligned(one);
        }
    }
    space
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn a_full_message_of_fds_arrives_whole() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        send(a.as_fd(), b"hello", &[null.as_fd(); FDS_MAX]).unwrap();
        let mut room = [0; 5];
        let record = receive(b.as_fd(), &mut room).unwrap();
        assert_eq!((record.len, record.fds.len(), record.truncated), (5, FDS_MAX, false));
        assert_eq!(&room, b"hello");
    }

    #[test]
    fn credentials_take_no_room_from_the_fds() {
        use nix::sys::socket::{setsockopt, sockopt};
        let (a, b) = UnixDatagram::pair().unwrap();
        setsockopt(&b, sockopt::PassCred, &true).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        send(a.as_fd(), b"hello", &[null.as_fd(); FDS_MAX]).unwrap();
        let record = receive(b.as_fd(), &mut [0; 5]).unwrap();
        assert_eq!((record.fds.len(), record.truncated), (FDS_MAX, false));
    }

    #[test]
    fn a_record_too_long_says_so() {
        let (a, b) = UnixDatagram::pair().unwrap();
        send(a.as_fd(), b"hello", &[]).unwrap();
        let record = receive(b.as_fd(), &mut [0; 4]).unwrap();
        assert!(record.truncated);
        assert_eq!(receive(b.as_fd(), &mut [0; 4]).unwrap_err(), Errno::EAGAIN);
    }
}
