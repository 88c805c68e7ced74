//! The file systems of one export as the host has them mounted, and how to reach each again.
//!
//! ```text
//!   Fs ──▶ live fd?  use it
//!      └─▶ Place:    the parent's fd, the name, the root of the same mount?
//! ```
//!
//! An fd on a mount keeps the host from unmounting it. So only the export's own stays open, and the fd of one below it
//! goes as an inode's does. Meanwhile the host may unmount it and mount something else, which before Linux 6.8 may get
//! the same mount id; then it is another `Fs`, and the nodes of the old one are ESTALE.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::fdcache::{FdCache, NodeFd, Slot, Use};
use super::nodes::Key;
use super::places::{Place, PlaceOf};
use crate::limits::MOUNTS_CROSSED_MAX;
use crate::sys::file::{self, Stat, reopen};
use crate::sys::handle::FileHandle;
use crate::sys::mount_id::mount_id;
use crate::sys::mountinfo;

const TABLE: &str = "/proc/self/mountinfo";

/// One file system as mounted: two mounts of one are two, so that a directory never appears in two places.
#[derive(Debug)]
pub(super) struct Fs {
    /// Whether file handles work on it.
    pub(super) handles: bool,
    /// The device as the kernel's own tables name it, which stat(2) hides on some file systems.
    pub(super) device: (u32, u32),
    root: Key,
    /// In mountinfo.
    number: Option<u64>,
    /// f_fsid, which tells apart what the numbers above do not.
    id: Option<libc::c_ulong>,
    /// Where it is mounted; the export's own is not looked for.
    place: Option<PlaceOf>,
    /// A real fd on it, for open_by_handle_at; only where handles work.
    fd: Slot,
}

impl Fs {
    /// Tries file handles on the mount that `fd` is on, by using one. The real fd comes back if they work.
    fn probe(fd: BorrowedFd<'_>, stat: &Stat, place: Option<PlaceOf>) -> (Self, Option<Arc<NodeFd>>) {
        let works = |mount: &OwnedFd| {
            FileHandle::of(fd)
                .and_then(|h| h.open(mount.as_fd(), libc::O_PATH))
                .is_ok_and(|back| file::stat_on_mount(back.as_fd()).is_ok_and(|s| Key::of(&s) == Key::of(stat)))
        };
        let real = open_real(fd, stat.kind()).ok().filter(works).map(NodeFd::new);
        let number = mount_id(fd).ok();
        let slot = Slot::default();
        if let Some(real) = &real {
            slot.fill(real);
        }
        let fs = Self {
            handles: real.is_some(),
            device: number.and_then(mounted_device).unwrap_or_else(|| stat.dev()),
            root: Key::of(stat),
            number,
            id: real.as_ref().and_then(|real| id_of(real.as_fd())),
            place,
            fd: slot,
        };
        (fs, real)
    }

    pub(super) fn fd(&self) -> &Slot {
        &self.fd
    }

    pub(super) fn place(&self) -> Option<Place> {
        self.place.as_ref().map(PlaceOf::get)
    }

    /// `root` was found where this is mounted: a real fd on it, if it is the same mount still.
    fn open_again(&self, root: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
        let stat = file::stat_on_mount(root)?;
        if Key::of(&stat) != self.root {
            return Err(Errno::ESTALE);
        }
        let real = open_real(root, stat.kind())?;
        if id_of(real.as_fd()) == self.id { Ok(real) } else { Err(Errno::ESTALE) }
    }
}

#[derive(Debug)]
pub(super) struct Mounts {
    /// Keeps the export's own open.
    _export: Option<Arc<NodeFd>>,
    /// Those below it, by mount id.
    crossed: Mutex<HashMap<u64, Arc<Fs>>>,
    cache: FdCache,
}

impl Mounts {
    /// And the file system that the export's directory is on.
    pub(super) fn new(root: BorrowedFd<'_>, stat: &Stat) -> (Self, Arc<Fs>) {
        let (fs, real) = Fs::probe(root, stat, None);
        let cache = FdCache::new(MOUNTS_CROSSED_MAX);
        (Self { _export: real, crossed: Mutex::default(), cache }, Arc::new(fs))
    }

    /// The file system whose root `fd` is: it was found at `name` in `parent`, which is on another mount.
    pub(super) fn enter(&self, stat: &Stat, fd: BorrowedFd<'_>, parent: u64, name: &CStr) -> nix::Result<Arc<Fs>> {
        let mut crossed = self.crossed.lock().expect("never poisoned: panics abort");
        let known = crossed.get(&stat.mount_id);
        if let Some(fs) = known
            && self.is_same(fs, stat, fd)?
        {
            if let Some(place) = &fs.place {
                place.set(parent, name);
            }
            return Ok(fs.clone());
        }
        if known.is_none() && crossed.len() >= MOUNTS_CROSSED_MAX {
            prune(&mut crossed);
            if crossed.len() >= MOUNTS_CROSSED_MAX {
                return Err(Errno::ENFILE);
            }
        }
        let (fs, real) = Fs::probe(fd, stat, Some(PlaceOf::new(parent, name)));
        let fs = Arc::new(fs);
        crossed.insert(stat.mount_id, fs.clone());
        drop(crossed);
        if let Some(real) = real {
            self.cache.keep(real);
        }
        Ok(fs)
    }

    /// An fd keeps the mount and with it the id. Without one, the root is looked at more closely, once.
    fn is_same(&self, fs: &Fs, stat: &Stat, root: BorrowedFd<'_>) -> nix::Result<bool> {
        if !fs.handles {
            return Ok(fs.root == Key::of(stat));
        }
        if fs.fd.live(Use::Lasting).is_some() {
            return Ok(true);
        }
        match self.reopen(fs, root, Use::Lasting) {
            Err(Errno::ESTALE) => Ok(false),
            other => other.map(|_| true),
        }
    }

    /// An fd for open_by_handle_at, by way of the mount's root, which was found again.
    pub(super) fn reopen(&self, fs: &Fs, root: BorrowedFd<'_>, how: Use) -> nix::Result<Arc<NodeFd>> {
        let real = NodeFd::new(fs.open_again(root)?);
        if how == Use::Lasting {
            fs.fd.fill(&real);
            self.cache.keep(real.clone());
        }
        Ok(real)
    }

    /// At each tick.
    pub(super) fn sweep(&self) {
        self.cache.sweep(true);
    }

    pub(super) fn shed(&self) {
        self.cache.shed();
    }
}

fn id_of(fd: BorrowedFd<'_>) -> Option<libc::c_ulong> {
    nix::sys::statvfs::fstatvfs(fd).ok().map(|s| s.filesystem_id())
}

/// Leaves out mounts of which the near kernel remembers nothing, and those that the host has unmounted.
fn prune(crossed: &mut HashMap<u64, Arc<Fs>>) {
    let Ok(table) = std::fs::read(TABLE) else { return };
    let is_mounted = |fs: &Fs| fs.number.is_none_or(|number| mountinfo::find(&table, number).is_some());
    crossed.retain(|_, fs| Arc::strong_count(fs) > 1 && is_mounted(fs));
}

/// Not O_PATH, which open_by_handle_at does not take.
fn open_real(fd: BorrowedFd<'_>, kind: u32) -> nix::Result<OwnedFd> {
    match kind {
        libc::S_IFDIR => reopen(fd, OFlag::O_RDONLY | OFlag::O_DIRECTORY),
        libc::S_IFREG => reopen(fd, OFlag::O_RDONLY | OFlag::O_NONBLOCK),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

fn mounted_device(number: u64) -> Option<(u32, u32)> {
    Some(mountinfo::find(&std::fs::read(TABLE).ok()?, number)?.device)
}
