//! The host's files, found on this machine's mounts of them.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{SFlag, fstat};

use crate::errno::{Errno, OsError, OsResult, Step};
use crate::fdpass::{Mounted, open_flags};
use crate::sys::file::reopen;
use crate::sys::mountinfo;
use crate::wire::recipe::Access;

const TABLE: &str = "/proc/self/mountinfo";

/// The mounts that this process sees.
#[derive(Debug)]
pub struct SeenMounts;

impl Mounted for SeenMounts {
    fn open(&self, host_path: &[u8], access: Access) -> OsResult<OwnedFd> {
        let shown = || host_path.escape_ascii().to_string();
        let table = std::fs::read(TABLE).step_on("read", TABLE)?;
        let found = mountinfo::all(&table).filter(|m| m.kind == b"fuse.qtfs" && m.root == b"/" && m.is_roots());
        // The mount whose source is nearest to the file.
        let found = found.filter_map(|mount| Some((inside(host_path, &mount.source)?, mount.point)));
        let found = found.min_by_key(|(rest, _)| rest.len());
        let Some((rest, point)) = found else {
            return Err(OsError::on("carry", format!("{}: mounted nowhere here", shown()), Errno::EOPNOTSUPP));
        };
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC);
        let top = openat2(AT_FDCWD, OsStr::from_bytes(&point), how).step_on("open", shown())?;
        // The name is the peer's: it stays on this mount, and a link is not followed.
        let stays = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(stays);
        let rest = if rest.is_empty() { b"." } else { rest };
        let inode = openat2(top, OsStr::from_bytes(rest), how).step_on("open", shown())?;
        let kind = SFlag::from_bits_truncate(fstat(&inode).step("fstat")?.st_mode) & SFlag::S_IFMT;
        if kind != SFlag::S_IFREG && kind != SFlag::S_IFDIR {
            // A FIFO's open would wait for its other end.
            return Err(OsError::on("carry", format!("{}: no file or directory", shown()), Errno::EOPNOTSUPP));
        }
        reopen(inode.as_fd(), open_flags(access)).step_on("open", shown())
    }
}

/// `path` below `source`, without the slash between them.
fn inside<'a>(path: &'a [u8], source: &[u8]) -> Option<&'a [u8]> {
    let source = source.strip_suffix(b"/").unwrap_or(source);
    let rest = path.strip_prefix(source)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix(b"/") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_below_its_source_alone() {
        for (path, source, rest) in [
            (&b"/a/b/c"[..], &b"/a/b"[..], Some(&b"c"[..])),
            (b"/a/b", b"/a/b", Some(b"")),
            (b"/a/bc", b"/a/b", None),
            (b"/a", b"/", Some(b"a")),
            (b"/x", b"/a", None),
        ] {
            assert_eq!(inside(path, source), rest);
        }
    }
}
