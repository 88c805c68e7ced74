//! Which mount an fd is on, without asking its file system: for a FUSE mount that would be a round trip.

use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::errno::Errno;

/// The number in the first column of mountinfo; used again after an unmount.
pub fn mount_id(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    const STATX_MNT_ID: u32 = 0x1000;
    ask(fd, STATX_MNT_ID)?.ok_or(Errno::ENOSYS)
}

/// A number that is never used again; `None` before Linux 6.8.
pub fn unique_mount_id(fd: BorrowedFd<'_>) -> Result<Option<u64>, Errno> {
    const STATX_MNT_ID_UNIQUE: u32 = 0x4000;
    ask(fd, STATX_MNT_ID_UNIQUE)
}

fn ask(fd: BorrowedFd<'_>, mask: u32) -> Result<Option<u64>, Errno> {
    /// struct statx, linux/stat.h: 256 bytes, stx_mask first, stx_mnt_id at 144. As words, so that it is aligned.
    const WORDS: usize = 256 / 8;
    const MOUNT_ID: usize = 144 / 8;
    let mut out = [0u64; WORDS];
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    // SAFETY: an empty path, and 256 bytes for the kernel to fill.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_statx, fd.as_raw_fd(), c"".as_ptr(), flags, mask, out.as_mut_ptr())
    })?;
    let given: [u8; mem::size_of::<u64>()] = out[0].to_ne_bytes();
    let given = u32::from_ne_bytes([given[0], given[1], given[2], given[3]]);
    Ok((given & mask != 0).then_some(out[MOUNT_ID]))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_id_is_the_one_in_fdinfo() {
        let proc = std::fs::File::open("/proc").unwrap();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", proc.as_raw_fd())).unwrap();
        let expected = info.lines().find_map(|l| l.strip_prefix("mnt_id:")).unwrap().trim().parse().unwrap();
        assert_eq!(mount_id(proc.as_fd()), Ok(expected));
        if let Some(unique) = unique_mount_id(proc.as_fd()).unwrap() {
            assert_eq!(unique_mount_id(std::fs::File::open("/proc/self").unwrap().as_fd()), Ok(Some(unique)));
        }
    }
}
