//! One question to the daemon: connect this socket to that name; or, where do I send to reach that name?
//!
//! Costs the caller one fd for as long as it takes (two for a relative path, or for an answer), and at most five
//! seconds.

use core::mem::offset_of;

use farside_contract::{ADDRESS_MAX, HEADER_LEN, Op, Request, VERDICT_LEN, VERDICT_WAIT_S, Verdict, flags};
use libc::{c_int, sa_family_t, sockaddr_un, socklen_t};

use crate::kernel::{self, Fd, Left};
use crate::settings;

pub(crate) enum Answer<T> {
    Yes(T),
    Refused(c_int),
    /// Nobody to ask, no way to ask, or the daemon says that it is none of its business.
    Local,
}

pub(crate) fn connect(fd: c_int, name: &[u8]) -> Answer<()> {
    match ask(Op::Connect, fd, name) {
        Heard::Verdict(Verdict::Connected, _) => Answer::Yes(()),
        Heard::Verdict(Verdict::Refused(errno), _) => Answer::Refused(errno),
        Heard::Verdict(Verdict::NotRemote, _) | Heard::Nobody => Answer::Local,
        // The daemon died under the question. If it had connected the socket, the other end is gone.
        Heard::Nothing if kernel::has_peer(fd) => Answer::Refused(libc::ECONNRESET),
        Heard::Nothing => Answer::Local,
    }
}

/// The socket (O_PATH) that takes datagrams from `fd` to `name`.
pub(crate) fn outlet(fd: c_int, name: &[u8]) -> Answer<Fd> {
    match ask(Op::SendTo, fd, name) {
        Heard::Verdict(Verdict::Connected, Some(outlet)) => Answer::Yes(outlet),
        Heard::Verdict(Verdict::Refused(errno), _) => Answer::Refused(errno),
        _ => Answer::Local,
    }
}

/// What came of a question.
enum Heard {
    Verdict(Verdict, Option<Fd>),
    /// There is no daemon, or it could not be asked.
    Nobody,
    /// It was asked, and has ended without a word.
    Nothing,
}

fn ask(op: Op, fd: c_int, name: &[u8]) -> Heard {
    const TOO_LATE: Heard = Heard::Verdict(Verdict::Refused(libc::ETIMEDOUT), None);
    let mut left = Left::seconds(VERDICT_WAIT_S);
    let Some(daemon) = kernel::seqpacket() else { return Heard::Nobody };
    match reach(daemon.raw(), &mut left) {
        Reached::Yes => {}
        Reached::Absent => return Heard::Nobody,
        Reached::TooLate => return TOO_LATE,
    }
    if !send(daemon.raw(), op, fd, name) {
        return Heard::Nobody;
    }
    if !left.wait_readable(daemon.raw()) {
        return TOO_LATE;
    }
    let mut bytes = [0; VERDICT_LEN];
    let (got, brought) = kernel::receive(daemon.raw(), &mut bytes);
    match bytes.get(..got).map(Verdict::decode) {
        Some(Ok(verdict)) => Heard::Verdict(verdict, brought),
        _ => Heard::Nothing,
    }
}

enum Reached {
    Yes,
    Absent,
    TooLate,
}

/// Connects to the daemon. Only a full backlog is worth waiting for.
fn reach(daemon: c_int, left: &mut Left) -> Reached {
    let address = settings::daemon_address();
    let Ok(len) = socklen_t::try_from(size_of::<sockaddr_un>()) else { return Reached::Absent };
    loop {
        if kernel::connect(daemon, (&raw const address).cast(), len) == 0 {
            return Reached::Yes;
        }
        match kernel::errno() {
            libc::EINTR => {}
            libc::EAGAIN => {
                if !left.pause() {
                    return Reached::TooLate;
                }
            }
            _ => return Reached::Absent,
        }
    }
}

fn send(daemon: c_int, op: Op, fd: c_int, name: &[u8]) -> bool {
    let relative = !matches!(name, [b'/' | 0, ..]);
    let cwd = if relative { kernel::cwd() } else { None };
    if relative && cwd.is_none() {
        return false;
    }
    let mut record = [0; HEADER_LEN + ADDRESS_MAX];
    let request = Request { op, flags: if relative { flags::CWD } else { 0 }, name };
    let Some(bytes) = request.encode(&mut record).and_then(|len| record.get(..len)) else { return false };
    kernel::send(daemon, bytes, fd, cwd.as_ref().map(Fd::raw))
}

/// The address of the socket behind an O_PATH fd. Of the thread, not the process: a thread may have fds of its own, and
/// outlive the first one.
pub(crate) fn address_of_fd(fd: c_int) -> sockaddr_un {
    const PREFIX: &[u8] = b"/proc/thread-self/fd/";
    // As many digits as a c_int has.
    const DIGITS: usize = 10;
    let mut digits = [b'0'; DIGITS];
    let mut rest = fd.unsigned_abs();
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    // No zero in front, but one digit at least.
    let zeros = digits.iter().take(DIGITS - 1).take_while(|digit| **digit == b'0').count();
    let mut path = [0; PREFIX.len() + DIGITS];
    for (to, from) in path.iter_mut().zip(PREFIX.iter().chain(digits.iter().skip(zeros))) {
        *to = *from;
    }
    address_of(&path)
}

/// `path` in a `sockaddr_un`; cut, and so not found, when it is too long.
pub(crate) fn address_of(path: &[u8]) -> sockaddr_un {
    const { assert!(offset_of!(sockaddr_un, sun_path) + ADDRESS_MAX == size_of::<sockaddr_un>()) };
    #[expect(clippy::cast_possible_truncation, reason = "AF_UNIX is 1")]
    let mut address = sockaddr_un { sun_family: libc::AF_UNIX as sa_family_t, sun_path: [0; ADDRESS_MAX] };
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = *from as _;
    }
    address
}
