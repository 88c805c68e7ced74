//! An empty record or the end? recvmsg(2) returns 0 for both.

use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};

use crate::errno::Errno;

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
    let mut control = [0u64; 64];
    // SAFETY: a msghdr is integers and pointers, for which zero is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the message points to `control` alone, which outlives the call.
    let got = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut message, flags) };
    let result = Errno::result(got);
    if result.is_ok() {
        // A peek gives copies of passed fds: they are closed here.
        // SAFETY: recvmsg has just filled the control data, and nobody has looked at it yet.
        drop(unsafe { super::scm::take_fds(&message) });
    }
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
}
