//! GETATTR, STATX, SETATTR, STATFS and extended attributes.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid};

use super::fdcache::NodeFd;
use super::files::Open;
use super::nodes::Node;
use super::tree::{Answer, PREFIX, Served, Tree, body, empty};
use crate::limits::{NAME_MAX, XATTR_MAX};
use crate::qtfs::abi::{self, InHeader, SetAttr, fattr};
use crate::qtfs::wire::OWN_REQUEST;
use crate::sys::caller::WithoutFsetid;
use crate::sys::file;
use crate::sys::file::self_path;
use crate::wire::codec::Decoder;

/// Whichever fd of an inode there is.
enum Held {
    File(Arc<Open>),
    Node(Arc<NodeFd>),
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::File(open) => open.file.as_fd(),
            Self::Node(fd) => fd.as_fd(),
        }
    }
}

impl Tree {
    /// The open file, if the request names one of this node, else the node.
    fn held(&self, node: &Arc<Node>, fh: Option<u64>) -> nix::Result<Held> {
        if let Some(open) = fh.and_then(|fh| self.files.get(fh).ok())
            && open.node.id == node.id
        {
            return Ok(Held::File(open));
        }
        self.nodes.fd(node).map(Held::Node)
    }

    pub(super) fn getattr(&self, h: &InHeader, mut d: Decoder<'_>) -> Served {
        let (flags, _, fh) = (d.u32()?, d.u32()?, d.u64()?);
        let node = self.nodes.get(h.node)?;
        let held = match h.unique & OWN_REQUEST {
            0 => self.held(&node, (flags & abi::GETATTR_FH != 0).then_some(fh))?,
            // No program asks.
            _ => Held::Node(self.nodes.glance(&node)?),
        };
        let mut e = body();
        abi::attr_out(&mut e, &file::stat(held.as_fd())?, node.ino);
        Ok(Answer::Reply(e.finish()))
    }

    pub(super) fn statx(&self, h: &InHeader, mut d: Decoder<'_>) -> Served {
        let (flags, _, fh) = (d.u32()?, d.u32()?, d.u64()?);
        let node = self.nodes.get(h.node)?;
        let held = self.held(&node, (flags & abi::GETATTR_FH != 0).then_some(fh))?;
        let mut e = body();
        abi::statx_out(&mut e, &file::stat(held.as_fd())?, node.ino);
        Ok(Answer::Reply(e.finish()))
    }

    pub(super) fn setattr(&self, h: &InHeader, mut d: Decoder<'_>) -> Served {
        let set = SetAttr::decode(&mut d)?;
        let node = self.nodes.get(h.node)?;
        let has = |bit: u32| set.valid & bit != 0;
        let held = self.held(&node, has(fattr::FH).then_some(set.fh))?;
        let path = self_path(held.as_fd());
        // The owner before the mode: chown(2) clears set-user-id bits.
        if has(fattr::UID | fattr::GID) {
            let uid = has(fattr::UID).then(|| Uid::from_raw(set.uid));
            let gid = has(fattr::GID).then(|| Gid::from_raw(set.gid));
            nix::unistd::fchownat(&held, c"", uid, gid, AtFlags::AT_EMPTY_PATH)?;
        }
        if has(fattr::MODE) {
            let mode = Mode::from_bits_truncate(set.mode & 0o7777);
            nix::sys::stat::fchmodat(nix::fcntl::AT_FDCWD, path.as_c_str(), mode, FchmodatFlags::FollowSymlink)?;
        }
        if has(fattr::SIZE) {
            self.resize(&node, &held, &path, &set)?;
        }
        let times = fattr::ATIME | fattr::MTIME | fattr::ATIME_NOW | fattr::MTIME_NOW;
        if has(times) {
            let atime = time(has(fattr::ATIME), has(fattr::ATIME_NOW), set.atime);
            let mtime = time(has(fattr::MTIME), has(fattr::MTIME_NOW), set.mtime);
            let here = nix::fcntl::AT_FDCWD;
            nix::sys::stat::utimensat(here, path.as_c_str(), &atime, &mtime, UtimensatFlags::FollowSymlink)?;
        }
        let mut e = body();
        abi::attr_out(&mut e, &file::stat(held.as_fd())?, node.ino);
        Ok(Answer::Reply(e.finish()))
    }

    fn resize(&self, node: &Node, held: &Held, path: &CStr, set: &SetAttr) -> nix::Result<()> {
        match node.kind {
            libc::S_IFREG => {}
            libc::S_IFDIR => return Err(Errno::EISDIR),
            _ => return Err(Errno::EINVAL),
        }
        let size = i64::try_from(set.size).map_err(|_| Errno::EFBIG)?;
        let _plain = (set.valid & fattr::KILL_SUIDGID != 0).then(WithoutFsetid::enter).transpose()?;
        match held {
            Held::File(open) => match nix::unistd::ftruncate(&open.file, size) {
                // Opened to read: the kernel checked another way that the caller may.
                Err(Errno::EINVAL | Errno::EBADF) => file::truncate(path, size),
                other => other,
            },
            Held::Node(_) => file::truncate(path, size),
        }
    }

    pub(super) fn statfs(&self, h: &InHeader) -> Served {
        let fd = self.nodes.fd(&*self.nodes.get(h.node)?)?;
        let s = nix::sys::statfs::fstatfs(&*fd)?;
        let size = u32::try_from(s.block_size()).unwrap_or(4096);
        let mut e = body();
        e.u64(s.blocks()).u64(s.blocks_free()).u64(s.blocks_available()).u64(s.files()).u64(s.files_free());
        e.u32(size).u32(u32::try_from(NAME_MAX).expect("255")).u32(size).u32(0);
        e.raw(&[0; 24]);
        Ok(Answer::Reply(e.finish()))
    }

    pub(super) fn getxattr(&self, h: &InHeader, mut d: Decoder<'_>) -> Served {
        let (size, _) = (d.u32()?, d.u32()?);
        let name = abi::name(&mut d)?;
        let fd = self.nodes.fd(&*self.nodes.get(h.node)?)?;
        let path = self_path(fd.as_fd());
        sized(size, |buf| file::getxattr(&path, name, buf))
    }

    pub(super) fn listxattr(&self, h: &InHeader, mut d: Decoder<'_>) -> Served {
        let (size, _) = (d.u32()?, d.u32()?);
        let fd = self.nodes.fd(&*self.nodes.get(h.node)?)?;
        let path = self_path(fd.as_fd());
        sized(size, |buf| file::listxattr(&path, buf))
    }

    pub(super) fn setxattr(&self, h: &InHeader, mut d: Decoder<'_>) -> Served {
        let (size, flags, extra, _) = (d.u32()?, d.u32()?, d.u32()?, d.u32()?);
        let name = abi::name(&mut d)?;
        let value = d.raw(size as usize)?;
        let flags = i32::try_from(flags).map_err(|_| Errno::EINVAL)?;
        let fd = self.nodes.fd(&*self.nodes.get(h.node)?)?;
        // An ACL set by one who is not in the file's group takes the set-group-id bit away.
        let _plain = (extra & abi::SETXATTR_ACL_KILL_SGID != 0).then(WithoutFsetid::enter).transpose()?;
        file::setxattr(&self_path(fd.as_fd()), name, value, flags)?;
        empty()
    }

    pub(super) fn removexattr(&self, h: &InHeader, mut d: Decoder<'_>) -> Served {
        let name = abi::name(&mut d)?;
        let fd = self.nodes.fd(&*self.nodes.get(h.node)?)?;
        file::removexattr(&self_path(fd.as_fd()), name)?;
        empty()
    }
}

/// With size 0 the answer is the length, else the bytes.
fn sized(size: u32, fill: impl Fn(&mut [u8]) -> nix::Result<usize>) -> Served {
    if size == 0 {
        let len = fill(&mut [])?;
        let mut e = body();
        e.u32(u32::try_from(len).map_err(|_| Errno::E2BIG)?).u32(0);
        return Ok(Answer::Reply(e.finish()));
    }
    let mut reply = vec![0; PREFIX + (size as usize).min(XATTR_MAX)];
    let len = fill(&mut reply[PREFIX..])?;
    reply.truncate(PREFIX + len);
    Ok(Answer::Reply(reply))
}

fn time(given: bool, now: bool, (seconds, nanos): (u64, u32)) -> TimeSpec {
    match (given || now, now) {
        (false, _) => TimeSpec::UTIME_OMIT,
        (true, true) => TimeSpec::UTIME_NOW,
        (true, false) => TimeSpec::new(seconds.cast_signed(), i64::from(nanos)),
    }
}
