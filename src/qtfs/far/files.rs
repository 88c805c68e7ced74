//! Open files: OPEN to RELEASE, and everything that goes by a file handle in between.
//!
//! A file stays readable and writable here after it was renamed or unlinked, on either machine: the open fd is it.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag};
use nix::unistd::Whence;

use super::dirs::DirCursor;
use super::fdcache::NodeFd;
use super::nodes::{Node, Nodes};
use super::tree::{Answer, PREFIX, Served, Tree, body, empty};
use crate::limits::{COPY_RANGE_MAX, FILE_IO_MAX, OPEN_FILES_MAX};
use crate::qtfs::abi::{self, InHeader, Io};
use crate::qtfs::wire::open_flags;
use crate::sys::caller::WithoutFsetid;
use crate::sys::file;
use crate::sys::file::reopen;
use crate::wire::codec::Decoder;

/// One open file or directory of the near side.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) node: Arc<Node>,
    pub(super) file: OwnedFd,
    /// For a directory.
    pub(super) cursor: Option<Mutex<DirCursor>>,
    /// Keeps the node reachable when its name is gone.
    _node_fd: Arc<NodeFd>,
}

#[derive(Debug)]
pub(super) struct Files {
    open: Mutex<HashMap<u64, Arc<Open>>>,
    next: AtomicU64,
}

impl Files {
    pub(super) fn new(base: u64) -> Self {
        Self { open: Mutex::new(HashMap::new()), next: AtomicU64::new(base + 1) }
    }

    /// A handle of an earlier link is ESTALE here.
    pub(super) fn get(&self, fh: u64) -> nix::Result<Arc<Open>> {
        self.open.lock().expect("never poisoned: panics abort").get(&fh).cloned().ok_or(Errno::ESTALE)
    }

    pub(super) fn add(&self, nodes: &Nodes, node: &Arc<Node>, file: OwnedFd, is_dir: bool) -> nix::Result<u64> {
        let node_fd = nodes.fd(node)?;
        let cursor = is_dir.then(|| Mutex::new(DirCursor::default()));
        let open = Arc::new(Open { node: node.clone(), file, cursor, _node_fd: node_fd });
        let mut table = self.open.lock().expect("never poisoned: panics abort");
        if table.len() >= OPEN_FILES_MAX {
            return Err(Errno::ENFILE);
        }
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        table.insert(fh, open);
        Ok(fh)
    }

    pub(super) fn remove(&self, fh: u64) -> Option<Arc<Open>> {
        self.open.lock().expect("never poisoned: panics abort").remove(&fh)
    }
}

/// O_APPEND stays out: an fd that has it appends even what the near kernel writes back from a mapping, so it is asked
/// for write by write. O_DIRECT would want aligned buffers, and O_NONBLOCK means nothing to a regular file.
pub(super) fn native_flags(wire: u32) -> OFlag {
    let kept = wire & !(open_flags::APPEND | open_flags::DIRECT | open_flags::NONBLOCK);
    open_flags::from_wire(kept) | OFlag::O_CLOEXEC | OFlag::O_NOCTTY
}

impl Tree {
    pub(super) fn open(&self, h: &InHeader, mut d: Decoder<'_>) -> Served {
        let (flags, kill) = (d.u32()?, d.u32()?);
        let node = self.nodes.get(h.node)?;
        let fh = self.open_node(&node, flags, kill)?;
        opened(fh)
    }

    pub(super) fn open_node(&self, node: &Arc<Node>, flags: u32, kill: u32) -> nix::Result<u64> {
        // A device, FIFO or socket of the host is never opened: the near kernel opens its own.
        match node.kind {
            libc::S_IFREG => {}
            libc::S_IFDIR => return Err(Errno::EISDIR),
            libc::S_IFLNK => return Err(Errno::ELOOP),
            _ => return Err(Errno::EACCES),
        }
        let how = native_flags(flags & !open_flags::EXCL);
        let fd = self.nodes.fd(node)?;
        let file = {
            let _plain = (kill & abi::OPEN_KILL_SUIDGID != 0).then(WithoutFsetid::enter).transpose()?;
            self.nodes.spare(|| reopen(fd.as_fd(), how))?
        };
        self.files.add(&self.nodes, node, file, false)
    }

    pub(super) fn release(&self, mut d: Decoder<'_>) -> Served {
        let (fh, _, flags, _owner) = (d.u64()?, d.u32()?, d.u32()?, d.u64()?);
        let Some(open) = self.files.remove(fh) else { return empty() };
        self.locks.release_handle(open.node.id, fh);
        if flags & abi::RELEASE_FLOCK_UNLOCK != 0 {
            // A thread may still wait for another lock on this very file and keep it open.
            let _ = file::flock(open.file.as_fd(), libc::LOCK_UN);
        }
        empty()
    }

    /// close(2) of one of perhaps many fds: the owner's POSIX locks end here.
    pub(super) fn flush(&self, mut d: Decoder<'_>) -> Served {
        let (fh, _, _, owner) = (d.u64()?, d.u32()?, d.u32()?, d.u64()?);
        let open = self.files.get(fh)?;
        self.locks.release_owner(open.node.id, owner);
        empty()
    }

    pub(super) fn read(&self, mut d: Decoder<'_>) -> Served {
        let io = Io::decode(&mut d)?;
        let open = self.files.get(io.fh)?;
        let size = (io.size as usize).min(FILE_IO_MAX);
        let offset = i64::try_from(io.offset).map_err(|_| Errno::EINVAL)?;
        let mut reply = vec![0; PREFIX + size];
        let mut at = PREFIX;
        // A short count would be taken for the file's end.
        while at < reply.len() {
            let here = i64::try_from(at - PREFIX).ok().and_then(|n| offset.checked_add(n)).ok_or(Errno::EINVAL)?;
            match nix::sys::uio::pread(&open.file, &mut reply[at..], here) {
                Ok(0) => break,
                Ok(n) => at += n,
                Err(Errno::EINTR) => {}
                Err(_) if at > PREFIX => break,
                Err(e) => return Err(e.into()),
            }
        }
        reply.truncate(at);
        Ok(Answer::Reply(reply))
    }

    pub(super) fn write(&self, mut d: Decoder<'_>) -> Served {
        let io = Io::decode(&mut d)?;
        let data = d.raw(io.size as usize)?;
        let open = self.files.get(io.fh)?;
        let offset = i64::try_from(io.offset).map_err(|_| Errno::EINVAL)?;
        let _plain = (io.io_flags & abi::WRITE_KILL_SUIDGID != 0).then(WithoutFsetid::enter).transpose()?;
        let append = io.open_flags & open_flags::APPEND != 0 && io.io_flags & abi::WRITE_CACHE == 0;
        let written = loop {
            let done = if append {
                file::append(open.file.as_fd(), data)
            } else {
                nix::sys::uio::pwrite(&open.file, data, offset)
            };
            match done {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        let mut e = body();
        e.u32(u32::try_from(written).expect("not more than was asked")).u32(0);
        Ok(Answer::Reply(e.finish()))
    }

    pub(super) fn fsync(&self, mut d: Decoder<'_>) -> Served {
        let (fh, flags) = (d.u64()?, d.u32()?);
        let open = self.files.get(fh)?;
        if flags & abi::FSYNC_FDATASYNC != 0 {
            nix::unistd::fdatasync(&open.file)?;
        } else {
            nix::unistd::fsync(&open.file)?;
        }
        empty()
    }

    pub(super) fn fallocate(&self, mut d: Decoder<'_>) -> Served {
        let (fh, offset, length, mode) = (d.u64()?, d.u64()?, d.u64()?, d.u32()?);
        let open = self.files.get(fh)?;
        let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let length = i64::try_from(length).map_err(|_| Errno::EFBIG)?;
        let mode = FallocateFlags::from_bits_retain(i32::try_from(mode).map_err(|_| Errno::EOPNOTSUPP)?);
        nix::fcntl::fallocate(&open.file, mode, offset, length)?;
        empty()
    }

    /// SEEK_DATA and SEEK_HOLE; the near kernel does the others itself.
    pub(super) fn lseek(&self, mut d: Decoder<'_>) -> Served {
        let (fh, offset, whence) = (d.u64()?, d.u64()?, d.u32()?);
        let open = self.files.get(fh)?;
        let whence = match i32::try_from(whence) {
            Ok(libc::SEEK_DATA) => Whence::SeekData,
            Ok(libc::SEEK_HOLE) => Whence::SeekHole,
            _ => return Err(Errno::EINVAL.into()),
        };
        let found = nix::unistd::lseek64(&open.file, offset.cast_signed(), whence)?;
        let mut e = body();
        e.u64(found.cast_unsigned());
        Ok(Answer::Reply(e.finish()))
    }

    /// `wide`: COPY_FILE_RANGE_64, whose answer has room for more than 4 GiB.
    pub(super) fn copy_file_range(&self, mut d: Decoder<'_>, wide: bool) -> Served {
        let (from, from_offset, _node) = (d.u64()?, d.u64()?, d.u64()?);
        let (to, to_offset, len, flags) = (d.u64()?, d.u64()?, d.u64()?, d.u64()?);
        if flags != 0 {
            return Err(Errno::EINVAL.into());
        }
        let (from, to) = (self.files.get(from)?, self.files.get(to)?);
        let mut from_offset = i64::try_from(from_offset).map_err(|_| Errno::EINVAL)?;
        let mut to_offset = i64::try_from(to_offset).map_err(|_| Errno::EINVAL)?;
        let len = usize::try_from(len.min(COPY_RANGE_MAX)).expect("bounded");
        let copied =
            nix::fcntl::copy_file_range(&from.file, Some(&mut from_offset), &to.file, Some(&mut to_offset), len)?;
        let mut e = body();
        if wide {
            e.u64(copied as u64);
        } else {
            e.u32(u32::try_from(copied).expect("COPY_RANGE_MAX fits")).u32(0);
        }
        Ok(Answer::Reply(e.finish()))
    }
}

/// The near side adds what its kernel should do with the file.
pub(super) fn opened(fh: u64) -> Served {
    let mut e = body();
    e.u64(fh).u32(0).u32(0);
    Ok(Answer::Reply(e.finish()))
}
