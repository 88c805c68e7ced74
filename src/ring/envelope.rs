//! What recvmsg(2) and sendmsg(2) point to besides the buffers: the header, the slices, the control data.
//!
//! An envelope is addressed for one operation, and must not move or go before that has ended: it lives in a cell of
//! `Pages`, or in a box. There is one for every read that waits, so they are as many as the buffers, and go as those do.

use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use super::buf::Filling;
use super::op::{Message, Op, Outcome};
use super::pages::Pages;
use crate::errno::Errno;
use crate::limits::{ENVELOPES_KEPT, FDS_MAX};
use crate::sys::scm::{self, CONTROL_BYTES, CONTROL_WORDS, Credentials};

/// All zero bytes are a value of it: a cell without its pages is an envelope again.
pub(super) struct Envelope {
    header: libc::msghdr,
    slices: [libc::iovec; SLICES],
    /// When they are more than that.
    many: Option<Box<Many>>,
    control: [u64; CONTROL_WORDS],
}

/// A `Vec` of its own has no promise that zero is none.
struct Many(Vec<libc::iovec>);

/// What a batch of sealed records has, and some more.
const SLICES: usize = 32;

/// What an envelope takes: two share a page.
const CELL: usize = 2 << 10;
const _: () = assert!(size_of::<Envelope>() <= CELL && align_of::<Envelope>() <= align_of::<u64>());

/// One worker's envelopes.
pub(super) struct Envelopes(Pages);

/// An envelope in its cell. It goes back by `Envelopes::give`, and stays the kernel's for ever if it does not.
pub(super) struct Held(NonNull<Envelope>);

impl Default for Envelopes {
    fn default() -> Self {
        Self(Pages::new(CELL, ENVELOPES_KEPT))
    }
}

impl Envelopes {
    pub(super) fn take(&mut self) -> Held {
        // All zero, or as `give` left it.
        Held(self.0.take().cast())
    }

    pub(super) fn give(&mut self, mut envelope: Held) {
        // The cell may lose its pages, and what it owns with them.
        envelope.many = None;
        self.0.give(envelope.0.cast());
    }

    pub(super) fn rest(&mut self) {
        self.0.rest();
    }
}

impl Deref for Held {
    type Target = Envelope;

    fn deref(&self) -> &Envelope {
        // SAFETY: a cell of the right size and alignment, this handle's alone, whose bytes are an envelope: zero at first,
        // then what its users wrote.
        unsafe { self.0.as_ref() }
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut Envelope {
        // SAFETY: as above.
        unsafe { self.0.as_mut() }
    }
}

/// What an operation on messages is called with.
pub(super) struct Call {
    pub(super) header: *mut libc::msghdr,
    pub(super) flags: i32,
    pub(super) sends: bool,
}

/// UIO_MAXIOV, sendmsg(2).
pub(super) const SLICES_MAX: usize = 1024;

impl Envelope {
    pub(super) fn new() -> Box<Self> {
        // SAFETY: integers and pointers, for which zero is a value, and no box.
        Box::new(unsafe { std::mem::zeroed() })
    }

    /// `None`: the operation is not one on messages.
    pub(super) fn address(&mut self, op: &Op) -> Option<Call> {
        let (slices, control_len, flags, sends) = match op {
            Op::Recv { into, max, fds: true, .. } => {
                (self.receive_into(into, *max), CONTROL_BYTES, libc::MSG_CMSG_CLOEXEC, false)
            }
            // Without control space no fd is installed: MSG_CTRUNC alone says that there are some.
            Op::Peek { into, max, .. } => (self.receive_into(into, *max), 0, libc::MSG_PEEK, false),
            Op::Measure { .. } => (0, 0, libc::MSG_PEEK | libc::MSG_TRUNC, false),
            Op::Send { message, .. } => {
                (self.enclose(message), put_control(&mut self.control, message), libc::MSG_NOSIGNAL, true)
            }
            _ => return None,
        };
        self.header.msg_iov = match &mut self.many {
            Some(many) => many.0.as_mut_ptr(),
            None => self.slices.as_mut_ptr(),
        };
        self.header.msg_iovlen = slices as _;
        let control = self.control.as_mut_ptr().cast();
        self.header.msg_control = if control_len == 0 { std::ptr::null_mut() } else { control };
        self.header.msg_controllen = control_len as _;
        self.header.msg_flags = 0;
        Some(Call { header: &raw mut self.header, flags, sends })
    }

    /// Returns how many slices there are, as `enclose`.
    fn receive_into(&mut self, into: &Filling, max: usize) -> usize {
        self.many = None;
        self.slices[0] = libc::iovec { iov_base: into.tail().cast(), iov_len: max.min(into.spare()) };
        1
    }

    fn enclose(&mut self, message: &Message) -> usize {
        let all = || message.slices().take(SLICES_MAX);
        let slice = |s: &[u8]| libc::iovec { iov_base: s.as_ptr().cast_mut().cast(), iov_len: s.len() };
        let mut count = 0;
        for (n, bytes) in all().enumerate() {
            if n == SLICES {
                let many: Vec<_> = all().map(slice).collect();
                count = many.len();
                self.many = Some(Box::new(Many(many)));
                return count;
            }
            self.slices[n] = slice(bytes);
            count = n + 1;
        }
        self.many = None;
        count
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

/// Writes what goes with a message: whom it is of, its fds. Returns the length, 0 for neither.
fn put_control(control: &mut [u64; CONTROL_WORDS], message: &Message) -> usize {
    let mut used = 0;
    if let Some(Credentials { uid, gid }) = message.credentials {
        let pid = std::process::id().cast_signed();
        used += scm::put(control, used, libc::SCM_CREDENTIALS, [libc::ucred { pid, uid, gid }].into_iter());
    }
    if !message.fds.is_empty() {
        assert!(message.fds.len() <= FDS_MAX, "the kernel takes no more, nor did the peer send more");
        used += scm::put(control, used, libc::SCM_RIGHTS, message.fds.iter().map(AsRawFd::as_raw_fd));
    }
    used
}
