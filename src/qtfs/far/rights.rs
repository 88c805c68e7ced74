//! What each request of the file wire needs, in one table: the right to write, and a section of /etc/qtfs/whitelist.
//!
//! ```text
//!   opcode ──needs──▶ not in the table: ENOSYS     its section is allowed nowhere here: EACCES
//!                     it changes something, and the peer may only read: EROFS; of a lock: EBADF
//! ```
//!
//! `Session::dispatch` asks before it looks at anything else, and serves no opcode that is not in the table. So a new one
//! has to say here what it needs, and a handler has no check of its own that could be forgotten.

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::files::native_flags;
use super::tree::{Fault, Tree};
use crate::policy::FsOp;
use crate::qtfs::abi::{self, Lock, op};
use crate::sys::file::access_mode;
use crate::wire::codec::Decoder;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writes {
    Never,
    Always,
    /// If its open flags ask for it.
    Opening,
    /// A lock that keeps others from the file.
    Locking,
}

/// `None`: not served. The kernel stops asking, and does without or does it itself.
fn needs(opcode: u32) -> Option<(Writes, Option<FsOp>)> {
    use Writes::{Always, Locking, Never, Opening};
    Some(match opcode {
        op::LOOKUP | op::GETATTR | op::STATX | op::READLINK | op::STATFS | op::GETXATTR | op::LISTXATTR => {
            (Never, None)
        }
        op::READ | op::LSEEK => (Never, Some(FsOp::Read)),
        op::OPENDIR | op::READDIR | op::READDIRPLUS => (Never, Some(FsOp::Readdir)),
        // What was written is written; to have it on the disk earlier changes nothing.
        op::FSYNC | op::FSYNCDIR => (Never, None),
        op::RELEASE | op::RELEASEDIR | op::FLUSH | op::FORGET | op::BATCH_FORGET | op::INTERRUPT => (Never, None),
        op::OPEN => (Opening, Some(FsOp::Open)),
        op::CREATE | op::TMPFILE | op::MKNOD | op::SYMLINK | op::LINK => (Always, Some(FsOp::Create)),
        op::MKDIR => (Always, Some(FsOp::Mkdir)),
        op::RMDIR => (Always, Some(FsOp::Rmdir)),
        op::UNLINK => (Always, Some(FsOp::Unlink)),
        op::RENAME | op::RENAME2 => (Always, Some(FsOp::Rename)),
        op::WRITE | op::FALLOCATE | op::COPY_FILE_RANGE | op::COPY_FILE_RANGE_64 => (Always, Some(FsOp::Write)),
        op::SETATTR => (Always, Some(FsOp::Setattr)),
        op::SETXATTR | op::REMOVEXATTR => (Always, Some(FsOp::Setxattr)),
        op::GETLK => (Never, None),
        op::SETLK | op::SETLKW => (Locking, None),
        _ => return None,
    })
}

impl Tree {
    /// Whether the request may be served; `body` is what is behind its header.
    pub(super) fn permit(&self, opcode: u32, mut body: Decoder<'_>) -> Result<(), Fault> {
        let (writes, section) = needs(opcode).ok_or(Errno::ENOSYS)?;
        if section.is_some_and(|section| self.without.contains(section)) {
            return Err(Errno::EACCES.into());
        }
        match writes {
            Writes::Never => Ok(()),
            Writes::Always => Ok(self.writable()?),
            Writes::Opening => {
                let how = native_flags(body.u32()?);
                let writes = how.intersects(OFlag::O_WRONLY | OFlag::O_RDWR | OFlag::O_TRUNC);
                if writes { Ok(self.writable()?) } else { Ok(()) }
            }
            Writes::Locking => self.permit_lock(&Lock::decode(&mut body)?),
        }
    }

    /// As the kernel checks the fd of fcntl(2), which a peer without one leaves out. flock(2) asks no local fd for more
    /// than to be open; but a peer that may only read must not keep the host's programs out, so it takes no exclusive
    /// one, as on NFS and CIFS.
    fn permit_lock(&self, lock: &Lock) -> Result<(), Fault> {
        let open = self.files.get(lock.fh)?;
        let needed = match (i32::try_from(lock.kind), lock.flags & abi::LK_FLOCK != 0) {
            (Ok(libc::F_WRLCK), true) if self.read_only => return Err(Errno::EBADF.into()),
            (_, true) => return Ok(()),
            (Ok(libc::F_WRLCK), false) => [OFlag::O_WRONLY, OFlag::O_RDWR],
            (Ok(libc::F_RDLCK), false) => [OFlag::O_RDONLY, OFlag::O_RDWR],
            _ => return Ok(()),
        };
        if needed.contains(&access_mode(&open.file)?) { Ok(()) } else { Err(Errno::EBADF.into()) }
    }
}
