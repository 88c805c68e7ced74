//! What recvmsg(2) and sendmsg(2) point to besides the buffers: the header, the slices, the control data.
//!
//! An envelope is addressed for one operation, and must not move or go before that has ended: it lives in a box.

use std::os::fd::{AsRawFd, OwnedFd};

use super::buf::Filling;
use super::op::{Message, Op, Outcome};
use crate::errno::Errno;
use crate::limits::FDS_MAX;
use crate::sys::scm::{self, CONTROL_BYTES, CONTROL_WORDS};

pub(super) struct Envelope {
    header: libc::msghdr,
    slices: Vec<libc::iovec>,
    control: [u64; CONTROL_WORDS],
}

/// What an operation on messages is called with.
pub(super) struct Call {
    pub(super) header: *mut libc::msghdr,
    pub(super) flags: i32,
    pub(super) sends: bool,
}

/// UIO_MAXIOV, sendmsg(2).
const SLICES_MAX: usize = 1024;

impl Envelope {
    pub(super) fn new() -> Box<Self> {
        // SAFETY: msghdr is plain data; all zero is an empty one.
        let header = unsafe { std::mem::zeroed() };
        Box::new(Self { header, slices: Vec::new(), control: [0; CONTROL_WORDS] })
    }

    /// `None`: the operation is not one on messages.
    pub(super) fn address(&mut self, op: &Op) -> Option<Call> {
        self.slices.clear();
        let (control_len, flags, sends) = match op {
            Op::Recv { into, max, fds: true, .. } => {
                self.receive_into(into, *max);
                (CONTROL_BYTES, libc::MSG_CMSG_CLOEXEC, false)
            }
            // Without control space no fd is installed: MSG_CTRUNC alone says that there are some.
            Op::Peek { into, max, .. } => {
                self.receive_into(into, *max);
                (0, libc::MSG_PEEK, false)
            }
            Op::Measure { .. } => (0, libc::MSG_PEEK | libc::MSG_TRUNC, false),
            Op::Send { message, .. } => (self.enclose(message), libc::MSG_NOSIGNAL, true),
            _ => return None,
        };
        self.header.msg_iov = self.slices.as_mut_ptr();
        self.header.msg_iovlen = self.slices.len() as _;
        let control = self.control.as_mut_ptr().cast();
        self.header.msg_control = if control_len == 0 { std::ptr::null_mut() } else { control };
        self.header.msg_controllen = control_len as _;
        self.header.msg_flags = 0;
        Some(Call { header: &raw mut self.header, flags, sends })
    }

    fn receive_into(&mut self, into: &Filling, max: usize) {
        self.slices.push(libc::iovec { iov_base: into.tail().cast(), iov_len: max.min(into.spare()) });
    }

    /// Returns the length of the control data.
    fn enclose(&mut self, message: &Message) -> usize {
        for slice in message.slices().take(SLICES_MAX) {
            self.slices.push(libc::iovec { iov_base: slice.as_ptr().cast_mut().cast(), iov_len: slice.len() });
        }
        put_fds(&mut self.control, &message.fds)
    }

    /// What a call has brought.
    ///
    /// # Safety
    /// The envelope was addressed for `op`, that call has just ended with `result`, and nobody has looked since.
    pub(super) unsafe fn open(&self, op: &Op, result: Result<u32, Errno>) -> Outcome {
        let mut outcome = Outcome::from(result);
        if let (Op::Recv { .. } | Op::Peek { .. }, Ok(_)) = (op, &result) {
            // SAFETY: as this function's own contract has it.
            outcome.fds = unsafe { scm::take_fds(&self.header) };
            outcome.control_lost = self.header.msg_flags & libc::MSG_CTRUNC != 0;
            outcome.record_cut = self.header.msg_flags & libc::MSG_TRUNC != 0;
        }
        outcome
    }

    /// Bytes of control data that the last call brought.
    pub(super) fn control_len(&self) -> usize {
        self.header.msg_controllen
    }
}

/// Writes one SCM_RIGHTS message; returns its length, 0 for no fds.
fn put_fds(control: &mut [u64; CONTROL_WORDS], fds: &[OwnedFd]) -> usize {
    if fds.is_empty() {
        return 0;
    }
    assert!(fds.len() <= FDS_MAX, "the kernel takes no more, nor did the peer send more");
    let bytes = u32::try_from(size_of_val(fds)).expect("253 fds");
    let header = control.as_mut_ptr().cast::<libc::cmsghdr>();
    // SAFETY: `control` has room for 253 fds behind a header and is aligned for it.
    unsafe {
        (*header).cmsg_len = libc::CMSG_LEN(bytes) as _;
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        let data = libc::CMSG_DATA(header).cast::<i32>();
        for (i, fd) in fds.iter().enumerate() {
            data.add(i).write_unaligned(fd.as_raw_fd());
        }
        libc::CMSG_SPACE(bytes) as usize
    }
}
