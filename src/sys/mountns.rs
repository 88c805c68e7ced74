//! Mount namespaces and what is mounted in them. Only for a process of one thread: setns(2) refuses the others.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};

use crate::errno::{OsResult, Step};

const OWN: &str = "/proc/self/ns/mnt";
const NOTHING: Option<&str> = None;

/// Whether the file keeps a namespace alive.
pub fn is_handle(handle: &Path) -> bool {
    statfs(handle).is_ok_and(|s| s.filesystem_type() == NSFS_MAGIC)
}

/// A new mount namespace, a copy of this one that sees later mounts here and shows none of its own; kept alive by a
/// mount on the file `handle`, which must not lie on a shared mount.
pub fn create(handle: &Path) -> OsResult<()> {
    let old = File::open(OWN).step_on("open", OWN)?;
    unshare(CloneFlags::CLONE_NEWNS).step("unshare")?;
    let slave =
        mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_SLAVE, NOTHING).step_on("mount --make-rslave", "/");
    let new = File::open(OWN).step_on("open", OWN);
    setns(&old, CloneFlags::CLONE_NEWNS).step("setns")?;
    slave?;
    let new = new?;
    let source = format!("/proc/self/fd/{}", new.as_raw_fd());
    mount(Some(source.as_str()), handle, NOTHING, MsFlags::MS_BIND, NOTHING)
        .step_on("mount a namespace on", handle.display())
}

/// Runs `act` inside the namespace and comes back. The working directory becomes / there and stays / here.
pub fn inside<T>(handle: &Path, act: impl FnOnce() -> T) -> OsResult<T> {
    let old = File::open(OWN).step_on("open", OWN)?;
    let space = File::open(handle).step_on("open", handle.display())?;
    setns(&space, CloneFlags::CLONE_NEWNS).step_on("setns", handle.display())?;
    let result = act();
    setns(&old, CloneFlags::CLONE_NEWNS).step("setns")?;
    Ok(result)
}

pub fn bind(from: &Path, to: &Path, recursive: bool) -> OsResult<()> {
    let flags = if recursive { MsFlags::MS_BIND | MsFlags::MS_REC } else { MsFlags::MS_BIND };
    mount(Some(from), to, NOTHING, flags, NOTHING)
        .step_on("mount --bind", format_args!("{} {}", from.display(), to.display()))
}

/// A mount of the directory on itself that is copied to no other namespace.
pub fn make_private(dir: &Path) -> OsResult<()> {
    bind(dir, dir, false)?;
    mount(NOTHING, dir, NOTHING, MsFlags::MS_PRIVATE, NOTHING).step_on("mount --make-private", dir.display())
}

pub fn unmount(path: &Path) -> OsResult<()> {
    umount2(path, MntFlags::UMOUNT_NOFOLLOW).step_on("umount", path.display())
}

/// Every mount point of this namespace, oldest first; the same one as often as it is mounted on.
pub fn mount_points() -> OsResult<Vec<PathBuf>> {
    const TABLE: &str = "/proc/thread-self/mountinfo";
    let table = std::fs::read(TABLE).step_on("read", TABLE)?;
    let field = |line: &[u8]| line.split(|&b| b == b' ').nth(4).map(unescaped);
    Ok(table.split(|&b| b == b'\n').filter_map(field).collect())
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        match octal {
            Some(byte) if first == b'\\' => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_as_they_are_named() {
        assert_eq!(unescaped(br"/a\040b\134c\x"), Path::new(r"/a b\c\x"));
        assert!(mount_points().unwrap().iter().any(|p| p == Path::new("/proc")));
    }
}
