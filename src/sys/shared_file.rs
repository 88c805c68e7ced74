//! A regular file that is read and written at the position which all holders of the open file share.
//!
//! Only read(2) and write(2) keep that position right. io_uring with offset -1 moves it when an operation completes at
//! once, and leaves it where the file system completes the operation later: always for FUSE files with direct I/O, and for
//! O_DIRECT on most others (io_uring/rw.c: only `kiocb_done` sets `f_pos`, and an operation that returned -EIOCBQUEUED does
//! not come by there). The same bytes are then read for ever, and each write overwrites the one before. A ring does not
//! take `f_pos_lock` either, so two writers of one open file could write to the same place on any file system.
//!
//! The calls may wait for a disk or for a FUSE server, so a helper thread makes them.

use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Whence, lseek, read, write};

use super::file;
use crate::errno::{Errno, OsResult, Step};

#[derive(Debug)]
pub struct SharedFile {
    fd: OwnedFd,
    /// The file without O_DIRECT, whose buffers must be aligned and whose writes must be whole blocks.
    buffered: Option<OwnedFd>,
}

impl SharedFile {
    /// # Errors
    /// EMFILE and the like.
    pub fn new(fd: OwnedFd) -> OsResult<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL).step("F_GETFL")?);
        let buffered = if flags.contains(OFlag::O_DIRECT) {
            let same = flags & (OFlag::O_ACCMODE | OFlag::O_APPEND | OFlag::O_SYNC | OFlag::O_DSYNC);
            Some(file::reopen(fd.as_fd(), same).step("open a file without O_DIRECT")?)
        } else {
            None
        };
        Ok(Self { fd, buffered })
    }

    /// At most `max` bytes from the shared position on; none at the file's end.
    ///
    /// # Errors
    /// read(2)'s.
    pub fn read(&self, max: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; max];
        let count = self.at_position(|file| uninterrupted(|| read(file, &mut bytes)))?;
        bytes.truncate(count);
        Ok(bytes)
    }

    /// All of `bytes`, at the shared position or, with O_APPEND, at the end.
    ///
    /// # Errors
    /// write(2)'s; what was written before the error stays.
    pub fn write_all(&self, mut bytes: &[u8]) -> Result<(), Errno> {
        while !bytes.is_empty() {
            let count = self.at_position(|file| uninterrupted(|| write(file, bytes)))?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    fn at_position(&self, step: impl FnOnce(&OwnedFd) -> Result<usize, Errno>) -> Result<usize, Errno> {
        let Some(buffered) = &self.buffered else { return step(&self.fd) };
        lseek(buffered, lseek(&self.fd, 0, Whence::SeekCur)?, Whence::SeekSet)?;
        let count = step(buffered)?;
        lseek(&self.fd, lseek(buffered, 0, Whence::SeekCur)?, Whence::SeekSet)?;
        Ok(count)
    }
}

fn uninterrupted(mut call: impl FnMut() -> Result<usize, Errno>) -> Result<usize, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::io::{Read, Seek, Write};
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    fn shared(file: &File) -> SharedFile {
        SharedFile::new(file.try_clone().unwrap().into()).unwrap()
    }

    #[test]
    fn the_position_is_everybodys_with_o_direct_too() {
        let dir = crate::sys::tempdir::PrivateDir::new("shared-file").unwrap();
        for (name, flags) in [("plain", 0), ("direct", libc::O_DIRECT)] {
            let path = dir.path().join(name);
            std::fs::write(&path, b"0123456789").unwrap();
            let mut options = OpenOptions::new();
            let mut file = options.read(true).write(true).custom_flags(flags).open(&path).unwrap();
            file.seek(std::io::SeekFrom::Start(2)).unwrap();
            let ours = shared(&file);
            assert_eq!(ours.read(3).unwrap(), b"234", "{name}");
            assert_eq!(file.stream_position().unwrap(), 5, "{name}");
            file.seek(std::io::SeekFrom::Start(8)).unwrap();
            ours.write_all(b"abc").unwrap();
            assert_eq!(file.stream_position().unwrap(), 11, "{name}");
            assert_eq!(ours.read(9).unwrap(), b"", "{name}: the end");
            assert_eq!(std::fs::read(&path).unwrap(), b"01234567abc", "{name}");
        }
    }

    #[test]
    fn an_append_goes_to_the_end_wherever_the_position_is() {
        let dir = crate::sys::tempdir::PrivateDir::new("shared-file").unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, b"one\n").unwrap();
        let file = OpenOptions::new().append(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
        let ours = shared(&file);
        ours.write_all(b"two\n").unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"three\n").unwrap();
        ours.write_all(b"four\n").unwrap();
        let mut text = String::new();
        File::open(&path).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "one\ntwo\nthree\nfour\n");
    }
}
