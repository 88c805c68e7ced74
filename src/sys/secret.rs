//! A secret in pages of its own: never swapped out, in no core dump, in no forked child, cleared when it goes.

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Once;

use zeroize::Zeroize as _;

use crate::errno::{Errno, OsError, OsResult};

/// Bytes that are read and never changed.
pub struct Secret {
    /// Of a mapping of our own.
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its memory, which nobody writes while it is shared.
unsafe impl Send for Secret {}
// SAFETY: as above.
unsafe impl Sync for Secret {}

impl Secret {
    /// A copy of `bytes`; the caller clears its own. Where mlock(2) or an madvise(2) says no, the rest is done all the same,
    /// and a log line says so once.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn copy_of(bytes: &[u8]) -> OsResult<Self> {
        let len = bytes.len();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address of the kernel's choice. It has at least one byte.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len.max(1), protection, flags, -1, 0) };
        let Some(start) = NonNull::new(start.cast::<u8>()).filter(|_| start != libc::MAP_FAILED) else {
            return Err(OsError::last("mmap"));
        };
        let secret = Self { start, len };
        // Before the first byte of it is there.
        secret.keep_in();
        // SAFETY: the mapping is ours alone, writable, and of that length.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start.as_ptr(), len) };
        Ok(secret)
    }

    fn keep_in(&self) {
        static ONCE: Once = Once::new();
        let (start, len) = (self.start.as_ptr().cast(), self.len.max(1));
        // SAFETY: three calls on the mapping, which change none of its bytes.
        let answers = unsafe {
            [
                ("MADV_DONTDUMP", libc::madvise(start, len, libc::MADV_DONTDUMP)),
                ("MADV_WIPEONFORK", libc::madvise(start, len, libc::MADV_WIPEONFORK)),
                ("mlock", libc::mlock(start, len)),
            ]
        };
        let errno = Errno::last();
        if let Some((call, _)) = answers.iter().rev().find(|(_, answer)| *answer == -1) {
            ONCE.call_once(|| tracing::warn!("a key is less protected in memory than it could be: {call}: {errno}"));
        }
    }
}

impl Deref for Secret {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is readable, of that length, and nobody writes to it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone, and nobody borrows it any more. Unmapping it unlocks it.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len).zeroize();
            libc::munmap(self.start.as_ptr().cast(), self.len.max(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// VmFlags of the mapping, proc_pid_smaps(5).
    fn flags_of(secret: &Secret) -> String {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let at = secret.start.as_ptr() as usize;
        // Neighbours that are alike are one mapping.
        let is_head = |line: &str| {
            let (from, rest) = line.split_once('-')?;
            let number = |text| usize::from_str_radix(text, 16).ok();
            Some((number(from)?..number(rest.split_once(' ')?.0)?).contains(&at))
        };
        let own = smaps.lines().skip_while(|line| is_head(line) != Some(true));
        own.into_iter().find_map(|line| line.strip_prefix("VmFlags:")).expect("its mapping").to_owned()
    }

    #[test]
    fn it_is_locked_and_in_no_core_and_in_no_fork() {
        let secret = Secret::copy_of(b"a key").unwrap();
        assert_eq!(*secret, *b"a key");
        let flags = flags_of(&secret);
        for flag in ["lo", "dd", "wf"] {
            assert!(flags.split_whitespace().any(|f| f == flag), "{flag}: {flags}");
        }
    }

    #[test]
    fn nothing_is_a_secret_too() {
        assert_eq!(*Secret::copy_of(b"").unwrap(), *b"");
    }
}
