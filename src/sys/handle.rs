//! File handles: an inode's name within its file system, good after a rename and without an open fd.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// MAX_HANDLE_SZ, include/linux/exportfs.h.
const HANDLE_MAX: usize = 128;

/// `struct file_handle` with its bytes.
#[repr(C, align(8))]
struct Raw {
    bytes: u32,
    kind: i32,
    handle: [u8; HANDLE_MAX],
}

/// Never made from a peer's bytes: a forged handle opens any file of the file system.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FileHandle {
    kind: i32,
    bytes: Box<[u8]>,
}

impl FileHandle {
    /// The handle of the inode behind `fd`, which may be O_PATH. EOPNOTSUPP where the file system has none.
    pub fn of(fd: BorrowedFd<'_>) -> nix::Result<Self> {
        let mut raw = Raw { bytes: u32::try_from(HANDLE_MAX).expect("128"), kind: 0, handle: [0; HANDLE_MAX] };
        let mut mount_id: libc::c_int = 0;
        // SAFETY: `raw` is laid out as struct file_handle and has room for the `bytes` it declares.
        let done = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                fd.as_raw_fd(),
                c"".as_ptr(),
                &raw mut raw,
                &raw mut mount_id,
                libc::AT_EMPTY_PATH,
            )
        };
        Errno::result(done)?;
        let len = (raw.bytes as usize).min(HANDLE_MAX);
        Ok(Self { kind: raw.kind, bytes: raw.handle[..len].into() })
    }

    /// Opens the inode by its handle; `mount` is any non-O_PATH fd of its file system. ESTALE: it is gone.
    pub fn open(&self, mount: BorrowedFd<'_>, flags: i32) -> nix::Result<OwnedFd> {
        let mut raw = Raw {
            bytes: u32::try_from(self.bytes.len()).expect("a handle is short"),
            kind: self.kind,
            handle: [0; HANDLE_MAX],
        };
        raw.handle[..self.bytes.len()].copy_from_slice(&self.bytes);
        // SAFETY: `raw` is laid out as struct file_handle and lives through the call.
        let fd = unsafe {
            libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw mut raw, flags | libc::O_CLOEXEC)
        };
        let fd = i32::try_from(Errno::result(fd)?).expect("an fd is an int");
        // SAFETY: the call has just made this fd, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
