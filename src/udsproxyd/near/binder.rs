//! The thread that binds listeners under the very names that were asked for.
//!
//! ```text
//!   DIR/uds.d/tree/     this thread's root while it binds: /run/x.sock becomes tree/run/x.sock
//!   DIR/uds.d/7         a listener, moved out of the tree; still named /run/x.sock for getpeername
//! ```
//!
//! A unix socket's name is what was given to bind; the inode may be anywhere. So a socket is bound inside a chroot under
//! the asked name, and renamed to a number by which the daemon reaches it. Nothing stays in the tree but directories, so
//! any name can follow any other.
//!
//! One thread for all, with a root and working directory of its own (CLONE_FS), which calls nobody and starts no thread:
//! a thread started by one that is in a chroot would be in it too.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, JoinHandle};

use nix::fcntl::{AT_FDCWD, OFlag, open, openat, renameat};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, chroot, fchdir, unlinkat};
use tracing::debug;

use crate::errno::{Errno, OsResult, Step};
use crate::limits::{ASK_STACK_BYTES, PRIVATE_DIRS_MAX};
use crate::sys::thread_identity::{Identity, ThreadIdentity};
use crate::sys::unix::{self, SocketKind};
use crate::udsproxyd::wire::Listener;

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// What a listener looks like to the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Face {
    pub(super) kind: SocketKind,
    pub(super) name: Vec<u8>,
    /// Whom SO_PEERCRED shows, if not the daemon.
    pub(super) shown: Option<Listener>,
}

/// A bound, non-blocking socket and its name in the private directory. A stream or seqpacket one listens.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) socket: OwnedFd,
    pub(super) number: String,
}

struct Job {
    face: Face,
    socket: OwnedFd,
    done: SyncSender<Result<Bound, Errno>>,
}

#[derive(Debug)]
pub(super) struct Binder {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Binder {
    /// `dir` is empty, ours, and nobody else's.
    pub(super) fn start(dir: &Path) -> OsResult<Self> {
        let home = open(dir, DIRECTORY, Mode::empty()).step_on("open", dir.display())?;
        let (jobs, queue) = channel();
        let (ready, is_ready) = sync_channel(1);
        let body = move || match Room::enter(home) {
            Ok(room) => {
                // The starter waits for this word.
                let _ = ready.send(Ok(()));
                room.serve(&queue);
            }
            Err(e) => drop(ready.send(Err(e))),
        };
        let named = thread::Builder::new().name("uds-bind".into()).stack_size(ASK_STACK_BYTES);
        let thread = named.spawn(body).step("start a thread")?;
        is_ready.recv().expect("the thread says how it went")?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Binds `socket`, which is of the face's kind.
    pub(super) fn bind(&self, face: Face, socket: OwnedFd) -> Result<Bound, Errno> {
        let (done, comes) = sync_channel(1);
        let jobs = self.jobs.as_ref().expect("open until dropped");
        jobs.send(Job { face, socket, done }).expect("the binder ends after its askers");
        comes.recv().expect("the binder answers every job")
    }
}

impl Drop for Binder {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            thread.join().expect("a panic ends the process");
        }
    }
}

/// What the thread owns.
struct Room {
    home: OwnedFd,
    tree: OwnedFd,
    daemon_root: OwnedFd,
    identity: ThreadIdentity,
    /// The last number given.
    number: u64,
    /// Directories in the tree.
    dirs: usize,
}

impl Room {
    fn enter(home: OwnedFd) -> OsResult<Self> {
        unshare(CloneFlags::CLONE_FS).step("unshare(CLONE_FS)")?;
        let daemon_root = open("/", DIRECTORY, Mode::empty()).step_on("open", "/")?;
        fchdir(&home).step("fchdir")?;
        let tree = make_tree(&home).step("make a private tree")?;
        let identity = ThreadIdentity::of_this_thread().step("read this thread's identity")?;
        Ok(Self { home, tree, daemon_root, identity, number: 0, dirs: 0 })
    }

    fn serve(mut self, queue: &Receiver<Job>) {
        while let Ok(Job { face, socket, done }) = queue.recv() {
            // An asker waits until it is answered.
            let _ = done.send(self.bind(&face, socket));
        }
    }

    fn bind(&mut self, face: &Face, socket: OwnedFd) -> Result<Bound, Errno> {
        self.number += 1;
        let number = self.number.to_string();
        if self.dirs > PRIVATE_DIRS_MAX {
            self.remake()?;
        }
        match self.bind_in_tree(socket.as_fd(), &face.name, &number) {
            // A directory of an earlier name is in the way, or the tree has been emptied under us.
            Err(Errno::EADDRINUSE | Errno::ENOENT | Errno::EISDIR) => {
                self.remake()?;
                self.bind_in_tree(socket.as_fd(), &face.name, &number)?;
            }
            result => result?,
        }
        if let Err(errno) = self.listen(socket.as_fd(), face) {
            let _ = unlinkat(&self.home, number.as_str(), UnlinkatFlags::NoRemoveDir);
            return Err(errno);
        }
        Ok(Bound { socket, number })
    }

    fn bind_in_tree(&mut self, socket: BorrowedFd<'_>, name: &[u8], number: &str) -> Result<(), Errno> {
        fchdir(&self.tree)?;
        let bound = chroot(".").and_then(|()| {
            match unix::bind(socket, name) {
                Err(Errno::ENOENT) => {
                    self.dirs += make_parents(name)?;
                    unix::bind(socket, name)?;
                }
                other => other?,
            }
            renameat(AT_FDCWD, OsStr::from_bytes(name), &self.home, number)
        });
        let back = fchdir(&self.daemon_root).and_then(|()| chroot(".")).and_then(|()| fchdir(&self.home));
        back.expect("a thread that could enter a chroot can leave it");
        bound
    }

    fn listen(&self, socket: BorrowedFd<'_>, face: &Face) -> Result<(), Errno> {
        if face.kind == SocketKind::Datagram {
            return Ok(());
        }
        listen_as(&self.identity, face.shown, || unix::listen(socket, 1))
    }

    fn remake(&mut self) -> Result<(), Errno> {
        // The working directory is home; a tree that is gone already is as good.
        let _ = fs::remove_dir_all("tree");
        self.dirs = 0;
        self.tree = make_tree(&self.home)?;
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // What stays is removed with the whole directory, at the latest by the next daemon.
        let _ = fs::remove_dir_all("tree");
    }
}

/// SO_PEERCRED shows a caller who has called listen: `shown`, or the daemon.
pub(super) fn listen_as(
    thread: &ThreadIdentity,
    shown: Option<Listener>,
    listen: impl Fn() -> Result<(), Errno>,
) -> Result<(), Errno> {
    let Some(Listener { uid, gid }) = shown else { return listen() };
    let who = Identity { uid, gid, groups: Vec::new() };
    let outcome = thread.act_as(&who, &listen);
    assert!(outcome.restored, "a thread that could assume an identity can return to its own");
    outcome.result.unwrap_or_else(|errno| {
        // A uid that this daemon's user namespace does not know: it shows itself.
        debug!(uid, gid, %errno, "SO_PEERCRED will not show the far listener");
        listen()
    })
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
