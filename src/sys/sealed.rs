//! Bytes for another process that nobody can change any more: a sealed memfd.

use std::ffi::CStr;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::errno::{Errno, OsResult, Step};

/// MFD_NOEXEC_SEAL, kernel 6.3: nobody may execute it. With vm.memfd_noexec=2 the kernel makes no other.
const NOEXEC_SEAL: MFdFlags = MFdFlags::from_bits_retain(0x8);

/// # Errors
/// The kernel's: no memory, or no fd.
pub fn memfd(name: &CStr, bytes: &[u8]) -> OsResult<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let made = match memfd_create(name, flags | NOEXEC_SEAL) {
        // An older kernel.
        Err(Errno::EINVAL) => memfd_create(name, flags),
        made => made,
    };
    let mut file = File::from(made.step("memfd_create")?);
    file.write_all(bytes).step("write a memfd")?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).step("F_ADD_SEALS")?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_can_change_it() {
        let mut file = File::from(memfd(c"test", b"bytes").unwrap());
        assert_eq!(file.write_all(b"x").unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(file.set_len(1).unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(file.metadata().unwrap().len(), 5);
    }
}
