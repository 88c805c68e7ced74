//! An empty record or the end? recvmsg(2) returns 0 for both.

use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{setsockopt, sockopt};

/// Whether a SEQPACKET or DGRAM unix socket whose next read gives 0 bytes has ended, and holds no empty record.
///
/// Credentials come with every record when they are asked for, and never with an end. They are asked for here alone, and
/// only where the other end has stopped sending: a socket that keeps asking is given a name of its own by the kernel.
pub fn has_ended(fd: &impl AsFd) -> bool {
    if !super::unix::has_hung_up(fd.as_fd()) {
        return false;
    }
    if setsockopt(fd, sockopt::PassCred, &true).is_err() {
        return true;
    }
    let mut control = [0u64; 8];
    // SAFETY: a msghdr is integers and pointers, for which zero is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the message points to `control` alone, which outlives the call.
    let got = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut message, flags) };
    // A peek gives copies of passed fds: they are closed here.
    // SAFETY: recvmsg has just filled the control data, and nobody has looked at it yet.
    drop(unsafe { super::scm::take_fds(&message) });
    // It can be switched off where it could be switched on.
    let _ = setsockopt(fd, sockopt::PassCred, &false);
    got == 0 && message.msg_controllen == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};

    #[test]
    fn an_empty_record_is_not_the_end() {
        let (near, far) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty()).unwrap();
        send(far.as_raw_fd(), b"", MsgFlags::empty()).unwrap();
        assert!(!has_ended(&near));
        drop(far);
        assert!(!has_ended(&near), "the empty record is still to be read");
        nix::unistd::read(&near, &mut [0; 1]).unwrap();
        assert!(has_ended(&near));
    }
}
