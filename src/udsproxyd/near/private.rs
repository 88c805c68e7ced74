//! One thread's private directory, where listeners get the very name that was asked for.
//!
//! ```text
//!   DIR/uds.d/N/          0700, this thread's working directory
//!   DIR/uds.d/N/tree/     its root while it binds: /run/x.sock becomes tree/run/x.sock
//!   DIR/uds.d/N/7         a listener, moved out of the tree; still named /run/x.sock for getpeername
//! ```
//!
//! A unix socket's name is what was given to bind; the inode may be anywhere. So the listener is bound inside a chroot
//! under the asked name, renamed to a number, and reached by that number. Nothing stays in the tree but directories, so
//! any name can follow any other. The thread has its own root and working directory (CLONE_FS), and is back at the
//! daemon's root when it calls anybody else.
//!
//! A few listeners are kept: the next ask of the same name needs a connect and an accept alone.

use std::ffi::OsStr;
use std::fs;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::fcntl::{AT_FDCWD, OFlag, open, openat, renameat};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, chroot, fchdir, unlinkat};

use crate::errno::{Errno, OsResult, Step};
use crate::limits::{KEPT_LISTENERS_MAX, PRIVATE_DIRS_MAX};
use crate::sys::thread_identity::{Identity, ThreadIdentity};
use crate::sys::unix::{self, SocketKind};

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

#[derive(Debug)]
pub(super) struct PrivateRoot {
    /// This directory's name below uds.d.
    base: OwnedFd,
    number: String,
    home: OwnedFd,
    tree: OwnedFd,
    daemon_root: OwnedFd,
    identity: ThreadIdentity,
    /// The most recently used last.
    kept: Vec<Kept>,
    serial: u64,
    dirs: usize,
    /// The thread could not leave the chroot, or its own identity is lost: it must end.
    lost: bool,
    _this_thread: PhantomData<*const ()>,
}

/// What a listener looks like to the caller.
#[derive(Debug, PartialEq, Eq)]
struct Face {
    kind: SocketKind,
    name: Vec<u8>,
    /// SO_PEERCRED's uid and gid, if not the daemon's.
    shown: Option<(u32, u32)>,
}

#[derive(Debug)]
struct Kept {
    face: Face,
    serial: String,
    listener: OwnedFd,
}

impl PrivateRoot {
    /// Gives the calling thread a root and working directory of its own, below `base`.
    pub(super) fn enter(base: BorrowedFd<'_>, number: usize) -> OsResult<Self> {
        unshare(CloneFlags::CLONE_FS).step("unshare(CLONE_FS)")?;
        let number = number.to_string();
        let base = base.try_clone_to_owned().step("dup")?;
        mkdirat(&base, number.as_str(), Mode::S_IRWXU).step_on("mkdir", &number)?;
        let home = openat(&base, number.as_str(), DIRECTORY, Mode::empty()).step_on("open", &number)?;
        let daemon_root = open("/", DIRECTORY, Mode::empty()).step_on("open", "/")?;
        fchdir(&home).step_on("fchdir", &number)?;
        let tree = make_tree(&home).step("make a private tree")?;
        let identity = ThreadIdentity::of_this_thread().step("read this thread's identity")?;
        Ok(Self {
            base,
            number,
            home,
            tree,
            daemon_root,
            identity,
            kept: Vec::new(),
            serial: 0,
            dirs: 0,
            lost: false,
            _this_thread: PhantomData,
        })
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    /// Connects `local`, the caller's own socket, to a listener of this name, and returns the other end.
    ///
    /// # Errors
    /// The kernel's, and then `local` was not touched.
    pub(super) fn join(
        &mut self,
        local: BorrowedFd<'_>,
        kind: SocketKind,
        name: &[u8],
        shown: Option<(u32, u32)>,
    ) -> Result<OwnedFd, Errno> {
        if kind == SocketKind::Datagram {
            return self.join_datagram(local, name);
        }
        let face = Face { kind, name: name.to_vec(), shown };
        if let Some(at) = self.kept.iter().position(|kept| kept.face == face) {
            let kept = self.kept.remove(at);
            match connect_and_accept(local, &kept) {
                // Somebody has emptied our directory: a new listener helps.
                Err(Errno::ENOENT | Errno::ECONNREFUSED) => self.discard(&kept),
                result => {
                    self.kept.push(kept);
                    return result;
                }
            }
        }
        let (listener, serial) = self.bind(kind, name)?;
        let kept = Kept { face, serial, listener };
        let result = self.listen(&kept).and_then(|()| connect_and_accept(local, &kept));
        if self.kept.len() == KEPT_LISTENERS_MAX {
            let oldest = self.kept.remove(0);
            self.discard(&oldest);
        }
        match &result {
            Ok(_) => self.kept.push(kept),
            Err(_) => self.discard(&kept),
        }
        result
    }

    /// A datagram socket has one peer for all: it is bound for this caller alone, and is the other end itself.
    fn join_datagram(&mut self, local: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
        let (socket, serial) = self.bind(SocketKind::Datagram, name)?;
        let result = unix::connect(local, serial.as_bytes());
        self.unlink(&serial);
        result?;
        nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFL(OFlag::empty()))?;
        Ok(socket)
    }

    /// SO_PEERCRED of a stream shows who called listen.
    fn listen(&mut self, kept: &Kept) -> Result<(), Errno> {
        let Some((uid, gid)) = kept.face.shown else { return unix::listen(kept.listener.as_fd(), 1) };
        let who = Identity { uid, gid, groups: Vec::new() };
        let outcome = self.identity.act_as(&who, || unix::listen(kept.listener.as_fd(), 1));
        self.lost |= !outcome.restored;
        outcome.result?
    }

    /// Closes the kept listeners.
    pub(super) fn forget(&mut self) {
        for kept in std::mem::take(&mut self.kept) {
            self.discard(&kept);
        }
    }

    fn discard(&self, kept: &Kept) {
        self.unlink(&kept.serial);
    }

    fn unlink(&self, serial: &str) {
        // ENOENT: somebody has emptied our directory, which is as good.
        let _ = unlinkat(&self.home, serial, UnlinkatFlags::NoRemoveDir);
    }

    /// A non-blocking socket of this name, to be reached by the number returned.
    fn bind(&mut self, kind: SocketKind, name: &[u8]) -> Result<(OwnedFd, String), Errno> {
        let socket = unix::socket(kind, true)?;
        self.serial += 1;
        let serial = self.serial.to_string();
        if self.dirs > PRIVATE_DIRS_MAX {
            self.remake()?;
        }
        match self.bind_in_tree(socket.as_fd(), name, &serial) {
            // A directory of an earlier name is in the way, or the tree has been emptied under us.
            Err(Errno::EADDRINUSE | Errno::ENOENT | Errno::EISDIR) if !self.lost => {
                self.remake()?;
                self.bind_in_tree(socket.as_fd(), name, &serial)?;
            }
            result => result?,
        }
        Ok((socket, serial))
    }

    fn bind_in_tree(&mut self, socket: BorrowedFd<'_>, name: &[u8], serial: &str) -> Result<(), Errno> {
        fchdir(&self.tree)?;
        let bound = chroot(".").and_then(|()| {
            match unix::bind(socket, name) {
                Err(Errno::ENOENT) => {
                    self.dirs += make_parents(name)?;
                    unix::bind(socket, name)?;
                }
                other => other?,
            }
            renameat(AT_FDCWD, OsStr::from_bytes(name), &self.home, serial)
        });
        let back = fchdir(&self.daemon_root).and_then(|()| chroot(".")).and_then(|()| fchdir(&self.home));
        self.lost |= back.is_err();
        bound.and(back)
    }

    fn remake(&mut self) -> Result<(), Errno> {
        // The working directory is home; a tree that is gone already is as good.
        let _ = fs::remove_dir_all("tree");
        self.dirs = 0;
        self.tree = make_tree(&self.home)?;
        Ok(())
    }
}

impl Drop for PrivateRoot {
    fn drop(&mut self) {
        self.forget();
        let _ = fs::remove_dir_all("tree");
        let _ = unlinkat(&self.base, self.number.as_str(), UnlinkatFlags::RemoveDir);
    }
}

fn make_tree(home: &OwnedFd) -> nix::Result<OwnedFd> {
    match mkdirat(home, "tree", Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => openat(home, "tree", DIRECTORY, Mode::empty()),
        Err(errno) => Err(errno),
    }
}

/// Makes every directory that `name` leads through, and says how many there were.
fn make_parents(name: &[u8]) -> Result<usize, Errno> {
    let mut made = 0;
    for (at, _) in name.iter().enumerate().skip(1).filter(|(_, b)| **b == b'/') {
        match mkdirat(AT_FDCWD, OsStr::from_bytes(&name[..at]), Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => made += 1,
            Err(errno) => return Err(errno),
        }
    }
    Ok(made)
}

fn connect_and_accept(local: BorrowedFd<'_>, kept: &Kept) -> Result<OwnedFd, Errno> {
    unix::connect(local, kept.serial.as_bytes())?;
    // Nobody else reaches this listener, so what it accepts is the socket just connected.
    unix::accept(kept.listener.as_fd())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Runs `test` on a thread of its own, as the root and working directory are the thread's.
    fn in_private(name: &str, test: impl FnOnce(&mut PrivateRoot) + Send) {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: chroot needs root");
            return;
        }
        let dir = std::env::temp_dir().join(format!("uds-private-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let base = open(&dir, DIRECTORY, Mode::empty()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| test(&mut PrivateRoot::enter(base.as_fd(), 1).unwrap()));
        });
        fs::remove_dir(&dir).expect("nothing is left behind");
    }

    fn joined(private: &mut PrivateRoot, kind: SocketKind, name: &[u8]) -> (OwnedFd, OwnedFd) {
        let local = unix::socket(kind, false).unwrap();
        let other = private.join(local.as_fd(), kind, name, None).unwrap();
        (local, other)
    }

    #[test]
    fn getpeername_shows_the_name_asked_for() {
        let long = [b'x'; unix::NAME_MAX];
        in_private("names", |private| {
            for name in [
                &b"/run/a/b.sock"[..],
                b"relative",
                b"../../up/and/down",
                b"//odd/./path/../x",
                // Each of these is a directory of the next, or the other way round.
                b"/a",
                b"/a/a",
                b"/a/a/a",
                b"/a/a",
                b"/a",
                &long,
            ] {
                for kind in [SocketKind::Stream, SocketKind::SeqPacket, SocketKind::Datagram] {
                    let (local, _other) = joined(private, kind, name);
                    assert_eq!(unix::peer_name_of(local.as_fd()).unwrap(), name, "{}", name.escape_ascii());
                }
            }
            assert!(fs::metadata("/proc/self").is_ok(), "back at the daemon's root");
        });
    }

    #[test]
    fn bytes_reach_the_other_end_and_no_other() {
        in_private("bytes", |private| {
            let mut pairs: Vec<_> = (0..20).map(|_| joined(private, SocketKind::Stream, b"/same")).collect();
            for (n, (local, other)) in pairs.iter_mut().enumerate() {
                let n = u8::try_from(n).unwrap();
                UnixStream::from(local.try_clone().unwrap()).write_all(&[n]).unwrap();
                let mut got = [0];
                UnixStream::from(other.try_clone().unwrap()).read_exact(&mut got).unwrap();
                assert_eq!(got, [n]);
            }
        });
    }

    #[test]
    fn a_directory_emptied_by_others_is_made_anew() {
        in_private("emptied", |private| {
            joined(private, SocketKind::Stream, b"/run/deep/x");
            for entry in fs::read_dir(".").unwrap() {
                let path = entry.unwrap().path();
                let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            }
            joined(private, SocketKind::Stream, b"/run/deep/x");
            joined(private, SocketKind::Stream, b"/run/deep/y");
        });
    }

    #[test]
    fn a_refused_join_leaves_the_callers_socket_untouched() {
        in_private("refused", |private| {
            let local = unix::socket(SocketKind::SeqPacket, false).unwrap();
            let wrong = private.join(local.as_fd(), SocketKind::Stream, b"/x", None);
            assert_eq!(wrong.unwrap_err(), Errno::EPROTOTYPE);
            private.join(local.as_fd(), SocketKind::SeqPacket, b"/x", None).unwrap();
        });
    }

    #[test]
    fn peercred_shows_the_far_listener_where_it_is_known() {
        in_private("shown", |private| {
            let local = unix::socket(SocketKind::Stream, false).unwrap();
            private.join(local.as_fd(), SocketKind::Stream, b"/x", Some((64_055, 107))).unwrap();
            let peer = crate::sys::peer::peer(local.as_fd()).unwrap();
            assert_eq!((peer.uid, peer.gid), (64_055, 107));
        });
    }
}
