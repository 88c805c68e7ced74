//! Files of a mount that come back as fds: a command that was started from the near side gets them opened here.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use nix::errno::Errno;
use nix::sys::stat::{lstat, major, minor};

use super::Exports;
use super::session::Session;
use crate::errno::{OsError, OsResult, Step};
use crate::fdpass::{Files, open_flags};
use crate::sys::file::{name_of, reopen, stat_as_known};
use crate::wire::recipe::{Access, FileId};

/// The file links that are up, by the token that only their two ends know.
#[derive(Clone, Default)]
pub(super) struct Served(Arc<Mutex<HashMap<[u8; 16], Weak<Session>>>>);

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} links", self.links().len())
    }
}

impl Served {
    fn links(&self) -> MutexGuard<'_, HashMap<[u8; 16], Weak<Session>>> {
        self.0.lock().expect("never poisoned: panics abort")
    }

    pub(super) fn add(&self, token: [u8; 16], session: &Arc<Session>) {
        self.links().insert(token, Arc::downgrade(session));
    }

    pub(super) fn remove(&self, token: [u8; 16]) {
        self.links().remove(&token);
    }
}

impl Files for Exports {
    /// The near side has the file open already, so nobody's permission is asked again; what a read-only export forbids
    /// is still forbidden.
    fn reopen(&self, file: &FileId, access: Access) -> OsResult<OwnedFd> {
        let known = self.served.links().get(&file.mount).and_then(Weak::upgrade);
        let session = known.ok_or(OsError::on("open", "a file of a mount that is gone", Errno::ESTALE))?;
        let tree = session.tree();
        if access.write {
            tree.writable().map_err(|e| OsError::on("open", "a file for writing", e))?;
        }
        let node = tree.nodes.passed(file.node).step("open a passed file")?;
        if !matches!(node.kind, libc::S_IFREG | libc::S_IFDIR) {
            return Err(OsError::on("open", "something that is no file or directory", Errno::EOPNOTSUPP));
        }
        let flags = open_flags(access);
        let inode = tree.nodes.fd(&node).step("open a passed file")?;
        reopen(inode.as_fd(), flags).step("open a passed file")
    }
    fn exported_path(&self, fd: BorrowedFd<'_>) -> Option<Vec<u8>> {
        let path = name_of(fd)?;
        self.holding(&path)?;
        // Deleted, or another file has come to its place, or it lies in another mount namespace.
        let (named, open) = (lstat(&path).ok()?, stat_as_known(fd).ok()?);
        let device = (u64::from(open.dev_major), u64::from(open.dev_minor));
        let named = ((major(named.st_dev), minor(named.st_dev)), named.st_ino);
        (named == (device, open.ino)).then(|| path.into_os_string().into_vec())
    }
}
