//! One question to the daemon: connect this socket to that name.
//!
//! Costs the caller one fd for as long as it takes (two for a relative path), and at most five seconds.

use core::mem::offset_of;

use farside_contract::{ADDRESS_MAX, HEADER_LEN, Op, Request, VERDICT_LEN, VERDICT_WAIT_S, Verdict, flags};
use libc::{c_int, sa_family_t, sockaddr_un, socklen_t};

use crate::kernel::{self, Left};
use crate::settings;

pub(crate) enum Answer {
    Connected,
    Refused(c_int),
    /// Nobody to ask, no way to ask, or the daemon says that it is none of its business.
    Local,
}

pub(crate) fn connect(fd: c_int, name: &[u8]) -> Answer {
    let mut left = Left::seconds(VERDICT_WAIT_S);
    let Some(daemon) = kernel::seqpacket() else { return Answer::Local };
    match reach(daemon.raw(), &mut left) {
        Reached::Yes => {}
        Reached::Absent => return Answer::Local,
        Reached::TooLate => return Answer::Refused(libc::ETIMEDOUT),
    }
    if !send(daemon.raw(), fd, name) {
        return Answer::Local;
    }
    if !left.wait_readable(daemon.raw()) {
        return Answer::Refused(libc::ETIMEDOUT);
    }
    let mut bytes = [0; VERDICT_LEN];
    let got = usize::try_from(kernel::receive(daemon.raw(), &mut bytes)).unwrap_or(0);
    match bytes.get(..got).map(Verdict::decode) {
        Some(Ok(Verdict::Connected)) => Answer::Connected,
        Some(Ok(Verdict::Refused(errno))) => Answer::Refused(errno),
        Some(Ok(Verdict::NotRemote)) => Answer::Local,
        // The daemon died under the question. If it had connected the socket, the other end is gone.
        _ if kernel::has_peer(fd) => Answer::Refused(libc::ECONNRESET),
        _ => Answer::Local,
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

fn send(daemon: c_int, fd: c_int, name: &[u8]) -> bool {
    let relative = !matches!(name, [b'/' | 0, ..]);
    let cwd = if relative { kernel::cwd() } else { None };
    if relative && cwd.is_none() {
        return false;
    }
    let mut record = [0; HEADER_LEN + ADDRESS_MAX];
    let request = Request { op: Op::Connect, flags: if relative { flags::CWD } else { 0 }, name };
    let Some(bytes) = request.encode(&mut record).and_then(|len| record.get(..len)) else { return false };
    kernel::send(daemon, bytes, fd, cwd.as_ref().map(kernel::Fd::raw))
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
