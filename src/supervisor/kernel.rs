//! System calls that more than one part of the supervisor makes.

use farside_supervisor_contract::{Order, RECORD_LEN, Report, SOCKET_FD};

pub(crate) fn errno() -> i32 {
    // SAFETY: the address of this thread's errno is always valid.
    unsafe { *libc::__errno_location() }
}

pub(crate) fn set_errno(value: i32) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value }
}

/// Whether the fd is a socket of records, as the daemon's is.
pub(crate) fn is_seqpacket(fd: i32) -> bool {
    let (mut kind, mut len) = (0_i32, 4);
    // SAFETY: the kernel writes at most `len` bytes to `kind`.
    let asked = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, (&raw mut kind).cast(), &raw mut len) };
    asked == 0 && kind == libc::SOCK_SEQPACKET
}

/// To the daemon. An error means that nobody listens, which whoever reads the socket sees too.
pub(crate) fn send(report: Report) {
    let record = report.encode();
    // SAFETY: `record` is readable and of that length.
    unsafe { libc::send(SOCKET_FD, record.as_ptr().cast(), RECORD_LEN, libc::MSG_NOSIGNAL) };
}

/// What the daemon orders; `None`: nothing yet. That it has gone, or a record that is none, is an order to kill.
pub(crate) fn receive() -> Option<Order> {
    // One byte more, so that a record that is too long shows.
    let mut record = [0_u8; RECORD_LEN + 1];
    // SAFETY: `record` is writable and of that length.
    let n = unsafe { libc::recv(SOCKET_FD, record.as_mut_ptr().cast(), record.len(), libc::MSG_DONTWAIT) };
    if n == -1 && matches!(errno(), libc::EAGAIN | libc::EINTR) {
        return None;
    }
    let bytes = usize::try_from(n).ok().and_then(|n| record.get(..n)).unwrap_or_default();
    Some(Order::decode(bytes).unwrap_or(Order::KillAll))
}

/// To the other end of the pipe that `read_report` reads.
pub(crate) fn write_report(pipe: i32, report: Report) {
    let record = report.encode();
    // SAFETY: `record` is readable and of that length.
    unsafe { libc::write(pipe, record.as_ptr().cast(), RECORD_LEN) };
}

/// `None`: the pipe has ended.
pub(crate) fn read_report(pipe: i32) -> Option<Report> {
    let mut record = [0_u8; RECORD_LEN];
    loop {
        // SAFETY: `record` is writable and of that length.
        let n = unsafe { libc::read(pipe, record.as_mut_ptr().cast(), RECORD_LEN) };
        if n == -1 && errno() == libc::EINTR {
            continue;
        }
        return if usize::try_from(n) == Ok(RECORD_LEN) { Report::decode(&record).ok() } else { None };
    }
}

/// `keep` in ascending order.
///
/// # Safety
/// Nobody in this process uses other fds any more.
pub(crate) unsafe fn close_all_but(keep: impl Iterator<Item = i32>) {
    let mut from = 0;
    for fd in keep.chain(core::iter::once(i32::MAX)) {
        if from < fd {
            // SAFETY: as this function's.
            unsafe { libc::syscall(libc::SYS_close_range, from, fd - 1, 0) };
        }
        from = fd.saturating_add(1);
    }
}
