//! The kernel's FUSE protocol (include/uapi/linux/fuse.h, 7.31 and later), as bytes.
//!
//! ```text
//!   in:   len, opcode, unique, node, uid, gid, pid ── struct of the opcode ── names or data
//!   out:  len, error, unique                       ── struct of the opcode ── data
//! ```
//!
//! All fields are little-endian and padded alike on every 64-bit machine that farside runs on. Structs are read and
//! written field by field: nothing here believes a length, and nothing casts memory.

use std::ffi::CStr;

use crate::sys::file::Stat;
use crate::wire::codec::{Decoder, Encoder};
use crate::wire::{WireResult, bad};

#[cfg(target_endian = "big")]
compile_error!("FUSE structs are relayed as the kernel lays them out, which is native order");

pub const IN_HEADER: usize = 40;
pub const OUT_HEADER: usize = 16;
pub const ROOT: u64 = 1;

pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const NOTIFY_REPLY: u32 = 41;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
    pub const COPY_FILE_RANGE_64: u32 = 53;

    /// The kernel wants no answer to these.
    pub fn is_silent(opcode: u32) -> bool {
        matches!(opcode, FORGET | BATCH_FORGET | INTERRUPT | NOTIFY_REPLY)
    }
}

/// Bits of INIT; 32 and above travel in `flags2`.
pub mod init {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const POSIX_LOCKS: u64 = 1 << 1;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const FLOCK_LOCKS: u64 = 1 << 10;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
}

/// Bits of the answer to OPEN and CREATE.
pub mod fopen {
    pub const DIRECT_IO: u32 = 1 << 0;
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

/// Bits of `SetAttr::valid`.
pub mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

pub const GETATTR_FH: u32 = 1;
pub const LK_FLOCK: u32 = 1;
pub const WRITE_CACHE: u32 = 1;
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
pub const OPEN_KILL_SUIDGID: u32 = 1;
pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
pub const FSYNC_FDATASYNC: u32 = 1;
pub const SETXATTR_ACL_KILL_SGID: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InHeader {
    pub len: u32,
    pub opcode: u32,
    pub unique: u64,
    pub node: u64,
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
}

impl InHeader {
    /// The header, and a decoder on what is behind it. The frame must be as long as it says.
    pub fn decode(frame: &[u8]) -> WireResult<(Self, Decoder<'_>)> {
        let mut d = Decoder::new("a FUSE request", frame);
        let header = Self {
            len: d.u32()?,
            opcode: d.u32()?,
            unique: d.u64()?,
            node: d.u64()?,
            uid: d.u32()?,
            gid: d.u32()?,
            pid: d.u32()?,
        };
        // Extensions are for features that INIT does not ask for.
        d.u32()?;
        if header.len as usize != frame.len() {
            bad!("a FUSE request of {} bytes says that it has {}", frame.len(), header.len);
        }
        Ok((header, d))
    }

    /// A request made here rather than by a kernel.
    pub fn encode(opcode: u32, unique: u64, node: u64, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(IN_HEADER + body.len()).expect("our own requests are short");
        let mut e = Encoder::new();
        e.u32(len).u32(opcode).u64(unique).u64(node).u32(0).u32(0).u32(0).u32(0).raw(body);
        e.finish()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutHeader {
    pub len: u32,
    /// 0, or minus an errno.
    pub error: i32,
    pub unique: u64,
}

impl OutHeader {
    pub fn decode(frame: &[u8]) -> WireResult<(Self, Decoder<'_>)> {
        let mut d = Decoder::new("a FUSE reply", frame);
        let header = Self { len: d.u32()?, error: d.u32()?.cast_signed(), unique: d.u64()? };
        if header.len as usize != frame.len() {
            bad!("a FUSE reply of {} bytes says that it has {}", frame.len(), header.len);
        }
        Ok((header, d))
    }

    pub fn bytes(&self) -> [u8; OUT_HEADER] {
        let mut out = [0; OUT_HEADER];
        out[..4].copy_from_slice(&self.len.to_le_bytes());
        out[4..8].copy_from_slice(&self.error.to_le_bytes());
        out[8..].copy_from_slice(&self.unique.to_le_bytes());
        out
    }

    /// A whole reply.
    pub fn encode(unique: u64, error: i32, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(OUT_HEADER + body.len()).expect("a reply is shorter than 4 GiB");
        let mut out = Self { len, error, unique }.bytes().to_vec();
        out.extend_from_slice(body);
        out
    }
}

/// A name of a request: bytes up to a NUL.
pub fn name<'a>(d: &mut Decoder<'a>) -> WireResult<&'a CStr> {
    let Ok(name) = CStr::from_bytes_until_nul(d.clone().rest()) else { bad!("a FUSE request whose name has no end") };
    d.raw(name.to_bytes_with_nul().len())?;
    Ok(name)
}

/// `struct fuse_setattr_in`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetAttr {
    pub valid: u32,
    pub fh: u64,
    pub size: u64,
    pub atime: (u64, u32),
    pub mtime: (u64, u32),
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

impl SetAttr {
    pub fn decode(d: &mut Decoder<'_>) -> WireResult<Self> {
        let valid = d.u32()?;
        d.u32()?;
        let (fh, size, _lock_owner) = (d.u64()?, d.u64()?, d.u64()?);
        let (atime, mtime, _ctime) = (d.u64()?, d.u64()?, d.u64()?);
        let (atime_ns, mtime_ns, _ctime_ns) = (d.u32()?, d.u32()?, d.u32()?);
        let mode = d.u32()?;
        d.u32()?;
        let (uid, gid) = (d.u32()?, d.u32()?);
        d.u32()?;
        Ok(Self { valid, fh, size, atime: (atime, atime_ns), mtime: (mtime, mtime_ns), mode, uid, gid })
    }
}

/// `struct fuse_lk_in`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lock {
    pub fh: u64,
    pub owner: u64,
    pub start: u64,
    /// Inclusive; i64::MAX is "to the end, however far it moves".
    pub end: u64,
    /// F_RDLCK, F_WRLCK, F_UNLCK: 0, 1, 2 on every machine that farside runs on.
    pub kind: u32,
    pub pid: u32,
    pub flags: u32,
}

impl Lock {
    pub fn decode(d: &mut Decoder<'_>) -> WireResult<Self> {
        let lock = Self {
            fh: d.u64()?,
            owner: d.u64()?,
            start: d.u64()?,
            end: d.u64()?,
            kind: d.u32()?,
            pid: d.u32()?,
            flags: d.u32()?,
        };
        d.u32()?;
        Ok(lock)
    }
}

/// `struct fuse_read_in` and `struct fuse_write_in`, which are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Io {
    pub fh: u64,
    pub offset: u64,
    pub size: u32,
    pub io_flags: u32,
    pub open_flags: u32,
}

impl Io {
    pub fn decode(d: &mut Decoder<'_>) -> WireResult<Self> {
        let (fh, offset, size, io_flags) = (d.u64()?, d.u64()?, d.u32()?, d.u32()?);
        let (_lock_owner, open_flags, _padding) = (d.u64()?, d.u32()?, d.u32()?);
        Ok(Self { fh, offset, size, io_flags, open_flags })
    }
}

/// Where the open flags are in a request's frame, if it has any.
pub fn open_flags_at(opcode: u32) -> Option<usize> {
    match opcode {
        op::OPEN | op::OPENDIR | op::CREATE | op::TMPFILE => Some(IN_HEADER),
        op::READ | op::READDIR | op::READDIRPLUS | op::WRITE => Some(IN_HEADER + 32),
        op::RELEASE | op::RELEASEDIR => Some(IN_HEADER + 8),
        _ => None,
    }
}

/// `new_encode_dev` of linux/kdev_t.h.
pub fn encode_rdev(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The inverse: (major, minor).
pub fn decode_rdev(rdev: u32) -> (u32, u32) {
    ((rdev & 0xf_ff00) >> 8, (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00))
}

/// `struct fuse_attr`. `ino` is what programs see, which is the host's number or a mix for a crossed mount.
pub fn attr(e: &mut Encoder, s: &Stat, ino: u64) {
    e.u64(ino).u64(s.size).u64(s.blocks);
    e.u64(s.atime.0.cast_unsigned()).u64(s.mtime.0.cast_unsigned()).u64(s.ctime.0.cast_unsigned());
    e.u32(s.atime.1).u32(s.mtime.1).u32(s.ctime.1);
    e.u32(s.mode).u32(s.nlink).u32(s.uid).u32(s.gid);
    e.u32(encode_rdev(s.rdev_major, s.rdev_minor)).u32(s.blksize).u32(0);
}

/// `struct fuse_entry_out` that is good for this one moment: both timeouts are 0.
pub fn entry(e: &mut Encoder, node: u64, s: &Stat, ino: u64) {
    e.u64(node).u64(0).u64(0).u64(0).u32(0).u32(0);
    attr(e, s, ino);
}

/// The length of `struct fuse_entry_out`.
pub const ENTRY: usize = 40 + ATTR;
/// The length of `struct fuse_attr`.
pub const ATTR: usize = 88;

/// `struct fuse_attr_out`, timeout 0.
pub fn attr_out(e: &mut Encoder, s: &Stat, ino: u64) {
    e.u64(0).u32(0).u32(0);
    attr(e, s, ino);
}

/// `struct fuse_statx_out`, timeout 0; device numbers are the near kernel's business.
pub fn statx_out(e: &mut Encoder, s: &Stat, ino: u64) {
    let mask = libc::STATX_BASIC_STATS | if s.btime.is_some() { libc::STATX_BTIME } else { 0 };
    let mode = u16::try_from(s.mode & 0xffff).expect("masked");
    e.u64(0).u32(0).u32(0).u64(0).u64(0);
    e.u32(mask).u32(s.blksize).u64(s.attributes).u32(s.nlink).u32(s.uid).u32(s.gid).u16(mode).u16(0);
    e.u64(ino).u64(s.size).u64(s.blocks).u64(s.attributes_mask);
    for (seconds, nanos) in [s.atime, s.btime.unwrap_or_default(), s.ctime, s.mtime] {
        e.u64(seconds.cast_unsigned()).u32(nanos).u32(0);
    }
    e.u32(s.rdev_major).u32(s.rdev_minor).u32(0).u32(0);
    for _ in 0..14 {
        e.u64(0);
    }
}

/// How many bytes a directory entry takes, with or without a `fuse_entry_out` in front.
pub fn dirent_len(name: &[u8], plus: bool) -> usize {
    let fixed = if plus { ENTRY + 24 } else { 24 };
    (fixed + name.len()).next_multiple_of(8)
}

/// `struct fuse_dirent`, padded.
pub fn dirent(e: &mut Encoder, ino: u64, next: u64, kind: u8, name: &[u8]) {
    let len = u32::try_from(name.len()).expect("a name is short");
    e.u64(ino).u64(next).u32(len).u32(kind.into()).raw(name);
    let surplus = dirent_len(name, false) - 24 - name.len();
    e.raw(&[0; 8][..surplus]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_must_be_as_long_as_it_says() {
        let mut frame = InHeader::encode(op::LOOKUP, 8, 1, b"name\0");
        let (header, mut d) = InHeader::decode(&frame).unwrap();
        assert_eq!((header.opcode, header.unique, header.node), (op::LOOKUP, 8, 1));
        assert_eq!(name(&mut d).unwrap(), c"name");
        frame.push(0);
        assert!(InHeader::decode(&frame).is_err());
        for cut in 0..IN_HEADER {
            assert!(InHeader::decode(&frame[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_name_without_an_end_is_refused() {
        let frame = InHeader::encode(op::LOOKUP, 8, 1, b"name");
        let (_, mut d) = InHeader::decode(&frame).unwrap();
        assert!(name(&mut d).is_err());
    }

    #[test]
    fn device_numbers_survive() {
        for (major, minor) in [(1, 3), (8, 0), (0xfff, 0xf_ffff), (254, 300)] {
            assert_eq!(decode_rdev(encode_rdev(major, minor)), (major, minor));
        }
    }

    #[test]
    fn structs_have_the_kernels_sizes() {
        let stat = Stat {
            mode: 0o100644,
            nlink: 1,
            uid: 0,
            gid: 0,
            ino: 1,
            size: 0,
            blocks: 0,
            blksize: 4096,
            dev_major: 0,
            dev_minor: 0,
            rdev_major: 0,
            rdev_minor: 0,
            atime: (0, 0),
            mtime: (0, 0),
            ctime: (0, 0),
            btime: None,
            attributes: 0,
            attributes_mask: 0,
            mount_id: 0,
        };
        let len = |f: &dyn Fn(&mut Encoder)| {
            let mut e = Encoder::new();
            f(&mut e);
            e.finish().len()
        };
        assert_eq!(len(&|e| attr(e, &stat, 1)), ATTR);
        assert_eq!(len(&|e| entry(e, 1, &stat, 1)), ENTRY);
        assert_eq!(len(&|e| attr_out(e, &stat, 1)), 104);
        assert_eq!(len(&|e| statx_out(e, &stat, 1)), 32 + 256);
        assert_eq!(len(&|e| dirent(e, 1, 2, 8, b"abc")), dirent_len(b"abc", false));
    }
}
