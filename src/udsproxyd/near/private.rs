//! Private listeners: where a caller's own socket gets its other end.
//!
//! ```text
//!   join(caller's socket, name) ──▶ a kept listener of that name, or a new one from the binder
//!                                     connect, by its number ──▶ accept ──▶ kept again
//! ```
//!
//! While a thread uses a listener, nobody else has it; so what it accepts is the socket that it has just connected. A few
//! are kept for a while: the next ask of the same name needs a connect and an accept alone.
//!
//! A datagram socket has one peer for all: it is bound for one caller, and is the other end itself (`outlets`).

use std::fs::Permissions;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::Mode;
use tracing::warn;

use super::binder::{Binder, Bound, Face};
use crate::errno::{Errno, OsError, OsResult, errno_of};
use crate::limits::{ASK_IDLE_MS, KEPT_LISTENERS_MAX};
use crate::sys::unix::{self, NAME_MAX, SocketKind};
use crate::udsproxyd::wire::Listener;

/// Digits of a listener's number, and the '/' before them.
const NUMBER_LEN_MAX: usize = 21;

#[derive(Debug)]
pub(super) struct Private {
    dir: PathBuf,
    binder: Binder,
    /// The most recently used last.
    kept: Mutex<Vec<Kept>>,
}

#[derive(Debug)]
struct Kept {
    face: Face,
    bound: Bound,
    used: Instant,
}

impl Private {
    /// `dir` is empty, ours, and nobody else's.
    pub(super) fn start(dir: &Path) -> OsResult<Self> {
        if dir.as_os_str().len() + NUMBER_LEN_MAX > NAME_MAX {
            return Err(OsError::on("listen in", dir.display(), Errno::ENAMETOOLONG));
        }
        Ok(Self { dir: dir.to_owned(), binder: Binder::start(dir)?, kept: Mutex::default() })
    }

    /// Connects `local`, the caller's own socket, to a listener of this name, and returns the other end. `shown` is who
    /// SO_PEERCRED shows the caller, if not this daemon.
    ///
    /// # Errors
    /// The kernel's, and then `local` was not touched; or ECONNRESET, and then it was.
    pub(super) fn join(
        &self,
        local: BorrowedFd<'_>,
        kind: SocketKind,
        name: &[u8],
        shown: Option<Listener>,
    ) -> Result<OwnedFd, Errno> {
        let face = Face { kind, name: name.to_vec(), shown };
        if let Some(bound) = self.take(&face) {
            match unix::connect(local, &self.path(&bound)) {
                // Somebody has emptied our directory: a new listener helps.
                Err(Errno::ENOENT | Errno::ECONNREFUSED) => self.discard(&bound),
                result => return self.accept(face, bound, result),
            }
        }
        let bound = self.binder.bind(face.clone(), unix::socket(kind, true)?)?;
        let result = unix::connect(local, &self.path(&bound));
        self.accept(face, bound, result)
    }

    /// The other end of the connect that had this result. The listener is kept unless a connection may still be in it,
    /// which would be handed to the wrong caller.
    fn accept(&self, face: Face, bound: Bound, connected: Result<(), Errno>) -> Result<OwnedFd, Errno> {
        let accepted = connected.map(|()| unix::accept(bound.socket.as_fd()));
        match accepted {
            Ok(Err(errno)) => {
                self.discard(&bound);
                // The caller's socket is connected, to nothing: that is no errno of an untouched one.
                warn!(%errno, "a connection could not be accepted");
                Err(Errno::ECONNRESET)
            }
            Ok(Ok(other)) => {
                self.keep(face, bound);
                Ok(other)
            }
            Err(errno) => {
                self.keep(face, bound);
                Err(errno)
            }
        }
    }

    /// Binds a datagram socket under this name, and returns its inode (O_PATH), by which alone it is reached: its path is
    /// gone. Whoever is given that inode may send to it.
    pub(super) fn bind_datagram(&self, socket: OwnedFd, name: &[u8]) -> Result<(OwnedFd, OwnedFd), Errno> {
        let face = Face { kind: SocketKind::Datagram, name: name.to_vec(), shown: None };
        let bound = self.binder.bind(face, socket)?;
        let path = self.dir.join(&bound.number);
        let inode = open(&path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
        let everybody = Permissions::from_mode(0o666);
        let inode = inode.and_then(|fd| match std::fs::set_permissions(&path, everybody) {
            Ok(()) => Ok(fd),
            Err(e) => Err(errno_of(&e)),
        });
        self.discard(&bound);
        let inode = inode?;
        fcntl(&bound.socket, FcntlArg::F_SETFL(OFlag::empty()))?;
        Ok((bound.socket, inode))
    }

    /// Closes the listeners that nobody has used for a while.
    pub(super) fn forget(&self) {
        let old = Duration::from_millis(ASK_IDLE_MS);
        let forgotten: Vec<Kept> = self.kept().extract_if(.., |kept| kept.used.elapsed() >= old).collect();
        for kept in forgotten {
            self.discard(&kept.bound);
        }
    }

    fn take(&self, face: &Face) -> Option<Bound> {
        let mut kept = self.kept();
        let at = kept.iter().rposition(|kept| kept.face == *face)?;
        Some(kept.remove(at).bound)
    }

    fn keep(&self, face: Face, bound: Bound) {
        let mut kept = self.kept();
        kept.push(Kept { face, bound, used: Instant::now() });
        let oldest = (kept.len() > KEPT_LISTENERS_MAX).then(|| kept.remove(0));
        drop(kept);
        if let Some(oldest) = oldest {
            self.discard(&oldest.bound);
        }
    }

    fn discard(&self, bound: &Bound) {
        // ENOENT: somebody has emptied our directory, which is as good.
        let _ = std::fs::remove_file(self.dir.join(&bound.number));
    }

    fn path(&self, bound: &Bound) -> Vec<u8> {
        self.dir.join(&bound.number).into_os_string().into_encoded_bytes()
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().expect("a panic ends the process")
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        for kept in std::mem::take(&mut *self.kept()) {
            self.discard(&kept.bound);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn in_private(name: &str, test: impl FnOnce(&Private, &Path)) {
        if !nix::unistd::geteuid().is_root() {
            crate::skip::skip("chroot needs root");
            return;
        }
        let dir = std::env::temp_dir().join(format!("uds-private-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let private = Private::start(&dir).unwrap();
        test(&private, &dir);
        drop(private);
        fs::remove_dir(&dir).expect("nothing is left behind");
    }

    fn joined(private: &Private, kind: SocketKind, name: &[u8]) -> (OwnedFd, OwnedFd) {
        let local = unix::socket(kind, false).unwrap();
        if kind == SocketKind::Datagram {
            let (other, inode) = private.bind_datagram(unix::socket(kind, true).unwrap(), name).unwrap();
            unix::connect_to_inode(local.as_fd(), inode.as_fd()).unwrap();
            return (local, other);
        }
        let other = private.join(local.as_fd(), kind, name, None).unwrap();
        (local, other)
    }

    #[test]
    fn getpeername_shows_the_name_asked_for() {
        let long = [b'x'; unix::NAME_MAX];
        in_private("names", |private, _| {
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
        });
    }

    #[test]
    fn bytes_reach_the_other_end_and_no_other() {
        in_private("bytes", |private, _| {
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
        in_private("emptied", |private, dir| {
            joined(private, SocketKind::Stream, b"/run/deep/x");
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            }
            joined(private, SocketKind::Stream, b"/run/deep/x");
            joined(private, SocketKind::Stream, b"/run/deep/y");
        });
    }

    #[test]
    fn a_refused_join_leaves_the_callers_socket_untouched() {
        in_private("refused", |private, _| {
            let local = unix::socket(SocketKind::SeqPacket, false).unwrap();
            let wrong = private.join(local.as_fd(), SocketKind::Stream, b"/x", None);
            assert_eq!(wrong.unwrap_err(), Errno::EPROTOTYPE);
            private.join(local.as_fd(), SocketKind::SeqPacket, b"/x", None).unwrap();
        });
    }

    #[test]
    fn peercred_shows_the_far_listener_where_it_is_known() {
        in_private("shown", |private, _| {
            let local = unix::socket(SocketKind::Stream, false).unwrap();
            let shown = Listener { uid: 64_055, gid: 107 };
            private.join(local.as_fd(), SocketKind::Stream, b"/x", Some(shown)).unwrap();
            let peer = crate::sys::peer::peer(local.as_fd()).unwrap();
            assert_eq!((peer.uid, peer.gid), (64_055, 107));
        });
    }
}
