//! Unix sockets by their names' exact bytes: a path of up to 108 bytes, or an abstract name from its NUL on.

use std::mem::{self, offset_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::errno::Errno;

/// `sizeof(sun_path)`.
pub const NAME_MAX: usize = 108;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SocketKind {
    Stream,
    SeqPacket,
    Datagram,
}

impl SocketKind {
    fn raw(self) -> libc::c_int {
        match self {
            Self::Stream => libc::SOCK_STREAM,
            Self::SeqPacket => libc::SOCK_SEQPACKET,
            Self::Datagram => libc::SOCK_DGRAM,
        }
    }

    /// What `fd` is.
    ///
    /// # Errors
    /// ENOTSOCK and EBADF from the kernel; EAFNOSUPPORT when it is not a unix socket; ESOCKTNOSUPPORT for a kind that
    /// this version of Linux did not have.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        if option(fd, libc::SO_DOMAIN)? != libc::AF_UNIX {
            return Err(Errno::EAFNOSUPPORT);
        }
        match option(fd, libc::SO_TYPE)? {
            libc::SOCK_STREAM => Ok(Self::Stream),
            libc::SOCK_SEQPACKET => Ok(Self::SeqPacket),
            libc::SOCK_DGRAM => Ok(Self::Datagram),
            _ => Err(Errno::ESOCKTNOSUPPORT),
        }
    }
}

fn option(fd: BorrowedFd<'_>, name: libc::c_int) -> Result<libc::c_int, Errno> {
    let mut value: libc::c_int = 0;
    let mut len: libc::socklen_t = 4;
    // SAFETY: the kernel writes at most `len` bytes to `value`.
    let done =
        unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut len) };
    Errno::result(done).map(|_| value)
}

/// Lets one record of `bytes` leave this socket: as root whatever the system's limit (SO_SNDBUFFORCE), else as far as
/// that goes.
pub fn raise_send_buffer(fd: BorrowedFd<'_>, bytes: u32) {
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    let set = |name| {
        let (at, len) = ((&raw const value).cast(), libc::socklen_t::try_from(size_of_val(&value)).expect("4"));
        // SAFETY: the kernel reads `len` bytes of `value`.
        unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, at, len) }
    };
    if set(libc::SO_SNDBUFFORCE) != 0 {
        // What is too large for it then is EMSGSIZE when it is sent.
        set(libc::SO_SNDBUF);
    }
}

/// asm-generic/socket.h; the libc crate has no name for it. Since Linux 6.5.
const SO_PASSPIDFD: libc::c_int = 76;
/// Whether the socket has a name, or will have one as soon as it is connected or sends: who wants to see credentials is
/// given one by the kernel.
pub fn is_named(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let passes = |name| option(fd, name).unwrap_or(0) != 0;
    Ok(!name_of(fd)?.is_empty() || passes(libc::SO_PASSCRED) || passes(SO_PASSPIDFD))
}

/// An O_PATH fd of the very inode that the socket is bound to, wherever that is by now. ENOENT: it has none (no name, or
/// an abstract one). EPERM: this needs CAP_NET_ADMIN in the socket's network namespace. Since Linux 4.13.
pub fn inode_of(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    const SIOCUNIXFILE: libc::c_ulong = 0x89e0;
    // SAFETY: this request has no argument and returns a new fd.
    let got = Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCUNIXFILE as _) })?;
    // SAFETY: the kernel has just made this fd for us.
    Ok(unsafe { OwnedFd::from_raw_fd(got) })
}

/// `connect(2)` to whoever is bound to this inode, whatever its path is.
pub fn connect_to_inode(fd: BorrowedFd<'_>, inode: BorrowedFd<'_>) -> Result<(), Errno> {
    connect(fd, format!("/proc/thread-self/fd/{}", inode.as_raw_fd()).as_bytes())
}

/// A new close-on-exec socket.
pub fn socket(kind: SocketKind, nonblocking: bool) -> Result<OwnedFd, Errno> {
    let flags = libc::SOCK_CLOEXEC | if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
    // SAFETY: three integers.
    let fd = Errno::result(unsafe { libc::socket(libc::AF_UNIX, kind.raw() | flags, 0) })?;
    // SAFETY: the kernel has just made this fd for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A `sockaddr_un` and the length that makes the kernel keep exactly `name`. ENAMETOOLONG above 108 bytes.
fn address(name: &[u8]) -> Result<(libc::sockaddr_un, libc::socklen_t), Errno> {
    // SAFETY: a sockaddr_un is integers, for which zero is a value.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).expect("AF_UNIX is 1");
    let room = address.sun_path.get_mut(..name.len()).ok_or(Errno::ENAMETOOLONG)?;
    for (to, from) in room.iter_mut().zip(name) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    // A path counts its NUL where there is room for one; an abstract name has no end but its length.
    let terminator = usize::from(name.first().is_some_and(|b| *b != 0) && name.len() < NAME_MAX);
    let len = offset_of!(libc::sockaddr_un, sun_path) + name.len() + terminator;
    Ok((address, libc::socklen_t::try_from(len).expect("at most 110")))
}

pub fn bind(fd: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let (address, len) = address(name)?;
    // SAFETY: `len` bytes of `address` are initialised.
    Errno::result(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) }).map(drop)
}

/// Has the kernel choose a free abstract name.
pub fn autobind(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    bind(fd, b"")
}

/// `connect(2)`, once: EINTR is the caller's affair.
pub fn connect(fd: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let (address, len) = address(name)?;
    // SAFETY: `len` bytes of `address` are initialised.
    Errno::result(unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), len) }).map(drop)
}

pub fn listen(fd: BorrowedFd<'_>, backlog: i32) -> Result<(), Errno> {
    // SAFETY: two integers.
    Errno::result(unsafe { libc::listen(fd.as_raw_fd(), backlog) }).map(drop)
}

/// The next connection, close-on-exec and blocking.
pub fn accept(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let nobody = std::ptr::null_mut();
    // SAFETY: no address is wanted.
    let got = unsafe { libc::accept4(fd.as_raw_fd(), nobody, nobody.cast(), libc::SOCK_CLOEXEC) };
    let got = Errno::result(got)?;
    // SAFETY: the kernel has just made this fd for us.
    Ok(unsafe { OwnedFd::from_raw_fd(got) })
}

/// The name that the socket is bound to, as its owner gave it; empty when it is not bound.
pub fn name_of(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    name_by(fd, libc::getsockname)
}

/// The name of the socket that this one is connected to; empty when that one is not bound.
pub fn peer_name_of(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    name_by(fd, libc::getpeername)
}

type NameCall = unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

fn name_by(fd: BorrowedFd<'_>, call: NameCall) -> Result<Vec<u8>, Errno> {
    // SAFETY: a sockaddr_un is integers, for which zero is a value.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    let mut len = libc::socklen_t::try_from(size_of::<libc::sockaddr_un>()).expect("110");
    // SAFETY: the kernel writes at most `len` bytes.
    Errno::result(unsafe { call(fd.as_raw_fd(), (&raw mut address).cast(), &raw mut len) })?;
    let len = (len as usize).saturating_sub(offset_of!(libc::sockaddr_un, sun_path)).min(NAME_MAX);
    let name: Vec<u8> = address.sun_path[..len].iter().map(|c| c.to_ne_bytes()[0]).collect();
    if name.first() == Some(&0) {
        return Ok(name);
    }
    Ok(name.split(|b| *b == 0).next().unwrap_or_default().to_vec())
}

/// An fd of the network namespace that the socket was made in; abstract names live there. Since Linux 4.9.
pub fn network_of(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    const SIOCGSKNS: libc::c_ulong = 0x894c;
    // SAFETY: this request has no argument and returns a new fd.
    let got = Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCGSKNS as _) })?;
    // SAFETY: the kernel has just made this fd for us.
    Ok(unsafe { OwnedFd::from_raw_fd(got) })
}

/// Whether the other end of a stream or seqpacket socket has gone, or sends no more.
pub fn has_hung_up(fd: BorrowedFd<'_>) -> bool {
    let (events, told) = (libc::POLLRDHUP, libc::POLLHUP | libc::POLLRDHUP | libc::POLLERR);
    poll(fd, events) & told != 0
}

/// Whether the other end is gone altogether: POLLHUP of a unix socket, poll(2).
pub fn is_gone(fd: BorrowedFd<'_>) -> bool {
    poll(fd, 0) & libc::POLLHUP != 0
}

fn poll(fd: BorrowedFd<'_>, events: libc::c_short) -> libc::c_short {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: one pollfd.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    if ready > 0 { poll.revents } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn names_are_kept_to_the_byte() {
        for name in [&b"\0farside test \0 of names"[..], b"\0x"] {
            let fd = socket(SocketKind::Stream, false).unwrap();
            bind(fd.as_fd(), name).unwrap();
            assert_eq!(name_of(fd.as_fd()).unwrap(), name);
        }
        let fd = socket(SocketKind::Datagram, false).unwrap();
        assert_eq!(name_of(fd.as_fd()).unwrap(), b"");
        assert_eq!(bind(fd.as_fd(), &[b'a'; NAME_MAX + 1]), Err(Errno::ENAMETOOLONG));
    }

    #[test]
    fn a_socket_is_reached_by_its_inode_when_its_path_is_gone() {
        let path = std::env::temp_dir().join(format!("unix-inode-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let bound = socket(SocketKind::Datagram, true).unwrap();
        bind(bound.as_fd(), path.as_os_str().as_encoded_bytes()).unwrap();
        let inode = match inode_of(bound.as_fd()) {
            Err(Errno::EPERM) => return crate::skip::skip("needs CAP_NET_ADMIN"),
            other => other.unwrap(),
        };
        std::fs::remove_file(&path).unwrap();
        let sender = socket(SocketKind::Datagram, true).unwrap();
        assert_eq!(inode_of(sender.as_fd()).unwrap_err(), Errno::ENOENT);
        assert_eq!(is_named(sender.as_fd()), Ok(false));
        connect_to_inode(sender.as_fd(), inode.as_fd()).unwrap();
        autobind(sender.as_fd()).unwrap();
        assert_eq!(is_named(sender.as_fd()), Ok(true));
        drop(bound);
        let late = socket(SocketKind::Datagram, true).unwrap();
        assert_eq!(connect_to_inode(late.as_fd(), inode.as_fd()), Err(Errno::ECONNREFUSED));
    }

    #[test]
    fn kinds_are_told_apart() {
        for kind in [SocketKind::Stream, SocketKind::SeqPacket, SocketKind::Datagram] {
            assert_eq!(SocketKind::of(socket(kind, true).unwrap().as_fd()), Ok(kind));
        }
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(SocketKind::of(null.as_fd()), Err(Errno::ENOTSOCK));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(SocketKind::of(tcp.as_fd()), Err(Errno::EAFNOSUPPORT));
    }
}
