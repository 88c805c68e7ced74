//! Mount namespaces and what is mounted in them. Only for a process of one thread: setns(2) refuses the others.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use nix::unistd::Pid;

use super::mountinfo;
use crate::errno::{Errno, OsResult, Step};

const OWN: &str = "/proc/self/ns/mnt";
const NOTHING: Option<&str> = None;

/// Whether the file keeps a namespace alive.
pub fn is_handle(handle: &Path) -> bool {
    statfs(handle).is_ok_and(|s| s.filesystem_type() == NSFS_MAGIC)
}

/// Namespace numbers that a CPU draws at once: include/linux/cookie.h.
const NUMBERS_PER_CPU: u32 = 4096;

/// A new mount namespace, a copy of this one that sees later mounts here and shows none of its own; kept alive by a
/// mount on the file `handle`, which must not lie on a shared mount.
///
/// The kernel lets a namespace be mounted only on one with a smaller number, lest two keep each other alive; but it deals
/// the numbers in lots, one a CPU (seen with 6.18), so a new namespace may well have the smaller one, and the mount is
/// EINVAL. The CPU that made our own namespace deals a larger number at once; where it is not ours to use, another does
/// when its lot is used up.
pub fn create(handle: &Path) -> OsResult<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).step("sched_getaffinity")?;
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false)).collect();
    let mut outcome = Ok(());
    'tries: for _ in 0..NUMBERS_PER_CPU {
        for &cpu in &cpus {
            let mut one = CpuSet::new();
            one.set(cpu).step("CPU_SET")?;
            // Only a hint: without it the number is dealt by whichever CPU this runs on.
            let _ = sched_setaffinity(this, &one);
            outcome = create_once(handle);
            if !outcome.as_ref().is_err_and(|e| e.errno == Errno::EINVAL) {
                break 'tries;
            }
        }
    }
    sched_setaffinity(this, &allowed).step("sched_setaffinity")?;
    outcome
}

fn create_once(handle: &Path) -> OsResult<()> {
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

/// Takes a mount away at once; what is still in use of it goes with its last user.
pub fn detach(path: &Path) -> OsResult<()> {
    umount2(path, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH).step_on("umount -l", path.display())
}

/// Every mount point of this namespace, oldest first; the same one as often as it is mounted on.
pub fn mount_points() -> OsResult<Vec<PathBuf>> {
    const TABLE: &str = "/proc/thread-self/mountinfo";
    let table = std::fs::read(TABLE).step_on("read", TABLE)?;
    Ok(mountinfo::all(&table).map(|mount| OsString::from_vec(mount.point).into()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_found() {
        assert!(mount_points().unwrap().iter().any(|p| p == Path::new("/proc")));
    }
}
