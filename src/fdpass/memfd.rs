//! memfds: copied, sealed, and only then delivered.
//!
//! A memfd is memory that its holders share, and memory does not cross. What crosses is its content at the time of the
//! message, which is what the receiver of a sealed one may rely on.

use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::unistd::{Whence, lseek};

use super::{Described, Keeps, Pump, Rebuilt};
use crate::errno::{Errno, OsError, OsResult, Step};
use crate::limits::MEMFD_MAX;
use crate::stream::Kind;
use crate::sys::file;
use crate::wire::recipe::{Access, Recipe, Seals};

fn flags_of(seals: Seals) -> SealFlag {
    let flag = |on: bool, flag: SealFlag| if on { flag } else { SealFlag::empty() };
    flag(seals.seal, SealFlag::F_SEAL_SEAL)
        | flag(seals.shrink, SealFlag::F_SEAL_SHRINK)
        | flag(seals.grow, SealFlag::F_SEAL_GROW)
        | flag(seals.write, SealFlag::F_SEAL_WRITE)
        | flag(seals.future_write, FUTURE_WRITE)
}

fn seals_of(fd: &OwnedFd) -> OsResult<Seals> {
    let set = SealFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GET_SEALS).step("F_GET_SEALS")?);
    Ok(Seals {
        seal: set.contains(SealFlag::F_SEAL_SEAL),
        shrink: set.contains(SealFlag::F_SEAL_SHRINK),
        grow: set.contains(SealFlag::F_SEAL_GROW),
        write: set.contains(SealFlag::F_SEAL_WRITE),
        future_write: set.contains(FUTURE_WRITE),
    })
}

/// F_SEAL_FUTURE_WRITE, kernel 5.1; nix has no name for it.
const FUTURE_WRITE: SealFlag = SealFlag::from_bits_retain(0x10);

/// Whether the regular file is a memfd: only those and tmpfs files have seals, and only memfds have this name.
pub(super) fn is_one(fd: &OwnedFd) -> bool {
    file::name_of(fd.as_fd()).is_some_and(|name| name.as_os_str().as_encoded_bytes().starts_with(b"/memfd:"))
        && fcntl(fd, FcntlArg::F_GET_SEALS).is_ok()
}

/// The same memory through an open file of its own, so that nobody's offset moves.
fn again(fd: &OwnedFd, flags: OFlag) -> OsResult<OwnedFd> {
    file::reopen(fd.as_fd(), flags).step("open a memfd again")
}

pub(super) fn describe(fd: &OwnedFd, access: Access) -> OsResult<Described> {
    let len = u64::try_from(fstat(fd).step("fstat")?.st_size).expect("a size");
    if len > MEMFD_MAX {
        return Err(OsError::on("carry", format!("a memfd of {len} bytes, above {MEMFD_MAX}"), Errno::EOPNOTSUPP));
    }
    let offset = u64::try_from(lseek(fd, 0, Whence::SeekCur).step("lseek")?).expect("an offset");
    let recipe = Recipe::Memfd { stream: 0, access, len, offset, seals: seals_of(fd)? };
    let pump = Pump::new(again(fd, OFlag::O_RDONLY)?, Kind::Source);
    Ok(Described { recipe, pump: Some(pump) })
}

pub(super) fn rebuild(stream: u32, access: Access, len: u64, offset: u64, seals: Seals) -> OsResult<Rebuilt> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let made = memfd_create(c"farside", flags).step("memfd_create")?;
    let ours = again(&made, OFlag::O_WRONLY)?;
    let fd = if access.write { made } else { again(&made, OFlag::O_RDONLY)? };
    lseek(&fd, i64::try_from(offset).map_err(|_| OsError::new("lseek", Errno::EINVAL))?, Whence::SeekSet)
        .step("lseek")?;
    let keeps = Keeps::Fill(Box::new(Fill { len, come: 0, seals: flags_of(seals) }));
    Ok(Rebuilt { fd, refusal: None, pump: Some((stream, Pump { fd: ours, kind: Kind::Fill, keeps })) })
}

/// What makes a copied memfd whole.
#[derive(Debug)]
pub struct Fill {
    len: u64,
    /// Bytes that have come.
    come: u64,
    seals: SealFlag,
}

impl Fill {
    /// So many more bytes have come. EFBIG: more than were said.
    pub fn take_in(&mut self, count: usize) -> Result<(), Errno> {
        self.come += count as u64;
        if self.come > self.len { Err(Errno::EFBIG) } else { Ok(()) }
    }

    /// All bytes have come: seals it.
    ///
    /// # Errors
    /// EIO when they are not as many as were said.
    pub fn finish(&self, fd: &impl AsFd) -> OsResult<()> {
        let len = u64::try_from(fstat(fd).step("fstat")?.st_size).expect("a size");
        if len != self.len {
            return Err(OsError::on("copy", format!("a memfd: {len} of {} bytes", self.len), Errno::EIO));
        }
        if !self.seals.is_empty() {
            fcntl(fd, FcntlArg::F_ADD_SEALS(self.seals)).step("F_ADD_SEALS")?;
        }
        Ok(())
    }
}
