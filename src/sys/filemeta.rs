//! Metadata that std and nix leave out: extended attributes of a path, and the mount it lies on.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::errno::{Errno, OsError, OsResult};

fn c_path(op: &'static str, path: &Path) -> OsResult<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| OsError::on(op, path.display(), Errno::EINVAL))
}

fn checked(op: &'static str, path: &Path, result: libc::ssize_t) -> OsResult<usize> {
    usize::try_from(result).map_err(|_| OsError::on(op, path.display(), Errno::last()))
}

/// The names of a path's extended attributes; a symlink's are its own.
pub fn xattr_names(path: &Path) -> OsResult<Vec<CString>> {
    const OP: &str = "llistxattr";
    let c = c_path(OP, path)?;
    let mut names = vec![0_u8; 256];
    loop {
        // SAFETY: `c` is NUL-terminated, and the kernel writes at most `names.len()` bytes to `names`.
        let result = unsafe { libc::llistxattr(c.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
        match checked(OP, path, result) {
            Ok(length) => {
                names.truncate(length);
                break;
            }
            Err(e) if e.errno == Errno::ERANGE => names.resize(names.len() * 2, 0),
            Err(e) if e.errno == Errno::EOPNOTSUPP => return Ok(Vec::new()),
            Err(e) => return Err(e),
        }
    }
    Ok(names
        .split_inclusive(|&b| b == 0)
        .filter_map(|n| CStr::from_bytes_with_nul(n).ok())
        .map(CStr::to_owned)
        .collect())
}

pub fn xattr(path: &Path, name: &CStr) -> OsResult<Vec<u8>> {
    const OP: &str = "lgetxattr";
    let c = c_path(OP, path)?;
    let mut value = vec![0_u8; 1 << 10];
    loop {
        // SAFETY: both strings are NUL-terminated, and the kernel writes at most `value.len()` bytes to `value`.
        let result = unsafe { libc::lgetxattr(c.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        match checked(OP, path, result) {
            Ok(length) => {
                value.truncate(length);
                return Ok(value);
            }
            Err(e) if e.errno == Errno::ERANGE => value.resize(value.len() * 4, 0),
            Err(e) => return Err(e),
        }
    }
}

pub fn set_xattr(path: &Path, name: &CStr, value: &[u8]) -> OsResult<()> {
    const OP: &str = "lsetxattr";
    let c = c_path(OP, path)?;
    // SAFETY: both strings are NUL-terminated, and the kernel reads `value.len()` bytes of `value`.
    let result = unsafe { libc::lsetxattr(c.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if result == 0 { Ok(()) } else { Err(OsError::on(OP, path.display(), Errno::last())) }
}

/// The mount that a path lies on, symlinks not followed: st_dev does not tell a bind mount of the same file system.
pub fn mount_id(path: &Path) -> OsResult<u64> {
    const OP: &str = "statx";
    let c = c_path(OP, path)?;
    let mut seen = std::mem::MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    // SAFETY: `c` is NUL-terminated, and `seen` is large enough for what the kernel writes.
    let result = unsafe { libc::statx(libc::AT_FDCWD, c.as_ptr(), flags, libc::STATX_MNT_ID, seen.as_mut_ptr()) };
    if result != 0 {
        return Err(OsError::on(OP, path.display(), Errno::last()));
    }
    // SAFETY: zeroed is a valid statx, and the kernel has filled it in.
    let seen = unsafe { seen.assume_init() };
    if seen.stx_mask & libc::STATX_MNT_ID == 0 {
        // Linux before 5.8: the device is the nearest thing.
        return Ok((u64::from(seen.stx_dev_major) << 32) | u64::from(seen.stx_dev_minor));
    }
    Ok(seen.stx_mnt_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_written_and_read_back() {
        let path = std::env::temp_dir().join(format!("farside-xattr-{}", std::process::id()));
        std::fs::write(&path, "").unwrap();
        let long = vec![7_u8; 2000];
        set_xattr(&path, c"user.farside", &long).unwrap();
        assert!(xattr_names(&path).unwrap().iter().any(|n| n.as_c_str() == c"user.farside"));
        assert_eq!(xattr(&path, c"user.farside").unwrap(), long);
        assert_eq!(xattr(&path, c"user.none").unwrap_err().errno, Errno::ENODATA);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn proc_is_another_mount_than_the_root() {
        assert_ne!(mount_id(Path::new("/")).unwrap(), mount_id(Path::new("/proc")).unwrap());
        assert_eq!(mount_id(Path::new("/proc")).unwrap(), mount_id(Path::new("/proc/version")).unwrap());
    }
}
