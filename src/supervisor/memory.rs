//! The only memory beside the program's own: the plan as the daemon sealed it, and room for pointers into it.

use core::ptr;

/// A mapped plan. Unmapped when it is dropped.
pub(crate) struct Map {
    start: *mut libc::c_void,
    len: usize,
}

impl Map {
    /// Maps a memfd that nobody can change any more, and closes it. `None`: it is no such thing.
    pub(crate) fn of_sealed(fd: i32) -> Option<Self> {
        let needed = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
        // SAFETY: all zero is a value of a stat buffer, which fstat fills; a private mapping of a file that cannot shrink
        // can be read as long as it is there.
        unsafe {
            let seals = libc::fcntl(fd, libc::F_GET_SEALS);
            let mut stat: libc::stat = core::mem::zeroed();
            if seals == -1 || seals & needed != needed || libc::fstat(fd, &raw mut stat) == -1 {
                return None;
            }
            let len = usize::try_from(stat.st_size).ok().filter(|len| *len > 0)?;
            let start = libc::mmap(ptr::null_mut(), len, libc::PROT_READ, libc::MAP_PRIVATE, fd, 0);
            libc::close(fd);
            (start != libc::MAP_FAILED).then_some(Self { start, len })
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: mapped readable, of that length, and sealed against every change.
        unsafe { core::slice::from_raw_parts(self.start.cast(), self.len) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: it was mapped so, and nothing borrows it any more.
        unsafe { libc::munmap(self.start, self.len) };
    }
}

/// Room for `count` words of 8 bytes, all zero, that stays until the process ends or executes a program. `None`: ENOMEM.
pub(crate) fn words(count: usize) -> Option<&'static mut [usize]> {
    let len = count.checked_mul(size_of::<usize>()).filter(|len| *len > 0)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping that nobody else knows, aligned to a page, of that length, and never unmapped; zero is a value
    // of every number.
    unsafe {
        let start = libc::mmap(ptr::null_mut(), len, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
        if start == libc::MAP_FAILED {
            return None;
        }
        Some(core::slice::from_raw_parts_mut(start.cast(), count))
    }
}
