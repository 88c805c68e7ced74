//! Which process side a socket inode belongs to: does a socket of *this* machine have it as its address?
//!
//! The kernel knows (sock_diag(7), UNIX_DIAG with UDIAG_SHOW_VFS); a file's mode does not: a socket that a program of
//! the near side bound through the mount is an inode here too, but nobody here is behind it. It sees this network
//! namespace only.

use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::nodes::self_path;
use crate::qtfs::wire::{HostSocket, SocketType};
use crate::wire::codec::{Decoder, Encoder};
use crate::wire::{WireResult, bad};

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const UDIAG_SHOW_VFS: u32 = 2;
const UNIX_DIAG_VFS: u16 = 1;
const TCP_LISTEN: u8 = 10;
/// linux/netlink.h and linux/unix_diag.h.
const MESSAGE_HEADER: usize = 16;
const DIAG_HEADER: usize = 16;
const DIAG_REQUEST: usize = 24;
/// A dump comes in pieces of at most this.
const PIECE: usize = 64 << 10;

/// The socket at the inode behind `fd`, if a program of this machine takes connections or datagrams there.
pub(super) fn bound_here(fd: BorrowedFd<'_>, device: (u32, u32), ino: u64) -> Option<HostSocket> {
    let kind = match find(device, ino) {
        Ok(found) => found?,
        Err(e) => {
            tracing::warn!("asking the kernel whose socket inode {ino} is: {e}");
            return None;
        }
    };
    let path = std::fs::read_link(std::ffi::OsStr::from_bytes(self_path(fd).to_bytes())).ok()?;
    Some(HostSocket { kind, path: path.as_os_str().as_bytes().to_vec() })
}

fn find(device: (u32, u32), ino: u64) -> Result<Option<SocketType>, String> {
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::DGRAM, Some(Protocol::from(NETLINK_SOCK_DIAG)));
    let socket = socket.map_err(|e| format!("sock_diag: {e}"))?;
    let told = |e: std::io::Error| format!("sock_diag: {e}");
    socket.set_read_timeout(Some(Duration::from_secs(1))).map_err(told)?;
    (&socket).write_all(&request()).map_err(told)?;
    // MAJOR:MINOR as the kernel packs it, and the inode number cut to 32 bits, as the kernel cuts it.
    let wanted = (low(ino), device.0 << 20 | device.1);
    let mut piece = vec![0; PIECE];
    let mut found = None;
    loop {
        let len = (&socket).read(&mut piece).map_err(told)?;
        let end = scan(&piece[..len], wanted, &mut found).map_err(|e| e.to_string())?;
        if end {
            return Ok(found);
        }
    }
}

fn low(n: u64) -> u32 {
    u32::try_from(n & u64::from(u32::MAX)).expect("masked")
}

fn request() -> Vec<u8> {
    let mut e = Encoder::new();
    let len = u32::try_from(MESSAGE_HEADER + DIAG_REQUEST).expect("40");
    e.u32(len).u16(SOCK_DIAG_BY_FAMILY).u16(NLM_F_REQUEST | NLM_F_DUMP).u32(1).u32(0);
    let family = u8::try_from(libc::AF_UNIX).expect("1");
    // Every state, no single inode, no cookie.
    e.u8(family).u8(0).u16(0).u32(u32::MAX).u32(0).u32(UDIAG_SHOW_VFS).u64(u64::MAX);
    e.finish()
}

/// Looks through one piece of the dump; `true` when it was the last.
fn scan(piece: &[u8], wanted: (u32, u32), found: &mut Option<SocketType>) -> WireResult<bool> {
    let mut rest = piece;
    while rest.len() >= MESSAGE_HEADER {
        let mut d = Decoder::new("sock_diag", rest);
        let (len, kind) = (d.u32()? as usize, d.u16()?);
        if len < MESSAGE_HEADER || len > rest.len() {
            bad!("sock_diag message of {len} bytes");
        }
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => bad!("sock_diag refused; is the module unix_diag there?"),
            SOCK_DIAG_BY_FAMILY => {
                if let Some(kind) = matching(&rest[MESSAGE_HEADER..len], wanted)? {
                    *found = Some(kind);
                }
            }
            _ => {}
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(false)
}

/// The type of one socket of the dump, if it is the wanted inode's and takes clients. An accepted connection has its
/// listener's inode too, but does not listen.
fn matching(message: &[u8], wanted: (u32, u32)) -> WireResult<Option<SocketType>> {
    let mut d = Decoder::new("unix_diag", message);
    let (_family, kind, state) = (d.u8()?, d.u8()?, d.u8()?);
    let Some(kind) = SocketType::from_number(kind) else { return Ok(None) };
    if kind != SocketType::Datagram && state != TCP_LISTEN {
        return Ok(None);
    }
    let mut attributes = message.get(DIAG_HEADER..).unwrap_or(&[]);
    while attributes.len() >= 4 {
        let mut d = Decoder::new("unix_diag", attributes);
        let (len, attribute) = (usize::from(d.u16()?), d.u16()?);
        if len < 4 {
            bad!("unix_diag attribute of {len} bytes");
        }
        if attribute == UNIX_DIAG_VFS && (d.u32()?, d.u32()?) == wanted {
            return Ok(Some(kind));
        }
        attributes = attributes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_listener_of_this_machine_is_found_and_a_dead_one_is_not() {
        let dir = std::env::temp_dir().join(format!("qtfs-diag-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let how = nix::fcntl::OFlag::O_PATH;
        let fd = nix::fcntl::open(&path, how, nix::sys::stat::Mode::empty()).unwrap();
        let stat = crate::sys::file::stat(fd.as_fd()).unwrap();
        let found = bound_here(fd.as_fd(), stat.dev(), stat.ino).expect("the listener is there");
        assert_eq!((found.kind, found.path), (SocketType::Stream, path.as_os_str().as_bytes().to_vec()));
        drop(listener);
        assert_eq!(bound_here(fd.as_fd(), stat.dev(), stat.ino), None);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_message_cut_anywhere_is_no_panic() {
        let mut e = Encoder::new();
        e.u32(44).u16(SOCK_DIAG_BY_FAMILY).u16(0).u32(0).u32(0);
        e.u8(1).u8(1).u8(TCP_LISTEN).u8(0).u32(9).u64(0);
        e.u16(12).u16(UNIX_DIAG_VFS).u32(7).u32(8);
        let bytes = e.finish();
        let mut found = None;
        assert_eq!(scan(&bytes, (7, 8), &mut found), Ok(false));
        assert_eq!(found, Some(SocketType::Stream));
        for cut in 0..bytes.len() {
            let _ = scan(&bytes[..cut], (7, 8), &mut found);
            let _ = matching(&bytes[..cut], (7, 8));
        }
    }
}
