//! Which process side a socket inode belongs to: does a socket of *this* machine have it as its address?
//!
//! The kernel knows (`sys::unix_diag`); a file's mode does not: a socket that a program of the near side bound through
//! the mount is an inode here too, but nobody here is behind it. It sees this network namespace only.

use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use crate::qtfs::wire::{HostSocket, SocketType};
use crate::sys::file::self_path;
use crate::sys::unix::SocketKind;
use crate::sys::unix_diag::Diag;

/// The socket at the inode behind `fd`, if a program of this machine takes connections or datagrams there.
pub(super) fn bound_here(fd: BorrowedFd<'_>, device: (u32, u32), ino: u64) -> Option<HostSocket> {
    let kind = match Diag::open().and_then(|mut diag| diag.at_inode(device, ino)) {
        Ok(found) => match found? {
            SocketKind::Stream => SocketType::Stream,
            SocketKind::SeqPacket => SocketType::SeqPacket,
            SocketKind::Datagram => SocketType::Datagram,
        },
        Err(errno) => {
            tracing::warn!("asking the kernel whose socket inode {ino} is (module unix_diag): {}", errno.desc());
            return None;
        }
    };
    let path = std::fs::read_link(std::ffi::OsStr::from_bytes(self_path(fd).to_bytes())).ok()?;
    Some(HostSocket { kind, path: path.as_os_str().as_bytes().to_vec() })
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
}
