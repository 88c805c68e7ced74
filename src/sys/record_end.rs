//! An empty record or the end? recvmsg(2) returns 0 for both.

use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};

use crate::errno::Errno;

/// CMSG_SPACE of a ucred.
const CREDENTIALS_WORDS: usize = (size_of::<libc::cmsghdr>() + size_of::<libc::ucred>()).div_ceil(8);

/// Whether a SEQPACKET or DGRAM unix socket whose next read gives 0 bytes has ended, and holds no empty record.
///
/// Credentials come with every record when they are asked for, and never with an end. They are asked for here alone, and
/// only where the other end has stopped sending: a socket that keeps asking is given a name of its own by the kernel. One
/// whose program asks for them itself goes on doing so.
///
/// # Errors
/// ECONNRESET, which the kernel says once, and others that a read would give.
pub fn has_ended(fd: &impl AsFd) -> Result<bool, Errno> {
    if !super::unix::has_hung_up(fd.as_fd()) {
        return Ok(false);
    }
    let asks = getsockopt(fd, sockopt::PassCred)?;
    setsockopt(fd, sockopt::PassCred, &true)?;
    // Room for what comes first, the credentials, and none for fds: a peek would install copies of those, whose close may
    // wait for a file system that a program serves.
    let mut control = [0u64; CREDENTIALS_WORDS];
    // SAFETY: a msghdr is integers and pointers, for which zero is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the message points to `control` alone, which outlives the call.
    let got = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut message, flags) };
    let result = Errno::result(got);
    setsockopt(fd, sockopt::PassCred, &asks)?;
    match result {
        Ok(_) => Ok(message.msg_controllen == 0),
        Err(Errno::EAGAIN) => Ok(false),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};

    #[test]
    fn an_empty_record_is_not_the_end() {
        let (near, far) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty()).unwrap();
        send(far.as_raw_fd(), b"", MsgFlags::empty()).unwrap();
        assert_eq!(has_ended(&near), Ok(false));
        drop(far);
        assert_eq!(has_ended(&near), Ok(false), "the empty record is still to be read");
        nix::unistd::read(&near, &mut [0; 1]).unwrap();
        assert_eq!(has_ended(&near), Ok(true));
    }

    #[test]
    fn fds_of_an_empty_record_stay_in_it() {
        use std::io::IoSlice;

        use nix::sys::socket::{ControlMessage, sendmsg};
        let (near, far) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty()).unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let fds = [writer.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(far.as_raw_fd(), &[IoSlice::new(b"")], &control, MsgFlags::empty(), None).unwrap();
        drop((writer, far));
        assert_eq!(has_ended(&near), Ok(false));
        let mut room = [0; 8];
        let record = crate::sys::scm::receive(near.as_fd(), &mut room).unwrap();
        assert_eq!(record.fds.len(), 1);
        drop(record);
        assert_eq!(std::io::Read::read(&mut reader, &mut room).unwrap(), 0, "no copy is left");
    }
}
