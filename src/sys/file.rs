//! File calls that nix lacks: statx, getdents64, positioned append, extended attributes, open_tree.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

/// The same inode, opened with other flags and a position of its own. Only for what the caller has looked at: to open a
/// device or a FIFO is to act on it.
pub fn reopen(fd: BorrowedFd<'_>, flags: OFlag) -> nix::Result<OwnedFd> {
    nix::fcntl::open(self_path(fd).as_c_str(), flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY, Mode::empty())
}

/// A path that is this very inode, for the calls that take no O_PATH fd.
pub fn self_path(fd: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("digits have no NUL")
}

/// O_RDONLY, O_WRONLY or O_RDWR: what the file was opened for.
pub fn access_mode(file: impl AsFd) -> nix::Result<OFlag> {
    let flags = nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_GETFL)?;
    Ok(OFlag::from_bits_retain(flags) & OFlag::O_ACCMODE)
}

/// What the kernel calls the open file now: its path, or a name for what has none.
pub fn name_of(fd: BorrowedFd<'_>) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()
}

/// What statx(2) says of one inode, `STATX_BASIC_STATS`, birth time and mount id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    pub blksize: u32,
    pub dev_major: u32,
    pub dev_minor: u32,
    pub rdev_major: u32,
    pub rdev_minor: u32,
    /// Seconds and nanoseconds.
    pub atime: (i64, u32),
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
    /// `None` where the file system keeps no birth time.
    pub btime: Option<(i64, u32)>,
    pub attributes: u64,
    pub attributes_mask: u64,
    /// Which mount this was reached through, as mountinfo numbers it; 0 before Linux 5.8. `stat_on_mount` gives another.
    pub mount_id: u64,
}

impl Stat {
    pub fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// Major 1 of Documentation/admin-guide/devices.txt: null, zero, full, random, urandom.
    pub fn is_memory_device(&self) -> bool {
        self.kind() == libc::S_IFCHR && self.rdev_major == 1
    }

    pub fn dev(&self) -> (u32, u32) {
        (self.dev_major, self.dev_minor)
    }
}

/// The inode behind `fd` itself; an O_PATH fd will do.
pub fn stat(fd: BorrowedFd<'_>) -> nix::Result<Stat> {
    statx(fd, libc::AT_STATX_SYNC_AS_STAT, libc::STATX_MNT_ID)
}

/// The same, with a `mount_id` that is never used again, where the kernel has one (Linux 6.8).
pub fn stat_on_mount(fd: BorrowedFd<'_>) -> nix::Result<Stat> {
    const STATX_MNT_ID_UNIQUE: u32 = 0x4000;
    statx(fd, libc::AT_STATX_SYNC_AS_STAT, libc::STATX_MNT_ID | STATX_MNT_ID_UNIQUE)
}

/// As the kernel knows it now, without asking whoever serves the file system: that may be a program that never answers.
pub fn stat_as_known(fd: BorrowedFd<'_>) -> nix::Result<Stat> {
    statx(fd, libc::AT_STATX_DONT_SYNC, libc::STATX_MNT_ID)
}

/// `mount`: the mask bits of the mount ids that will do.
fn statx(fd: BorrowedFd<'_>, sync: i32, mount: u32) -> nix::Result<Stat> {
    let wanted = libc::STATX_BASIC_STATS | libc::STATX_BTIME | mount;
    let flags = libc::AT_EMPTY_PATH | sync;
    // SAFETY: statx is plain data; all zeroes is a valid value.
    let mut out: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a constant C string and `out` is writable for the call.
    let done = unsafe { libc::statx(fd.as_raw_fd(), c"".as_ptr(), flags, wanted, &raw mut out) };
    Errno::result(done)?;
    let time = |t: libc::statx_timestamp| (t.tv_sec, t.tv_nsec);
    Ok(Stat {
        mode: u32::from(out.stx_mode),
        nlink: out.stx_nlink,
        uid: out.stx_uid,
        gid: out.stx_gid,
        ino: out.stx_ino,
        size: out.stx_size,
        blocks: out.stx_blocks,
        blksize: out.stx_blksize,
        dev_major: out.stx_dev_major,
        dev_minor: out.stx_dev_minor,
        rdev_major: out.stx_rdev_major,
        rdev_minor: out.stx_rdev_minor,
        atime: time(out.stx_atime),
        mtime: time(out.stx_mtime),
        ctime: time(out.stx_ctime),
        btime: (out.stx_mask & libc::STATX_BTIME != 0).then(|| time(out.stx_btime)),
        attributes: out.stx_attributes,
        attributes_mask: out.stx_attributes_mask,
        mount_id: if out.stx_mask & mount != 0 { out.stx_mnt_id } else { 0 },
    })
}

/// Fills `buf` with `linux_dirent64` records; 0 at the directory's end.
pub fn getdents(dir: BorrowedFd<'_>, buf: &mut [u8]) -> nix::Result<usize> {
    // SAFETY: the kernel writes at most `buf.len()` bytes into `buf`.
    let n = unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buf.as_mut_ptr(), buf.len()) };
    Errno::result(n).map(|n| usize::try_from(n).expect("a successful count is not negative"))
}

/// Appends `data` as one write, whatever flags the fd was opened with.
pub fn append(file: BorrowedFd<'_>, data: &[u8]) -> nix::Result<usize> {
    let iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: one iovec over `data`, which the kernel only reads.
    let n = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const iov, 1, 0, libc::RWF_APPEND) };
    Errno::result(n).map(|n| usize::try_from(n).expect("a successful count is not negative"))
}

/// Shortens or lengthens the file at `path`, symbolic links followed.
pub fn truncate(path: &CStr, size: i64) -> nix::Result<()> {
    // SAFETY: `path` is a C string.
    Errno::result(unsafe { libc::truncate(path.as_ptr(), size) }).map(drop)
}

/// The value of `name`, or with an empty `buf` its length.
pub fn getxattr(path: &CStr, name: &CStr, buf: &mut [u8]) -> nix::Result<usize> {
    // SAFETY: two C strings, and a buffer of the length given.
    let n = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) };
    Errno::result(n).map(|n| usize::try_from(n).expect("a successful count is not negative"))
}

/// The names, each ended by a NUL, or with an empty `buf` their length.
pub fn listxattr(path: &CStr, buf: &mut [u8]) -> nix::Result<usize> {
    // SAFETY: a C string, and a buffer of the length given.
    let n = unsafe { libc::listxattr(path.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) };
    Errno::result(n).map(|n| usize::try_from(n).expect("a successful count is not negative"))
}

/// `flags`: XATTR_CREATE, XATTR_REPLACE or 0.
pub fn setxattr(path: &CStr, name: &CStr, value: &[u8], flags: i32) -> nix::Result<()> {
    // SAFETY: two C strings, and a buffer of the length given, only read.
    let done = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    Errno::result(done).map(drop)
}

pub fn removexattr(path: &CStr, name: &CStr) -> nix::Result<()> {
    // SAFETY: two C strings.
    Errno::result(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) }).map(drop)
}

/// flock(2); nix ties the lock to a guard, but here it belongs to a peer's open file.
pub fn flock(file: BorrowedFd<'_>, operation: i32) -> nix::Result<()> {
    // SAFETY: no memory is passed.
    Errno::result(unsafe { libc::flock(file.as_raw_fd(), operation) }).map(drop)
}

/// An `fcntl` lock of the open file description (`F_OFD_*`); `lock` is read, and written by `F_OFD_GETLK`.
pub fn ofd_lock(file: BorrowedFd<'_>, command: i32, lock: &mut libc::flock) -> nix::Result<()> {
    assert!(matches!(command, libc::F_OFD_GETLK | libc::F_OFD_SETLK | libc::F_OFD_SETLKW), "an OFD lock command");
    // SAFETY: these three commands take a pointer to a flock, which lives through the call.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) }).map(drop)
}

/// A copy of the mount at `path` that no mount namespace holds: a busy `umount` of the original does not see it.
pub fn clone_mount(path: &CStr) -> nix::Result<OwnedFd> {
    const OPEN_TREE_CLONE: u32 = 1;
    let flags = OPEN_TREE_CLONE | u32::try_from(libc::O_CLOEXEC).expect("a flag");
    // SAFETY: a C string and a flag word.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = i32::try_from(Errno::result(fd)?).expect("an fd is an int");
    // SAFETY: the call has just made this fd, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Waits until the mount table behind `mountinfo` changes; `false` when `wait` went by first.
pub fn mounts_changed(mountinfo: impl AsFd, wait: Duration) -> nix::Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(mountinfo.as_fd(), PollFlags::POLLPRI)];
    let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
    Ok(poll(&mut fds, timeout)? > 0)
}

/// accept(2) with an owner for the new fd.
pub fn accept(listener: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    // SAFETY: no address is wanted, so no memory is passed.
    let fd =
        unsafe { libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC) };
    let fd = Errno::result(fd)?;
    // SAFETY: the call has just made this fd, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
