//! One blocking sendmsg(2) or recvmsg(2) with fds.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use crate::errno::{Errno, OsError, OsResult, Step};
use crate::limits::FDS_MAX;

pub fn send_with_fds(socket: &impl AsFd, bytes: &[u8], fds: &[RawFd]) -> OsResult<usize> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    let raw = socket.as_fd().as_raw_fd();
    sendmsg::<()>(raw, &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None).step("sendmsg")
}

/// Returns how many bytes came, and the fds with them, close-on-exec.
///
/// # Errors
/// recvmsg(2)'s, and EMSGSIZE when fds were lost for want of room.
pub fn recv_with_fds(socket: &impl AsFd, bytes: &mut [u8]) -> OsResult<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; FDS_MAX]);
    let mut slices = [IoSliceMut::new(bytes)];
    let raw = socket.as_fd().as_raw_fd();
    let got = recvmsg::<()>(raw, &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).step("recvmsg")?;
    let mut fds = Vec::new();
    for message in got.cmsgs().step("control data")? {
        if let ControlMessageOwned::ScmRights(raw) = message {
            // SAFETY: the kernel has just made these fds for us.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if got.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(OsError::new("recvmsg", Errno::EMSGSIZE));
    }
    Ok((got.bytes, fds))
}
