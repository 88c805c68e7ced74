//! Requests that go by a name in a directory: LOOKUP, the makers, LINK, RENAME, UNLINK, RMDIR, READLINK.
//!
//! Every name is one step: symbolic links are text here, the near kernel follows them. What is made belongs to the
//! caller and has the caller's umask applied, unless the directory's default ACL says otherwise.

use std::ffi::CStr;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags};
use nix::sys::stat::{Mode, SFlag};
use nix::unistd::UnlinkatFlags;

use super::sockets;
use super::tree::{Answer, Served, Tree, acting_for, body, checked, empty};
use crate::limits::PATH_MAX;
use crate::qtfs::abi::{self, InHeader};
use crate::wire::codec::Decoder;

impl Tree {
    pub(super) fn lookup(&self, h: &InHeader, mut d: Decoder<'_>) -> Served {
        let name = checked(abi::name(&mut d)?)?;
        let parent = self.nodes.get(h.node)?;
        let dir = self.nodes.fd(&parent)?;
        let fd = self.nodes.child(&dir, name)?;
        let (node, stat) = self.nodes.intern(fd, &parent, name)?;
        let answer = self.entry(&node, &stat);
        if node.kind == libc::S_IFSOCK
            && let Answer::Reply(reply) = answer
        {
            // The kernel hears of the node only if this goes well.
            let fd = self.nodes.fd(&node).inspect_err(|_| self.nodes.forget(node.id, 1))?;
            return Ok(match sockets::bound_here(fd.as_fd(), node.fs.device, stat.ino) {
                Some(socket) => Answer::Socket(reply, socket),
                None => Answer::Reply(reply),
            });
        }
        Ok(answer)
    }

    pub(super) fn readlink(&self, h: &InHeader) -> Served {
        let node = self.nodes.get(h.node)?;
        if node.kind != libc::S_IFLNK {
            return Err(Errno::EINVAL.into());
        }
        let text = nix::fcntl::readlinkat(&*self.nodes.fd(&node)?, c"")?;
        let mut e = body();
        e.raw(text.as_encoded_bytes());
        Ok(Answer::Reply(e.finish()))
    }

    pub(super) fn mknod(&self, h: &InHeader, mut d: Decoder<'_>) -> Served {
        let (mode, rdev, umask, _) = (d.u32()?, d.u32()?, d.u32()?, d.u32()?);
        let name = checked(abi::name(&mut d)?)?;
        let kind = match mode & libc::S_IFMT {
            kind @ (libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK | libc::S_IFCHR | libc::S_IFBLK) => kind,
            _ => return Err(Errno::EINVAL.into()),
        };
        let (major, minor) = abi::decode_rdev(rdev);
        let dev = nix::sys::stat::makedev(major.into(), minor.into());
        self.make(h, umask, name, |dir| {
            nix::sys::stat::mknodat(dir, name, SFlag::from_bits_truncate(kind), permissions(mode), dev)
        })
    }

    pub(super) fn mkdir(&self, h: &InHeader, mut d: Decoder<'_>) -> Served {
        let (mode, umask) = (d.u32()?, d.u32()?);
        let name = checked(abi::name(&mut d)?)?;
        self.make(h, umask, name, |dir| nix::sys::stat::mkdirat(dir, name, permissions(mode)))
    }

    pub(super) fn symlink(&self, h: &InHeader, mut d: Decoder<'_>) -> Served {
        let name = checked(abi::name(&mut d)?)?;
        let text = abi::name(&mut d)?;
        if text.count_bytes() >= PATH_MAX {
            return Err(Errno::ENAMETOOLONG.into());
        }
        self.make(h, 0, name, |dir| nix::unistd::symlinkat(text, dir, name))
    }

    /// Makes something as the caller, and tells the kernel of it.
    fn make(
        &self,
        h: &InHeader,
        umask: u32,
        name: &CStr,
        how: impl Fn(std::os::fd::BorrowedFd<'_>) -> nix::Result<()>,
    ) -> Served {
        let parent = self.nodes.get(h.node)?;
        let dir = self.nodes.fd(&parent)?;
        {
            let _caller = acting_for(h, umask)?;
            how(dir.as_fd())?;
        }
        let fd = self.nodes.child(&dir, name)?;
        let (node, stat) = self.nodes.intern(fd, &parent, name)?;
        Ok(self.entry(&node, &stat))
    }

    pub(super) fn link(&self, h: &InHeader, mut d: Decoder<'_>) -> Served {
        let old = d.u64()?;
        let name = checked(abi::name(&mut d)?)?;
        let node = self.nodes.get(old)?;
        let parent = self.nodes.get(h.node)?;
        let (fd, dir) = (self.nodes.fd(&node)?, self.nodes.fd(&parent)?);
        nix::unistd::linkat(&*fd, c"", &*dir, name, AtFlags::AT_EMPTY_PATH)?;
        let fd = self.nodes.child(&dir, name)?;
        let (node, stat) = self.nodes.intern(fd, &parent, name)?;
        Ok(self.entry(&node, &stat))
    }

    pub(super) fn unlink(&self, h: &InHeader, mut d: Decoder<'_>, how: UnlinkatFlags) -> Served {
        let name = checked(abi::name(&mut d)?)?;
        let dir = self.nodes.fd(&*self.nodes.get(h.node)?)?;
        nix::unistd::unlinkat(&*dir, name, how)?;
        empty()
    }

    /// RENAME and RENAME2, which has flags.
    pub(super) fn rename(&self, h: &InHeader, mut d: Decoder<'_>, has_flags: bool) -> Served {
        let to = d.u64()?;
        let flags = if has_flags {
            let flags = d.u32()?;
            d.u32()?;
            RenameFlags::from_bits(flags).ok_or(Errno::EINVAL)?
        } else {
            RenameFlags::empty()
        };
        let name = checked(abi::name(&mut d)?)?;
        let new_name = checked(abi::name(&mut d)?)?;
        let (from, to) = (self.nodes.get(h.node)?, self.nodes.get(to)?);
        let (from_fd, to_fd) = (self.nodes.fd(&from)?, self.nodes.fd(&to)?);
        nix::fcntl::renameat2(&*from_fd, name, &*to_fd, new_name, flags)?;
        self.nodes.moved(&to, &to_fd, new_name);
        if flags.contains(RenameFlags::RENAME_EXCHANGE) {
            self.nodes.moved(&from, &from_fd, name);
        }
        empty()
    }

    /// CREATE: makes and opens in one step.
    pub(super) fn create(&self, h: &InHeader, mut d: Decoder<'_>) -> Served {
        let (flags, mode, umask, kill) = (d.u32()?, d.u32()?, d.u32()?, d.u32()?);
        let name = checked(abi::name(&mut d)?)?;
        let parent = self.nodes.get(h.node)?;
        let dir = self.nodes.fd(&parent)?;
        let how = super::files::native_flags(flags);
        let made = {
            let _caller = acting_for(h, umask)?;
            let how = how | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
            self.nodes.spare(|| nix::fcntl::openat(&*dir, name, how, permissions(mode)))
        };
        // The name first, then what it names: so an existing device or FIFO is never opened.
        let fd = match self.nodes.child(&dir, name) {
            // Gone again: the kernel looks once more.
            Err(Errno::ENOENT) => return Err(Errno::ESTALE.into()),
            other => other?,
        };
        let (node, stat) = self.nodes.intern(fd, &parent, name)?;
        let opened = match made {
            Ok(file) => self.files.add(&self.nodes, &node, file, false),
            Err(Errno::EEXIST) if how.contains(OFlag::O_EXCL) => Err(Errno::EEXIST),
            // Somebody else made it between the kernel's LOOKUP and now.
            Err(Errno::EEXIST) if node.kind == libc::S_IFREG => self.open_node(&node, flags, kill),
            Err(Errno::EEXIST) => Err(Errno::ESTALE),
            Err(other) => Err(other),
        };
        let fh = opened.inspect_err(|_| self.nodes.forget(node.id, 1))?;
        Ok(self.created(&node, &stat, fh))
    }

    /// O_TMPFILE.
    pub(super) fn tmpfile(&self, h: &InHeader, mut d: Decoder<'_>) -> Served {
        let (flags, mode, umask, _) = (d.u32()?, d.u32()?, d.u32()?, d.u32()?);
        let parent = self.nodes.get(h.node)?;
        let dir = self.nodes.fd(&parent)?;
        let how = super::files::native_flags(flags) | OFlag::O_TMPFILE;
        let file = {
            let _caller = acting_for(h, umask)?;
            self.nodes.spare(|| nix::fcntl::openat(&*dir, c".", how, permissions(mode)))?
        };
        let fd = self.nodes.spare(|| crate::sys::file::reopen(file.as_fd(), OFlag::O_PATH))?;
        // It has no name; where there are no handles it lives as long as it is open.
        let (node, stat) = self.nodes.intern(fd, &parent, c"")?;
        let fh = self.files.add(&self.nodes, &node, file, false).inspect_err(|_| self.nodes.forget(node.id, 1))?;
        Ok(self.created(&node, &stat, fh))
    }

    fn created(&self, node: &super::nodes::Node, stat: &crate::sys::file::Stat, fh: u64) -> Answer {
        let mut e = body();
        abi::entry(&mut e, node.id, stat, node.ino);
        e.u64(fh).u32(0).u32(0);
        Answer::Reply(e.finish())
    }
}

fn permissions(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode & 0o7777)
}
