//! The inodes that the near kernel remembers, and how to reach each again.
//!
//! ```text
//!   node id ──▶ Node ──▶ live fd?  use it
//!                   └──▶ Handle:   open_by_handle_at on its mount          (ext4, xfs, tmpfs, ...)
//!                   └──▶ Place:    the parent's fd, the name, the same inode?   (overlayfs, proc, ...)
//! ```
//!
//! A node id is good until the kernel forgot it as often as it was told of it; it is never used again. What the kernel
//! names and is not here is ESTALE. The near side names node ids only: it never sees a handle and never sends a path.
//! A directory that the *host* moves out of the export stays reachable through its node until it is forgotten, as with
//! any file server that goes by handles.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::fdcache::{FdCache, NodeFd};
use super::pins::Pins;
use crate::limits::{MOUNTS_CROSSED_MAX, NODES_MAX};
use crate::qtfs::abi::ROOT;
use crate::sys::file::{self, Stat, reopen};
use crate::sys::handle::FileHandle;
use crate::sys::mountinfo;

/// How far up a walk goes before it gives up: deeper than PATH_MAX allows a path to be. It also ends a circle of
/// places, which renames on the host can leave behind.
const WALK_MAX: usize = 2048;
const O_NODE: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// One file system as mounted: two mounts of one are two, so that a directory never appears in two places.
#[derive(Debug)]
pub(super) struct Fs {
    /// A real fd on it, for open_by_handle_at; none where handles don't work.
    handles: Option<OwnedFd>,
    /// The device as the kernel's own tables name it, which stat(2) hides on some file systems.
    pub(super) device: (u32, u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    mount: u64,
    dev: (u32, u32),
    ino: u64,
}

impl Key {
    fn of(stat: &Stat) -> Self {
        Self { mount: stat.mount_id, dev: stat.dev(), ino: stat.ino }
    }
}

#[derive(Debug)]
enum Reach {
    /// The root: its fd stays open.
    Open(Arc<NodeFd>),
    Handle(FileHandle),
    Place(Mutex<Place>),
}

#[derive(Debug, Clone)]
struct Place {
    parent: u64,
    name: CString,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: u64,
    /// S_IFMT of the inode, which never changes.
    pub(super) kind: u32,
    /// The inode number that programs see.
    pub(super) ino: u64,
    pub(super) fs: Arc<Fs>,
    key: Key,
    reach: Reach,
    fd: Mutex<Weak<NodeFd>>,
}

#[derive(Debug)]
struct Known {
    node: Arc<Node>,
    /// How often the kernel was told of it.
    lookups: u64,
}

#[derive(Debug)]
struct State {
    by_id: HashMap<u64, Known>,
    by_key: HashMap<Key, u64>,
    next: u64,
}

#[derive(Debug)]
pub(super) struct Nodes {
    pub(super) root: Arc<Node>,
    state: Mutex<State>,
    crossed: Mutex<HashMap<u64, Arc<Fs>>>,
    cache: FdCache,
    pins: Pins,
}

impl Nodes {
    /// `base`: the first number for ids. `fds`: how many inodes' fds to keep for speed.
    pub(super) fn new(root: OwnedFd, base: u64, fds: usize) -> nix::Result<Self> {
        let stat = file::stat(root.as_fd())?;
        let fs = Arc::new(probe(root.as_fd(), &stat));
        let fd = NodeFd::new(root);
        let root = Arc::new(Node {
            id: ROOT,
            kind: stat.kind(),
            ino: stat.ino,
            fs: fs.clone(),
            key: Key::of(&stat),
            fd: Mutex::new(Arc::downgrade(&fd)),
            reach: Reach::Open(fd),
        });
        Ok(Self {
            root,
            state: Mutex::new(State {
                by_id: HashMap::new(),
                by_key: HashMap::new(),
                // 0 is no node and 1 the root.
                next: base + 2,
            }),
            crossed: Mutex::new(HashMap::from([(stat.mount_id, fs)])),
            cache: FdCache::new(fds),
            pins: Pins::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("never poisoned: panics abort")
    }

    pub(super) fn get(&self, id: u64) -> nix::Result<Arc<Node>> {
        if id == ROOT {
            return Ok(self.root.clone());
        }
        self.state().by_id.get(&id).map(|k| k.node.clone()).ok_or(Errno::ESTALE)
    }

    /// An open file of this node is about to be passed. Does nothing that could wait for a file system.
    pub(super) fn pin(&self, id: u64) {
        if let Ok(node) = self.get(id) {
            let fd = live(&node);
            self.pins.add(node, fd);
        }
    }

    /// As `get`, also of one that was pinned and is forgotten.
    pub(super) fn passed(&self, id: u64) -> nix::Result<Arc<Node>> {
        self.get(id).or_else(|errno| self.pins.find(id).ok_or(errno))
    }

    /// With every frame, of which there is one in two seconds at least.
    pub(super) fn unpin(&self) {
        self.pins.expire();
    }

    /// An O_PATH fd of the inode.
    pub(super) fn fd(&self, node: &Node) -> nix::Result<Arc<NodeFd>> {
        if let Some(fd) = live(node) {
            return Ok(fd);
        }
        match &node.reach {
            Reach::Open(fd) => Ok(fd.clone()),
            Reach::Handle(handle) => {
                let mount = node.fs.handles.as_ref().expect("a node has a handle where its file system has them");
                let opened = self.spare(|| handle.open(mount.as_fd(), (OFlag::O_PATH | OFlag::O_NOFOLLOW).bits()))?;
                Ok(self.adopt(node, opened))
            }
            Reach::Place(_) => self.walk(node),
        }
    }

    /// Up to the nearest open directory, then down again, each step checked.
    fn walk(&self, node: &Node) -> nix::Result<Arc<NodeFd>> {
        let mut steps: Vec<(Arc<Node>, CString)> = Vec::new();
        let place_of = |n: &Node| match &n.reach {
            Reach::Place(place) => Some(place.lock().expect("never poisoned: panics abort").clone()),
            Reach::Open(_) | Reach::Handle(_) => None,
        };
        let Some(Place { mut parent, name }) = place_of(node) else { return self.fd(node) };
        let last = name;
        let mut at = loop {
            let above = self.get(parent)?;
            if let Some(fd) = live(&above) {
                break fd;
            }
            match place_of(&above) {
                None => break self.fd(&above)?,
                Some(_) if steps.len() == WALK_MAX => return Err(Errno::ESTALE),
                Some(place) => {
                    parent = place.parent;
                    steps.push((above, place.name));
                }
            }
        };
        while let Some((above, name)) = steps.pop() {
            at = self.step_down(&at, &above, &name)?;
        }
        self.step_down(&at, node, &last)
    }

    fn step_down(&self, parent: &NodeFd, node: &Node, name: &CStr) -> nix::Result<Arc<NodeFd>> {
        let opened = match self.spare(|| openat(parent, name, O_NODE, Mode::empty())) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Err(Errno::ESTALE),
            other => other?,
        };
        let stat = file::stat(opened.as_fd())?;
        // No birth time: overlayfs answers another one after a copy-up.
        if stat.kind() != node.kind || Key::of(&stat) != node.key {
            return Err(Errno::ESTALE);
        }
        Ok(self.adopt(node, opened))
    }

    fn adopt(&self, node: &Node, fd: OwnedFd) -> Arc<NodeFd> {
        let fd = NodeFd::new(fd);
        *node.fd.lock().expect("never poisoned: panics abort") = Arc::downgrade(&fd);
        self.cache.keep(fd.clone());
        fd
    }

    /// Does `open`; when the process is out of fds, closes what is only kept for speed and tries once more.
    pub(super) fn spare<T>(&self, open: impl Fn() -> nix::Result<T>) -> nix::Result<T> {
        match open() {
            Err(Errno::EMFILE | Errno::ENFILE) => {
                self.cache.shed();
                open()
            }
            other => other,
        }
    }

    /// Opens `name` in `parent`, which is one step: no `..`, no link followed.
    pub(super) fn child(&self, parent: &NodeFd, name: &CStr) -> nix::Result<OwnedFd> {
        self.spare(|| openat(parent, name, O_NODE, Mode::empty()))
    }

    /// The node of an inode that is about to be told to the kernel; counts as one lookup.
    pub(super) fn intern(&self, fd: OwnedFd, parent: u64, name: &CStr) -> nix::Result<(Arc<Node>, Stat)> {
        let stat = file::stat(fd.as_fd())?;
        let fs = self.file_system(&stat, fd.as_fd())?;
        let handle = if fs.handles.is_some() { FileHandle::of(fd.as_fd()).ok() } else { None };
        let node = self.known_or_new(&stat, fs, handle, Place { parent, name: name.into() })?;
        if live(&node).is_none() {
            self.adopt(&node, fd);
        }
        Ok((node, stat))
    }

    fn known_or_new(
        &self,
        stat: &Stat,
        fs: Arc<Fs>,
        handle: Option<FileHandle>,
        place: Place,
    ) -> nix::Result<Arc<Node>> {
        let key = Key::of(stat);
        let mut state = self.state();
        let State { by_id, by_key, next } = &mut *state;
        if let Some(known) = by_key.get(&key).and_then(|id| by_id.get_mut(id)) {
            let same = match (&known.node.reach, &handle) {
                (Reach::Handle(old), Some(new)) => old == new,
                (Reach::Place(_), None) => known.node.kind == stat.kind(),
                _ => false,
            };
            if same {
                known.lookups += 1;
                if let Reach::Place(old) = &known.node.reach {
                    *old.lock().expect("never poisoned: panics abort") = place;
                }
                return Ok(known.node.clone());
            }
        }
        if by_id.len() >= NODES_MAX {
            return Err(Errno::ENOMEM);
        }
        let id = *next;
        *next += 1;
        let reach = handle.map_or_else(|| Reach::Place(Mutex::new(place)), Reach::Handle);
        let ino = shown_ino(&self.root.key, &key);
        let node = Arc::new(Node { id, kind: stat.kind(), ino, fs, key, reach, fd: Mutex::new(Weak::new()) });
        by_id.insert(id, Known { node: node.clone(), lookups: 1 });
        // An older inode of this number keeps its id, and is not found by number any more.
        by_key.insert(key, id);
        Ok(node)
    }

    fn file_system(&self, stat: &Stat, fd: BorrowedFd<'_>) -> nix::Result<Arc<Fs>> {
        let mut crossed = self.crossed.lock().expect("never poisoned: panics abort");
        if let Some(fs) = crossed.get(&stat.mount_id) {
            return Ok(fs.clone());
        }
        if crossed.len() >= MOUNTS_CROSSED_MAX {
            return Err(Errno::ENFILE);
        }
        let fs = Arc::new(probe(fd, stat));
        crossed.insert(stat.mount_id, fs.clone());
        Ok(fs)
    }

    /// The kernel forgets `count` of the times it was told.
    pub(super) fn forget(&self, id: u64, count: u64) {
        let mut state = self.state();
        let State { by_id, by_key, .. } = &mut *state;
        let Some(known) = by_id.get_mut(&id) else { return };
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups > 0 {
            return;
        }
        let Some(gone) = by_id.remove(&id) else { return };
        if by_key.get(&gone.node.key) == Some(&id) {
            by_key.remove(&gone.node.key);
        }
        // Its fd may close now; not under the lock.
        drop(state);
        drop(gone);
    }

    /// The kernel was told of the node once more, by the near side.
    pub(super) fn retain(&self, id: u64) {
        if let Some(known) = self.state().by_id.get_mut(&id) {
            known.lookups = known.lookups.saturating_add(1);
        }
    }

    /// After a rename through this link: what is now at (`parent`, `name`) is found there.
    pub(super) fn moved(&self, parent: &Arc<Node>, parent_fd: &NodeFd, name: &CStr) {
        if parent.fs.handles.is_some() {
            return;
        }
        let Ok(stat) = self.child(parent_fd, name).and_then(|fd| file::stat(fd.as_fd())) else { return };
        let state = self.state();
        let Some(known) = state.by_key.get(&Key::of(&stat)).and_then(|id| state.by_id.get(id)) else { return };
        if let Reach::Place(place) = &known.node.reach {
            *place.lock().expect("never poisoned: panics abort") = Place { parent: parent.id, name: name.into() };
        }
    }
}

fn live(node: &Node) -> Option<Arc<NodeFd>> {
    let fd = node.fd.lock().expect("never poisoned: panics abort").upgrade()?;
    fd.touch();
    Some(fd)
}

/// One mount on the near side has one device number, so inodes of another device get numbers of their own.
fn shown_ino(root: &Key, key: &Key) -> u64 {
    if key.dev == root.dev {
        return key.ino;
    }
    let device = u64::from(key.dev.0) << 20 | u64::from(key.dev.1);
    key.ino ^ device.wrapping_mul(0x9e37_79b9_7f4a_7c15) << 32
}

/// Tries file handles on the mount that `fd` is on, by using one.
fn probe(fd: BorrowedFd<'_>, stat: &Stat) -> Fs {
    let device = mounted_device(stat.mount_id).unwrap_or_else(|| stat.dev());
    let handles = match stat.kind() {
        libc::S_IFDIR => reopen(fd, OFlag::O_RDONLY | OFlag::O_DIRECTORY).ok(),
        libc::S_IFREG => reopen(fd, OFlag::O_RDONLY | OFlag::O_NONBLOCK).ok(),
        _ => None,
    };
    let works = |mount: &OwnedFd| {
        FileHandle::of(fd)
            .and_then(|h| h.open(mount.as_fd(), libc::O_PATH))
            .is_ok_and(|back| file::stat(back.as_fd()).is_ok_and(|s| Key::of(&s) == Key::of(stat)))
    };
    Fs { handles: handles.filter(works), device }
}

fn mounted_device(mount_id: u64) -> Option<(u32, u32)> {
    Some(mountinfo::find(&std::fs::read("/proc/self/mountinfo").ok()?, mount_id)?.device)
}
