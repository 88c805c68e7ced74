//! Operations by system calls, none of which waits: for the epoll engine, and for what a ring refuses.
//!
//! O_NONBLOCK belongs to the open file, which a program may share, so it is never touched. Sockets take MSG_DONTWAIT,
//! most other files RWF_NOWAIT. What takes neither (a pipe before Linux 6.4, a terminal) is asked by poll(2) first and
//! gets no more than it then has room for. A file on a disk is never "not ready": it is read and written at once.
//!
//! One gap is left: where neither flag is known, another process that reads the same pipe, or accepts from the same
//! listener, between our poll(2) and our call makes that call wait.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{SFlag, fstat};

use super::envelope::Envelope;
use super::op::{Fd, Op, Outcome};
use crate::errno::Errno;
use crate::sys::{file, terminal};

type Count = Result<u32, Errno>;

/// Does the operation, if it need not wait; EAGAIN if it would have to.
pub(super) fn attempt(op: &Op, envelope: &mut Envelope) -> Outcome {
    if let Some(call) = envelope.address(op) {
        let (raw, flags) = (op.fd().as_raw_fd(), call.flags | libc::MSG_DONTWAIT);
        // SAFETY: the header points into the envelope and to buffers that the operation owns.
        let result = count(unsafe {
            if call.sends { libc::sendmsg(raw, call.header, flags) } else { libc::recvmsg(raw, call.header, flags) }
        });
        // SAFETY: that call has just ended.
        return unsafe { envelope.open(op, result) };
    }
    match op {
        Op::Recv { fd, into, max, .. } => {
            // SAFETY: the tail has room for `spare` bytes and is nobody else's.
            let got =
                unsafe { libc::recv(fd.as_raw_fd(), into.tail().cast(), (*max).min(into.spare()), libc::MSG_DONTWAIT) };
            count(got).into()
        }
        Op::SendChunk { fd, chunk } => {
            let bytes = chunk.as_ref();
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            // SAFETY: the pointer and the length are of one slice.
            count(unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) }).into()
        }
        Op::Read { fd, into, max } => {
            let tail = libc::iovec { iov_base: into.tail().cast(), iov_len: (*max).min(into.spare()) };
            read(fd, &tail).into()
        }
        Op::Write { fd, chunk, terminal } => write(fd, chunk.as_ref(), *terminal).into(),
        Op::Accept { fd } => accept(fd),
        Op::Poll { fd, events } => ready(fd, *events).into(),
        Op::Hangup { fd } => ready(fd, 0).into(),
        Op::Peek { .. } | Op::Measure { .. } | Op::Send { .. } => unreachable!("an operation on messages"),
    }
}

fn count(result: isize) -> Count {
    u32::try_from(Errno::result(result)?).map_err(|_| Errno::EOVERFLOW)
}

/// What poll(2) says now; EAGAIN for nothing.
fn ready(fd: &Fd, events: i16) -> Count {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::from_bits_retain(events))];
    poll(&mut fds, PollTimeout::ZERO)?;
    match fds[0].revents().unwrap_or(PollFlags::empty()).bits() {
        0 => Err(Errno::EAGAIN),
        bits => Ok(u32::from(bits.cast_unsigned())),
    }
}

fn accept(fd: &Fd) -> Outcome {
    let accepted = ready(fd, libc::POLLIN).and_then(|_| {
        let null = std::ptr::null_mut();
        // SAFETY: no address is asked for.
        count(unsafe { libc::accept4(fd.as_raw_fd(), null, null.cast(), libc::SOCK_CLOEXEC) } as isize)
    });
    let mut outcome = Outcome::from(accepted);
    if let Ok(raw) = accepted {
        // SAFETY: the kernel has just made this fd for us.
        outcome.fds.push(unsafe { OwnedFd::from_raw_fd(raw.cast_signed()) });
    }
    outcome
}

fn read(fd: &Fd, tail: &libc::iovec) -> Count {
    // SAFETY: one slice, whose room is the operation's; offset -1 is the file's own position.
    let got = count(unsafe { libc::preadv2(fd.as_raw_fd(), tail, 1, -1, libc::RWF_NOWAIT) });
    if !is_undecided(got, fd) {
        return got;
    }
    ready(fd, libc::POLLIN)?;
    // SAFETY: as above.
    count(unsafe { libc::read(fd.as_raw_fd(), tail.iov_base, tail.iov_len) })
}

fn write(fd: &Fd, bytes: &[u8], terminal: bool) -> Count {
    let slice = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: one slice, which is only read; offset -1 is the file's own position.
    let got = count(unsafe { libc::pwritev2(fd.as_raw_fd(), &raw const slice, 1, -1, libc::RWF_NOWAIT) });
    if !is_undecided(got, fd) {
        return got;
    }
    ready(fd, libc::POLLOUT)?;
    if is_on_disk(fd) {
        return plain_write(fd.as_fd(), bytes);
    }
    if terminal {
        return write_terminal(fd, bytes);
    }
    // pipe(7): a pipe that is ready has room for PIPE_BUF bytes.
    plain_write(fd.as_fd(), &bytes[..bytes.len().min(libc::PIPE_BUF)])
}

/// A terminal that is ready has room for something, perhaps for one byte, and stopping it (^S) must not stop a worker.
/// Opened anew it has a position and flags of its own.
fn write_terminal(fd: &Fd, bytes: &[u8]) -> Count {
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK;
    // A master opened anew would be the master of another terminal.
    let own = if terminal::is_master(&**fd) { Err(Errno::ENXIO) } else { file::reopen(fd.as_fd(), flags) };
    match own {
        Ok(own) => plain_write(own.as_fd(), bytes),
        Err(_) => plain_write(fd.as_fd(), &bytes[..bytes.len().min(1)]),
    }
}

fn plain_write(fd: BorrowedFd<'_>, bytes: &[u8]) -> Count {
    // SAFETY: the pointer and the length are of one slice.
    count(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) })
}

/// The file does not know RWF_NOWAIT, or is on a disk, whose EAGAIN only means that it takes a moment.
fn is_undecided(got: Count, fd: &Fd) -> bool {
    match got {
        Err(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS) => true,
        Err(Errno::EAGAIN) => is_on_disk(fd),
        _ => false,
    }
}

fn kind(fd: &Fd) -> SFlag {
    fstat(fd).map_or(SFlag::empty(), |s| SFlag::from_bits_truncate(s.st_mode) & SFlag::S_IFMT)
}

fn is_on_disk(fd: &Fd) -> bool {
    [SFlag::S_IFREG, SFlag::S_IFBLK].contains(&kind(fd))
}
