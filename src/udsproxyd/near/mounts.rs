//! Which directories are on a qtfs mount, and what the host calls them.
//!
//! Asked for every connect, so what a mount is gets remembered by its unique id (Linux 6.8; before that, mountinfo is
//! read every time). Only its place may change under the same id; then a path does not fit, and it is read again.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::path::{below, join};
use crate::errno::{Errno, errno_of};
use crate::limits::MOUNTS_REMEMBERED_MAX;
use crate::sys::mount_id::{mount_id, unique_mount_id};
use crate::sys::mountinfo;

/// What mountinfo calls our mounts.
const QTFS: &[u8] = b"fuse.qtfs";

/// A qtfs mount: `here` (as the kernel writes it for an fd) is the host's `source`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Qtfs {
    here: Vec<u8>,
    source: Vec<u8>,
}

#[derive(Debug, Default)]
pub(super) struct Mounts {
    /// By unique id; `None`: some other file system.
    known: Mutex<HashMap<u64, Option<Qtfs>>>,
}

impl Mounts {
    /// Whether `dir` is known to be on some other file system.
    pub(super) fn is_other(&self, dir: BorrowedFd<'_>) -> bool {
        let id = unique_mount_id(dir).ok().flatten();
        id.is_some_and(|id| self.known().get(&id) == Some(&None))
    }

    /// The host's path of `dir`, whose own path is `path`; `None` when it is not on a qtfs mount. `process` is
    /// /proc/PID of somebody who sees the mount, `root` the path of its root.
    pub(super) fn host_path(
        &self,
        dir: BorrowedFd<'_>,
        path: &[u8],
        process: &OwnedFd,
        root: &[u8],
    ) -> Result<Option<Vec<u8>>, Errno> {
        let unique = unique_mount_id(dir)?;
        if let Some(id) = unique {
            match self.known().get(&id) {
                Some(None) => return Ok(None),
                Some(Some(qtfs)) => {
                    if let Some(host) = qtfs.host_path(path) {
                        return Ok(Some(host));
                    }
                }
                None => {}
            }
        }
        let Some(found) = look(dir, process, root)? else { return Ok(None) };
        let host = found.as_ref().and_then(|qtfs| qtfs.host_path(path));
        if let Some(id) = unique {
            let mut known = self.known();
            if known.len() >= MOUNTS_REMEMBERED_MAX {
                known.clear();
            }
            known.insert(id, found);
        }
        Ok(host)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<u64, Option<Qtfs>>> {
        self.known.lock().expect("a panic ends the process")
    }
}

impl Qtfs {
    fn host_path(&self, path: &[u8]) -> Option<Vec<u8>> {
        below(path, &self.here).map(|inside| join(&self.source, inside))
    }
}

/// Reads mountinfo. The outer `None`: the process does not see that mount, so that nothing was learnt about it.
fn look(dir: BorrowedFd<'_>, process: &OwnedFd, root: &[u8]) -> Result<Option<Option<Qtfs>>, Errno> {
    let id = mount_id(dir)?;
    let file = openat(process, "mountinfo", OFlag::O_CLOEXEC, Mode::empty())?;
    let mut all = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::from(file), &mut all).map_err(|e| errno_of(&e))?;
    Ok(mountinfo::find(&all, id).map(|mount| {
        let ours = mount.kind == QTFS && mount.is_roots() && mount.source.first() == Some(&b'/');
        ours.then(|| Qtfs { here: join(root, &mount.point), source: join(&mount.source, &mount.root) })
    }))
}
