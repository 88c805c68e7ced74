//! The inodes that the near kernel remembers, and how to reach each again.
//!
//! ```text
//!   node id ──▶ Node ──▶ live fd?  use it
//!                   └──▶ Handle:   open_by_handle_at on its mount (`mounts`) (ext4, xfs, tmpfs, ...)
//!                   └──▶ Place:    the parent's fd, the name, the same inode?   (overlayfs, proc, ...)
//! ```
//!
//! A node id is good until the kernel forgot it as often as it was told of it; it is never used again. What the kernel
//! names and is not here is ESTALE. The near side names node ids only: it never sees a handle and never sends a path.
//! A directory that the *host* moves out of the export stays reachable through its node until it is forgotten, as with
//! any file server that goes by handles.
//!
//! An fd that nobody uses is closed within seconds (`fdcache`), and that of a forgotten node at once: it would keep a
//! deleted file's space, and its file system mounted. What is open has an fd of its own and stays as it is.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::fdcache::{FdCache, NodeFd, Slot, Use};
use super::mounts::{Fs, Mounts};
use super::pins::Pins;
use super::places::{Place, PlaceOf};
use super::sweeper::Bell;
use crate::limits::{MOUNTS_CROSSED_MAX, NODES_MAX};
use crate::qtfs::abi::ROOT;
use crate::sys::file::{self, Stat};
use crate::sys::handle::FileHandle;

/// How far up a walk goes before it gives up: deeper than PATH_MAX allows a path to be. It also ends a circle of
/// places, which renames on the host can leave behind.
const WALK_MAX: usize = 2048;
const O_NODE: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// An inode as it is reached: where a mount id is never used again, the same key is the same inode or its successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    mount: u64,
    dev: (u32, u32),
    ino: u64,
}

impl Key {
    /// Of what `file::stat_on_mount` gave.
    pub(super) fn of(stat: &Stat) -> Self {
        Self { mount: stat.mount_id, dev: stat.dev(), ino: stat.ino }
    }
}

#[derive(Debug)]
enum Reach {
    /// The root: its fd stays open.
    Open(Arc<NodeFd>),
    Handle(FileHandle),
    Place(PlaceOf),
}

/// How an inode is sought.
#[derive(Debug, Clone, Copy)]
struct Search {
    how: Use,
    /// So many mounts up are left: mounts that were moved below each other must not make a circle.
    mounts_left: usize,
}

impl Search {
    fn new(how: Use) -> Self {
        Self { how, mounts_left: MOUNTS_CROSSED_MAX }
    }

    fn above(self) -> nix::Result<Self> {
        let mounts_left = self.mounts_left.checked_sub(1).ok_or(Errno::ESTALE)?;
        Ok(Self { mounts_left, ..self })
    }
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
    fd: Slot,
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
    mounts: Mounts,
    cache: FdCache,
    pins: Pins,
    pub(super) bell: Bell,
}

impl Nodes {
    /// `base`: the first number for ids. `fds`: how many inodes' fds to keep for speed.
    pub(super) fn new(root: OwnedFd, base: u64, fds: usize) -> nix::Result<Self> {
        let stat = file::stat_on_mount(root.as_fd())?;
        let (mounts, fs) = Mounts::new(root.as_fd(), &stat);
        let fd = NodeFd::new(root);
        let slot = Slot::default();
        slot.fill(&fd);
        let (kind, key) = (stat.kind(), Key::of(&stat));
        let root = Arc::new(Node { id: ROOT, kind, ino: stat.ino, fs, key, fd: slot, reach: Reach::Open(fd) });
        // 0 is no node and 1 the root.
        let state = State { by_id: HashMap::new(), by_key: HashMap::new(), next: base + 2 };
        Ok(Self {
            root,
            state: Mutex::new(state),
            mounts,
            cache: FdCache::new(fds),
            pins: Pins::default(),
            bell: Bell::default(),
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
            let fd = node.fd.live(Use::Lasting);
            self.pins.add(node, fd);
        }
    }

    /// As `get`, also of one that was pinned and is forgotten.
    pub(super) fn passed(&self, id: u64) -> nix::Result<Arc<Node>> {
        self.get(id).or_else(|errno| self.pins.find(id).ok_or(errno))
    }

    /// Closes what nobody uses; `tick`: also what was not used since the tick before.
    pub(super) fn sweep(&self, tick: bool) {
        self.cache.sweep(tick);
        if tick {
            self.mounts.sweep();
            self.pins.expire();
        }
    }

    /// An O_PATH fd of the inode.
    pub(super) fn fd(&self, node: &Node) -> nix::Result<Arc<NodeFd>> {
        self.reach(node, Search::new(Use::Lasting))
    }

    /// The same for a moment, after which nothing is open that was not before.
    pub(super) fn glance(&self, node: &Node) -> nix::Result<Arc<NodeFd>> {
        self.reach(node, Search::new(Use::Glance))
    }

    fn reach(&self, node: &Node, search: Search) -> nix::Result<Arc<NodeFd>> {
        if let Some(fd) = node.fd.live(search.how) {
            return Ok(fd);
        }
        match &node.reach {
            Reach::Open(fd) => Ok(fd.clone()),
            Reach::Handle(handle) => {
                let mount = self.mount(&node.fs, search)?;
                let opened = self.spare(|| handle.open(mount.as_fd(), (OFlag::O_PATH | OFlag::O_NOFOLLOW).bits()))?;
                Ok(self.adopt(node, opened, search.how))
            }
            Reach::Place(place) => self.walk(node, place.get(), search),
        }
    }

    /// A real fd on a file system below the export, which is found by its root again.
    fn mount(&self, fs: &Fs, search: Search) -> nix::Result<Arc<NodeFd>> {
        if let Some(fd) = fs.fd().live(search.how) {
            return Ok(fd);
        }
        let place = fs.place().expect("the export's own file system stays open");
        let parent = self.reach(&*self.get(place.parent)?, search.above()?)?;
        let root = match self.child(&parent, &place.name) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Err(Errno::ESTALE),
            other => other?,
        };
        self.spare(|| self.mounts.reopen(fs, root.as_fd(), search.how))
    }

    /// Up to the nearest open directory, then down again, each step checked.
    fn walk(&self, node: &Node, place: Place, search: Search) -> nix::Result<Arc<NodeFd>> {
        let mut steps: Vec<(Arc<Node>, CString)> = Vec::new();
        let Place { mut parent, name: last } = place;
        let mut at = loop {
            let above = self.get(parent)?;
            if let Some(fd) = above.fd.live(search.how) {
                break fd;
            }
            match &above.reach {
                Reach::Open(_) | Reach::Handle(_) => break self.reach(&above, search.above()?)?,
                Reach::Place(_) if steps.len() == WALK_MAX => return Err(Errno::ESTALE),
                Reach::Place(place) => {
                    let place = place.get();
                    parent = place.parent;
                    steps.push((above, place.name));
                }
            }
        };
        while let Some((above, name)) = steps.pop() {
            at = self.step_down(&at, &above, &name, search.how)?;
        }
        self.step_down(&at, node, &last, search.how)
    }

    fn step_down(&self, parent: &NodeFd, node: &Node, name: &CStr, how: Use) -> nix::Result<Arc<NodeFd>> {
        let opened = match self.child(parent, name) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Err(Errno::ESTALE),
            other => other?,
        };
        let stat = file::stat_on_mount(opened.as_fd())?;
        // No birth time: overlayfs answers another one after a copy-up.
        if stat.kind() != node.kind || Key::of(&stat) != node.key {
            return Err(Errno::ESTALE);
        }
        Ok(self.adopt(node, opened, how))
    }

    fn adopt(&self, node: &Node, fd: OwnedFd, how: Use) -> Arc<NodeFd> {
        let fd = NodeFd::new(fd);
        if how == Use::Lasting {
            node.fd.fill(&fd);
            self.cache.keep(fd.clone());
        }
        fd
    }

    /// Does `open`; when the process is out of fds, closes what is only kept for speed and tries once more.
    pub(super) fn spare<T>(&self, open: impl Fn() -> nix::Result<T>) -> nix::Result<T> {
        match open() {
            Err(Errno::EMFILE | Errno::ENFILE) => {
                self.cache.shed();
                self.mounts.shed();
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
    pub(super) fn intern(&self, fd: OwnedFd, parent: &Node, name: &CStr) -> nix::Result<(Arc<Node>, Stat)> {
        let stat = file::stat_on_mount(fd.as_fd())?;
        let fs = match stat.mount_id == parent.key.mount {
            true => parent.fs.clone(),
            false => self.spare(|| self.mounts.enter(&stat, fd.as_fd(), parent.id, name))?,
        };
        let handle = if fs.handles { FileHandle::of(fd.as_fd()).ok() } else { None };
        let node = self.known_or_new(&stat, fs, handle, parent.id, name)?;
        if node.fd.live(Use::Lasting).is_none() {
            self.adopt(&node, fd, Use::Lasting);
        }
        Ok((node, stat))
    }

    fn known_or_new(
        &self,
        stat: &Stat,
        fs: Arc<Fs>,
        handle: Option<FileHandle>,
        parent: u64,
        name: &CStr,
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
            if same && Arc::ptr_eq(&known.node.fs, &fs) {
                known.lookups += 1;
                if let Reach::Place(place) = &known.node.reach {
                    place.set(parent, name);
                }
                return Ok(known.node.clone());
            }
        }
        if by_id.len() >= NODES_MAX {
            return Err(Errno::ENOMEM);
        }
        let id = *next;
        *next += 1;
        let place = || Reach::Place(PlaceOf::new(parent, name));
        let reach = handle.map_or_else(place, Reach::Handle);
        let ino = shown_ino(&self.root.key, &key);
        let node = Arc::new(Node { id, kind: stat.kind(), ino, fs, key, reach, fd: Slot::default() });
        by_id.insert(id, Known { node: node.clone(), lookups: 1 });
        // An older inode of this number keeps its id, and is not found by number any more.
        by_key.insert(key, id);
        Ok(node)
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
        drop(state);
        if let Some(fd) = gone.node.fd.live(Use::Glance) {
            fd.retire();
            drop(fd);
            self.bell.ring();
        }
    }

    /// The kernel was told of the node once more, by the near side.
    pub(super) fn retain(&self, id: u64) {
        if let Some(known) = self.state().by_id.get_mut(&id) {
            known.lookups = known.lookups.saturating_add(1);
        }
    }

    /// After a rename through this link: what is now at (`parent`, `name`) is found there.
    pub(super) fn moved(&self, parent: &Arc<Node>, parent_fd: &NodeFd, name: &CStr) {
        if parent.fs.handles {
            return;
        }
        let Ok(stat) = self.child(parent_fd, name).and_then(|fd| file::stat_on_mount(fd.as_fd())) else { return };
        let state = self.state();
        let Some(known) = state.by_key.get(&Key::of(&stat)).and_then(|id| state.by_id.get(id)) else { return };
        if let Reach::Place(place) = &known.node.reach {
            place.set(parent.id, name);
        }
    }
}

/// One mount on the near side has one device number, so inodes of another device get numbers of their own.
fn shown_ino(root: &Key, key: &Key) -> u64 {
    if key.dev == root.dev {
        return key.ino;
    }
    let device = u64::from(key.dev.0) << 20 | u64::from(key.dev.1);
    key.ino ^ device.wrapping_mul(0x9e37_79b9_7f4a_7c15) << 32
}

#[cfg(test)]
mod tests;
