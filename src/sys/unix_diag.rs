//! What the kernel knows of unix sockets (sock_diag(7), UNIX_DIAG): who is behind an inode, and whether a socket still is.
//!
//! A datagram socket has no end that its peer could see, and a socket's mode does not tell whether anybody of this
//! machine is behind it. The kernel can be asked both. One `Diag` sees one network namespace: that of the thread that
//! opened it.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::unix::SocketKind;
use crate::errno::{Errno, errno_of};

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const UDIAG_SHOW_VFS: u32 = 2;
const UDIAG_SHOW_PEER: u32 = 4;
const UDIAG_SHOW_RQLEN: u32 = 0x10;
const UNIX_DIAG_VFS: u16 = 1;
const UNIX_DIAG_PEER: u16 = 2;
const UNIX_DIAG_RQLEN: u16 = 4;
const TCP_LISTEN: u8 = 10;
/// linux/netlink.h and linux/unix_diag.h: the sizes of nlmsghdr, unix_diag_req and unix_diag_msg.
const MESSAGE_HEADER: usize = 16;
const REQUEST: usize = 24;
const DIAG_HEADER: usize = 16;
/// A dump comes in pieces of at most this.
const PIECE: usize = 64 << 10;
/// The kernel answers while the request is being sent; only a broken module would not.
const PATIENCE: Duration = Duration::from_secs(1);

/// One socket, and no other that may come to have its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketId {
    pub ino: u32,
    pub cookie: u64,
}

impl SocketId {
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let ino = nix::sys::stat::fstat(fd)?.st_ino;
        let mut cookie = 0u64;
        let mut len = libc::socklen_t::try_from(size_of::<u64>()).expect("8");
        let at = (&raw mut cookie).cast();
        // SAFETY: the kernel writes at most `len` bytes to `cookie`.
        let done = unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_COOKIE, at, &raw mut len) };
        Errno::result(done)?;
        Ok(Self { ino: low(ino), cookie })
    }
}

/// What is known of a socket that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// The socket that it is connected to.
    pub peer: Option<u32>,
    /// Bytes of the next datagram that nobody has read.
    pub queued: u32,
}

#[derive(Debug)]
pub struct Diag {
    socket: Socket,
    /// Tells an answer from one that came too late for its question.
    sequence: u32,
}

impl Diag {
    pub fn open() -> Result<Self, Errno> {
        let protocol = Some(Protocol::from(NETLINK_SOCK_DIAG));
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::DGRAM, protocol).map_err(|e| errno_of(&e))?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(|e| errno_of(&e))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The socket as it is now; `None`: it is gone. A socket that is being bound or connected at this very moment may be
    /// overlooked, so only a second "gone" is one.
    pub fn find(&mut self, id: SocketId) -> Result<Option<Seen>, Errno> {
        let mut found = None;
        let answer = self.ask(NLM_F_REQUEST, id, UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN, |message| {
            found = Some(seen(message));
        });
        match answer {
            Ok(()) => Ok(found),
            Err(Errno::ENOENT | Errno::ESTALE) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// The kind of the socket whose address is this inode, if it takes connections or datagrams. An accepted connection
    /// has its listener's inode too, but does not listen.
    pub fn at_inode(&mut self, device: (u32, u32), ino: u64) -> Result<Option<SocketKind>, Errno> {
        // MAJOR:MINOR as the kernel packs it, and the inode number cut to 32 bits, as the kernel cuts it.
        let wanted = (low(ino), device.0 << 20 | device.1);
        let mut found = None;
        let all = SocketId { ino: 0, cookie: u64::MAX };
        self.ask(NLM_F_REQUEST | NLM_F_DUMP, all, UDIAG_SHOW_VFS, |message| {
            found = found.or_else(|| matching(message, wanted));
        })?;
        Ok(found)
    }

    fn ask(&mut self, flags: u16, id: SocketId, show: u32, mut take: impl FnMut(&[u8])) -> Result<(), Errno> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let told = |e: std::io::Error| errno_of(&e);
        (&self.socket).write_all(&request(flags, sequence, id, show)).map_err(told)?;
        let dump = flags & NLM_F_DUMP != 0;
        let mut piece = vec![0; if dump { PIECE } else { 1024 }];
        loop {
            let len = (&self.socket).read(&mut piece).map_err(told)?;
            match scan(&piece[..len], sequence, &mut take)? {
                Scan::End => return Ok(()),
                Scan::Some if !dump => return Ok(()),
                Scan::Some | Scan::Nothing => {}
            }
        }
    }
}

fn low(n: u64) -> u32 {
    u32::try_from(n & u64::from(u32::MAX)).expect("masked")
}

fn request(flags: u16, sequence: u32, id: SocketId, show: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(MESSAGE_HEADER + REQUEST);
    let len = u32::try_from(MESSAGE_HEADER + REQUEST).expect("40");
    out.extend(len.to_ne_bytes());
    out.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend(0u32.to_ne_bytes());
    out.extend([u8::try_from(libc::AF_UNIX).expect("1"), 0, 0, 0]);
    // Every state.
    for word in [u32::MAX, id.ino, show, low(id.cookie), low(id.cookie >> 32)] {
        out.extend(word.to_ne_bytes());
    }
    out
}

enum Scan {
    /// The last message of a dump.
    End,
    /// At least one message of this question.
    Some,
    /// Answers to earlier questions alone.
    Nothing,
}

/// Takes every message of one piece that answers this question.
fn scan(piece: &[u8], sequence: u32, take: &mut impl FnMut(&[u8])) -> Result<Scan, Errno> {
    let mut result = Scan::Nothing;
    let mut rest = piece;
    while rest.len() >= MESSAGE_HEADER {
        let len = word(rest, 0).ok_or(Errno::EPROTO)? as usize;
        let message = rest.get(MESSAGE_HEADER..len).ok_or(Errno::EPROTO)?;
        if word(rest, 8) == Some(sequence) {
            match half(rest, 4) {
                Some(NLMSG_DONE) => return Ok(Scan::End),
                Some(NLMSG_ERROR) => {
                    let errno = word(message, 0).ok_or(Errno::EPROTO)?.cast_signed();
                    return Err(Errno::from_raw(errno.wrapping_neg()));
                }
                Some(SOCK_DIAG_BY_FAMILY) => {
                    take(message);
                    result = Scan::Some;
                }
                _ => {}
            }
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(result)
}

fn seen(message: &[u8]) -> Seen {
    let mut seen = Seen::default();
    for (kind, value) in attributes(message) {
        match kind {
            UNIX_DIAG_PEER => seen.peer = word(value, 0),
            UNIX_DIAG_RQLEN => seen.queued = word(value, 0).unwrap_or(0),
            _ => {}
        }
    }
    seen
}

fn matching(message: &[u8], wanted: (u32, u32)) -> Option<SocketKind> {
    let (kind, state) = (i32::from(*message.get(1)?), *message.get(2)?);
    let kind = match kind {
        libc::SOCK_STREAM => SocketKind::Stream,
        libc::SOCK_SEQPACKET => SocketKind::SeqPacket,
        libc::SOCK_DGRAM => SocketKind::Datagram,
        _ => return None,
    };
    if kind != SocketKind::Datagram && state != TCP_LISTEN {
        return None;
    }
    let here = |(a, value): (u16, &[u8])| {
        a == UNIX_DIAG_VFS && word(value, 0) == Some(wanted.0) && word(value, 4) == Some(wanted.1)
    };
    attributes(message).any(here).then_some(kind)
}

/// The attributes behind a unix_diag_msg; one that says a length it has not got ends them.
fn attributes(message: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = message.get(DIAG_HEADER..).unwrap_or(&[]);
    std::iter::from_fn(move || {
        let (len, kind) = (usize::from(half(rest, 0)?), half(rest, 2)?);
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    #[test]
    fn a_socket_is_there_until_it_is_closed() {
        let mut diag = Diag::open().unwrap();
        let (a, b) = UnixDatagram::pair().unwrap();
        let [id, other] = [&a, &b].map(|s| SocketId::of(s.as_fd()).unwrap());
        assert_eq!(diag.find(id), Ok(Some(Seen { peer: Some(other.ino), queued: 0 })));
        b.send(b"12345").unwrap();
        assert_eq!(diag.find(id).unwrap().unwrap().queued, 5);
        let stranger = SocketId { cookie: id.cookie ^ 1, ..id };
        assert_eq!(diag.find(stranger), Ok(None), "another socket that has the same number");
        drop(a);
        assert_eq!(diag.find(id), Ok(None));
    }

    #[test]
    fn a_listener_is_found_by_its_inode_and_a_dead_one_is_not() {
        let mut diag = Diag::open().unwrap();
        let path = std::env::temp_dir().join(format!("unix-diag-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let flags = nix::fcntl::OFlag::O_PATH;
        let inode = nix::fcntl::open(&path, flags, nix::sys::stat::Mode::empty()).unwrap();
        let stat = crate::sys::file::stat(inode.as_fd()).unwrap();
        assert_eq!(diag.at_inode(stat.dev(), stat.ino), Ok(Some(SocketKind::Stream)));
        drop(listener);
        assert_eq!(diag.at_inode(stat.dev(), stat.ino), Ok(None));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn an_answer_cut_anywhere_is_no_panic() {
        let mut message = vec![1, 1, TCP_LISTEN, 0];
        message.extend([0; 12]);
        for half in [12u16, UNIX_DIAG_VFS] {
            message.extend(half.to_ne_bytes());
        }
        message.extend([7u32, 8].iter().flat_map(|w| w.to_ne_bytes()));
        assert_eq!(matching(&message, (7, 8)), Some(SocketKind::Stream));
        let len = u32::try_from(MESSAGE_HEADER + message.len()).unwrap();
        let mut whole = len.to_ne_bytes().to_vec();
        whole.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        whole.extend([0; 2]);
        whole.extend(9u32.to_ne_bytes());
        whole.extend([0; 4]);
        whole.extend(&message);
        for cut in 0..=whole.len() {
            let mut count = 0;
            let _ = scan(&whole[..cut], 9, &mut |m: &[u8]| {
                let _ = (matching(m, (7, 8)), seen(m));
                count += 1;
            });
            assert_eq!(count, usize::from(cut == whole.len()), "cut at {cut}");
        }
    }
}
