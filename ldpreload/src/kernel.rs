//! Raw system calls: the few that an ask needs, none of them a cancellation point.
//!
//! Each returns what the kernel returned, -1 with errno for a failure.

use core::ffi::CStr;
use core::mem;

use libc::{c_int, c_long, c_void, size_t, sockaddr_un, socklen_t, ssize_t};

pub(crate) fn errno() -> c_int {
    // SAFETY: the address of this thread's errno is always valid.
    unsafe { *libc::__errno_location() }
}

pub(crate) fn set_errno(value: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value }
}

/// An fd of ours in a process of others: closed at the end of its life, whatever happens.
pub(crate) struct Fd(c_int);

impl Fd {
    /// Takes what a system call returned; `None` if that was a failure.
    fn new(result: c_long) -> Option<Self> {
        c_int::try_from(result).ok().filter(|fd| *fd >= 0).map(Self)
    }

    pub(crate) fn raw(&self) -> c_int {
        self.0
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: the fd is ours, and nobody uses it after this.
        unsafe { libc::syscall(libc::SYS_close, self.0) };
    }
}

pub(crate) fn seqpacket() -> Option<Fd> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: three integers.
    Fd::new(unsafe { libc::syscall(libc::SYS_socket, libc::AF_UNIX, kind, 0) })
}

pub(crate) fn connect(fd: c_int, address: *const c_void, len: socklen_t) -> c_int {
    // SAFETY: the kernel checks the address itself (EFAULT).
    int(unsafe { libc::syscall(libc::SYS_connect, fd, address, len) })
}

/// Whether the socket has a peer.
pub(crate) fn has_peer(fd: c_int) -> bool {
    let mut name = [0u8; 2];
    let mut len: socklen_t = 2;
    // SAFETY: both pointers are valid for the lengths given; the kernel writes at most `len` bytes.
    unsafe { libc::syscall(libc::SYS_getpeername, fd, name.as_mut_ptr(), &raw mut len) == 0 }
}

/// An O_PATH fd of the working directory.
pub(crate) fn cwd() -> Option<Fd> {
    let how = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    let dot: &CStr = c".";
    // SAFETY: the path ends with a NUL.
    Fd::new(unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, dot.as_ptr(), how, 0) })
}

/// A control message with one fd.
const RIGHTS_LEN: usize = size_of::<libc::cmsghdr>() + size_of::<c_int>();

/// Room for the control message of two fds, aligned as the kernel wants it.
#[repr(C)]
struct Rights {
    head: libc::cmsghdr,
    fds: [c_int; 2],
}

/// Sends one record with one or two fds.
pub(crate) fn send(fd: c_int, record: &[u8], first: c_int, second: Option<c_int>) -> bool {
    let count = 1 + usize::from(second.is_some());
    // SAFETY: cmsghdr and msghdr are plain integers and pointers, for which zero is a value (musl pads them).
    let (mut rights, mut message): (Rights, libc::msghdr) = unsafe { (mem::zeroed(), mem::zeroed()) };
    let control_len = size_of::<libc::cmsghdr>() + count * size_of::<c_int>();
    rights.head.cmsg_len = control_len as _;
    rights.head.cmsg_level = libc::SOL_SOCKET;
    rights.head.cmsg_type = libc::SCM_RIGHTS;
    rights.fds = [first, second.unwrap_or(-1)];
    let mut part = libc::iovec { iov_base: record.as_ptr().cast_mut().cast(), iov_len: record.len() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut rights).cast();
    message.msg_controllen = control_len as _;
    // SAFETY: the message points to `record`, `part` and `rights`, which outlive the call.
    let sent = unsafe { libc::syscall(libc::SYS_sendmsg, fd, &raw const message, libc::MSG_NOSIGNAL) };
    usize::try_from(sent) == Ok(record.len())
}

/// Time left to wait; the kernel counts it down, also when a signal ends a wait early.
pub(crate) struct Left(libc::timespec);

impl Left {
    pub(crate) fn seconds(s: u32) -> Self {
        Self(libc::timespec { tv_sec: s.into(), tv_nsec: 0 })
    }

    /// Waits until `fd` has something to read or has ended. `false`: the time is over.
    pub(crate) fn wait_readable(&mut self, fd: c_int) -> bool {
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        loop {
            let mask: *const libc::sigset_t = core::ptr::null();
            // SAFETY: one pollfd, a timespec that the kernel updates, no signal mask.
            let ready = unsafe { libc::syscall(libc::SYS_ppoll, &raw mut poll, 1, &raw mut self.0, mask, 8) };
            if ready > 0 {
                return true;
            }
            if ready == 0 || errno() != libc::EINTR {
                return false;
            }
        }
    }

    /// Sleeps one millisecond of it. `false`: the time is over.
    pub(crate) fn pause(&mut self) -> bool {
        const PAUSE_NS: libc::c_long = 1_000_000;
        let mut pause = libc::timespec { tv_sec: 0, tv_nsec: PAUSE_NS };
        // SAFETY: a timespec to read and one to write.
        unsafe { libc::syscall(libc::SYS_nanosleep, &raw const pause, &raw mut pause) };
        self.0.tv_nsec -= PAUSE_NS;
        if self.0.tv_nsec < 0 {
            self.0.tv_nsec += 1_000_000_000;
            self.0.tv_sec -= 1;
        }
        self.0.tv_sec >= 0
    }
}

/// Takes what is there, without waiting: the number of bytes (0 when there are none), and an fd that came with them.
pub(crate) fn receive(fd: c_int, into: &mut [u8]) -> (usize, Option<Fd>) {
    // SAFETY: cmsghdr and msghdr are plain integers and pointers, for which zero is a value.
    let (mut rights, mut message): (Rights, libc::msghdr) = unsafe { (mem::zeroed(), mem::zeroed()) };
    let mut part = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut rights).cast();
    // Room for one: the kernel closes any other.
    message.msg_controllen = RIGHTS_LEN as _;
    let how = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the kernel writes to `into` and `rights`, no more than the lengths given.
    let got = unsafe { libc::syscall(libc::SYS_recvmsg, fd, &raw mut message, how) };
    let head = &rights.head;
    let brought = (head.cmsg_level, head.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS);
    let [first, _] = rights.fds;
    let brought = if got >= 0 && brought && head.cmsg_len == RIGHTS_LEN as _ { Some(Fd(first)) } else { None };
    (usize::try_from(got).unwrap_or(0), brought)
}

#[expect(clippy::cast_possible_truncation, reason = "110")]
const ADDRESS_LEN: socklen_t = size_of::<sockaddr_un>() as socklen_t;

/// `sendto(2)` of the caller's own bytes to another address.
///
/// # Safety
/// As for `sendto(2)`; the kernel checks the buffer itself.
pub(crate) unsafe fn send_to(fd: c_int, bytes: *const c_void, len: size_t, flags: c_int, to: &sockaddr_un) -> ssize_t {
    // SAFETY: `to` is a whole address; the rest is the caller's.
    size(unsafe { libc::syscall(libc::SYS_sendto, fd, bytes, len, flags, &raw const *to, ADDRESS_LEN) })
}

/// `sendmsg(2)` of the caller's own message to another address.
///
/// # Safety
/// As for `sendmsg(2)`, and the message itself is readable.
pub(crate) unsafe fn send_message(fd: c_int, message: *const libc::msghdr, flags: c_int, to: &sockaddr_un) -> ssize_t {
    // SAFETY: a msghdr is plain integers and pointers, for which zero is a value (musl pads them); the caller's is
    // readable.
    let (mut copy, theirs): (libc::msghdr, &libc::msghdr) = unsafe { (mem::zeroed(), &*message) };
    copy.msg_name = (&raw const *to).cast_mut().cast();
    copy.msg_namelen = ADDRESS_LEN;
    copy.msg_iov = theirs.msg_iov;
    copy.msg_iovlen = theirs.msg_iovlen;
    copy.msg_control = theirs.msg_control;
    copy.msg_controllen = theirs.msg_controllen;
    // SAFETY: what the copy points to is the caller's, and the kernel checks it; `to` outlives the call.
    size(unsafe { libc::syscall(libc::SYS_sendmsg, fd, &raw const copy, flags) })
}

fn size(result: c_long) -> ssize_t {
    ssize_t::try_from(result).unwrap_or(-1)
}

fn int(result: c_long) -> c_int {
    c_int::try_from(result).unwrap_or(-1)
}
