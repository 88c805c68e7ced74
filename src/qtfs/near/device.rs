//! /dev/fuse: how the mount is made, and the answers that need no far side.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::mount::MsFlags;

use crate::errno::{OsResult, Step, errno_of};
use crate::limits::FILE_IO_MAX;
use crate::qtfs::abi::{OutHeader, fopen, init};
use crate::wire::codec::{Decoder, Encoder};
use crate::wire::{WireResult, bad};

/// The oldest FUSE spoken here is Linux 5.4's.
const MINOR_MIN: u32 = 31;
/// What this file's structs are up to.
const MINOR: u32 = 41;
/// Requests that the kernel may keep going in the background (readahead, write-back, O_DIRECT pieces).
const BACKGROUND: u16 = 64;

const WANTED: u64 = init::ASYNC_READ
    | init::POSIX_LOCKS
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::DONT_MASK
    | init::FLOCK_LOCKS
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::POSIX_ACL
    | init::MAX_PAGES
    | init::HANDLE_KILLPRIV_V2
    | init::SETXATTR_EXT
    | init::INIT_EXT
    | init::DIRECT_IO_ALLOW_MMAP;

#[derive(Debug)]
pub(super) struct Device {
    file: File,
    /// Every read and write goes to the host: the kernel can do so and still map files.
    direct: AtomicBool,
}

impl Device {
    pub(super) fn open() -> OsResult<Self> {
        let file = File::options().read(true).write(true).open("/dev/fuse").step_on("open", "/dev/fuse")?;
        Ok(Self { file, direct: AtomicBool::new(false) })
    }

    /// mount(2). `mode` is the root's.
    ///
    /// The kernel checks permissions itself (`default_permissions`), with what only it knows: the caller's groups and
    /// capabilities, so that CAP_DAC_OVERRIDE works for QEMU's user as on a local disk. It is also what keeps a caller
    /// who may not write to a socket from connecting to it.
    pub(super) fn mount(&self, source: &Path, target: &Path, mode: u32, flags: MsFlags) -> OsResult<()> {
        let fd = self.file.as_raw_fd();
        let data = format!("fd={fd},rootmode={mode:o},user_id=0,group_id=0,default_permissions,allow_other");
        nix::mount::mount(Some(source), target, Some("fuse.qtfs"), flags, Some(data.as_str()))
            .step_on("mount", target.display())
    }

    /// The next request, at the front of `buf`; `None` when the mount is gone, or at a signal if `over` says so.
    pub(super) fn read(&self, buf: &mut [u8], over: &AtomicBool) -> OsResult<Option<usize>> {
        loop {
            match (&self.file).read(buf) {
                Ok(n) => return Ok(Some(n)),
                Err(e) => match errno_of(&e) {
                    // A request was interrupted before it was read.
                    Errno::ENOENT | Errno::EINTR | Errno::EAGAIN if !over.load(Ordering::Acquire) => {}
                    Errno::ENOENT | Errno::EINTR | Errno::EAGAIN | Errno::ENODEV => return Ok(None),
                    _ => return Err(e).step("read /dev/fuse"),
                },
            }
        }
    }

    /// Hands the kernel a whole reply. One that it refuses is the far side's mistake: the program that waits gets EIO.
    pub(super) fn reply(&self, frame: &[u8]) {
        if let Err(e) = self.write(frame) {
            tracing::warn!("the kernel refused a reply of {} bytes: {}", frame.len(), e.desc());
            if let Ok((header, _)) = OutHeader::decode(frame) {
                self.fail(header.unique, Errno::EIO);
            }
        }
    }

    pub(super) fn fail(&self, unique: u64, errno: Errno) {
        if let Err(e) = self.write(&OutHeader::encode(unique, -(errno as i32), &[])) {
            tracing::error!("the kernel refused {errno:?} as a reply: {}", e.desc());
        }
    }

    fn write(&self, frame: &[u8]) -> nix::Result<()> {
        match nix::unistd::write(&self.file, frame) {
            // The request was aborted meanwhile, or the mount is gone.
            Ok(_) | Err(Errno::ENOENT | Errno::ENODEV) => Ok(()),
            Err(e) => Err(e),
        }
    }

    pub(super) fn answer(&self, unique: u64, body: &[u8]) {
        self.reply(&OutHeader::encode(unique, 0, body));
    }

    /// INIT's answer.
    pub(super) fn negotiate(&self, d: &mut Decoder<'_>) -> WireResult<Vec<u8>> {
        let (major, minor, readahead, low) = (d.u32()?, d.u32()?, d.u32()?, d.u32()?);
        if major != 7 || minor < MINOR_MIN {
            bad!("this kernel speaks FUSE {major}.{minor}; 7.{MINOR_MIN} (Linux 5.4) is the oldest that will do");
        }
        let mut offered = u64::from(low);
        if offered & init::INIT_EXT != 0 {
            offered |= u64::from(d.u32()?) << 32;
        }
        let granted = offered & WANTED;
        self.direct.store(granted & init::DIRECT_IO_ALLOW_MMAP != 0, Ordering::Release);
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
        let page = page.and_then(|p| usize::try_from(p).ok()).unwrap_or(4096);
        let pages = u16::try_from((FILE_IO_MAX / page).max(1)).expect("256 at most");
        let half = |word: u64| u32::try_from(word & u64::from(u32::MAX)).expect("masked");
        let mut e = Encoder::new();
        e.u32(7).u32(MINOR.min(minor)).u32(readahead).u32(half(granted));
        e.u16(BACKGROUND).u16(BACKGROUND * 3 / 4);
        e.u32(u32::try_from(FILE_IO_MAX).expect("1 MiB")).u32(1).u16(pages).u16(0).u32(half(granted >> 32));
        e.raw(&[0; 28]);
        Ok(e.finish())
    }

    /// What the kernel is told about a file that it has just opened.
    pub(super) fn open_answer(&self) -> u32 {
        // Without DIRECT_IO the page cache is checked against size and time at each read (AUTO_INVAL_DATA).
        if self.direct.load(Ordering::Acquire) { fopen::DIRECT_IO | fopen::PARALLEL_DIRECT_WRITES } else { 0 }
    }
}
