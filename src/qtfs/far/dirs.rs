//! OPENDIR, READDIR, READDIRPLUS.
//!
//! An offset is the directory's own d_off, so a listing goes on rightly while files come and go. What one getdents64
//! brought and the reply had no room for is kept for the next request, if that one goes on where this one stopped.

use std::ffi::CString;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::Whence;

use super::files::{Open, opened};
use super::tree::{Answer, PREFIX, Served, Tree, body};
use crate::limits::FILE_IO_MAX;
use crate::qtfs::abi::{self, InHeader, Io};
use crate::sys::file;
use crate::sys::file::reopen;
use crate::wire::codec::{Decoder, Encoder};

const BATCH: usize = 32 << 10;
/// d_ino, d_off, d_reclen, d_type in front of the name.
const RECORD: usize = 19;

#[derive(Debug, Default)]
pub(super) struct DirCursor {
    batch: Vec<u8>,
    at: usize,
    /// The d_off of the entry before `at`.
    offset: u64,
}

struct Record {
    ino: u64,
    next: u64,
    kind: u8,
    name: CString,
}

impl DirCursor {
    fn seek(&mut self, open: &Open, offset: u64) -> nix::Result<()> {
        // Offset 0 is a rewind, which shows what has changed.
        if offset != self.offset || offset == 0 {
            nix::unistd::lseek64(&open.file, offset.cast_signed(), Whence::SeekSet)?;
            self.batch.clear();
            self.at = 0;
            self.offset = offset;
        }
        Ok(())
    }

    /// The next entry, not yet consumed, and how long its record is.
    fn peek(&mut self, open: &Open) -> nix::Result<Option<(Record, usize)>> {
        if self.at == self.batch.len() {
            self.batch.resize(BATCH, 0);
            let got = file::getdents(open.file.as_fd(), &mut self.batch);
            self.at = 0;
            self.batch.truncate(*got.as_ref().unwrap_or(&0));
            if got? == 0 {
                return Ok(None);
            }
        }
        parse(&self.batch[self.at..]).map(Some).ok_or(Errno::EIO)
    }

    fn consume(&mut self, record: &Record, len: usize) {
        self.at += len;
        self.offset = record.next;
    }
}

/// One `struct linux_dirent64`.
fn parse(bytes: &[u8]) -> Option<(Record, usize)> {
    let ino = u64::from_ne_bytes(*bytes.first_chunk()?);
    let next = u64::from_ne_bytes(*bytes.get(8..)?.first_chunk()?);
    let len = usize::from(u16::from_ne_bytes(*bytes.get(16..)?.first_chunk()?));
    let kind = *bytes.get(18)?;
    let name = bytes.get(RECORD..len)?;
    let end = name.iter().position(|b| *b == 0)?;
    Some((Record { ino, next, kind, name: CString::new(&name[..end]).ok()? }, len))
}

impl Tree {
    pub(super) fn opendir(&self, h: &InHeader) -> Served {
        let node = self.nodes.get(h.node)?;
        if node.kind != libc::S_IFDIR {
            return Err(Errno::ENOTDIR.into());
        }
        let fd = self.nodes.fd(&node)?;
        let file = self.nodes.spare(|| reopen(fd.as_fd(), OFlag::O_RDONLY | OFlag::O_DIRECTORY))?;
        opened(self.files.add(&self.nodes, &node, file, true)?)
    }

    pub(super) fn readdir(&self, mut d: Decoder<'_>, plus: bool) -> Served {
        let io = Io::decode(&mut d)?;
        let open = self.files.get(io.fh)?;
        let Some(cursor) = &open.cursor else { return Err(Errno::ENOTDIR.into()) };
        let mut cursor = cursor.lock().expect("never poisoned: panics abort");
        cursor.seek(&open, io.offset)?;
        let room = PREFIX + (io.size as usize).min(FILE_IO_MAX);
        let mut e = body();
        loop {
            let (record, len) = match cursor.peek(&open) {
                Ok(Some(found)) => found,
                Ok(None) => break,
                // What came before the error is told first.
                Err(_) if e.len() > PREFIX => break,
                Err(error) => return Err(error.into()),
            };
            if e.len() + abi::dirent_len(record.name.to_bytes(), plus) > room {
                break;
            }
            if plus {
                self.plus(&mut e, &open, &record);
            }
            abi::dirent(&mut e, record.ino, record.next, record.kind, record.name.to_bytes());
            cursor.consume(&record, len);
        }
        Ok(Answer::Reply(e.finish()))
    }

    /// The entry's node, which counts as a lookup; all zeroes is "look it up when you need it".
    fn plus(&self, e: &mut Encoder, open: &Open, record: &Record) {
        // A host socket's first LOOKUP makes its alias, so it must happen.
        let skip = matches!(record.name.to_bytes(), b"." | b"..") || record.kind == libc::DT_SOCK;
        let found = (!skip).then(|| {
            let dir = self.nodes.fd(&open.node)?;
            let fd = self.nodes.child(&dir, &record.name)?;
            self.nodes.intern(fd, &open.node, &record.name)
        });
        match found {
            Some(Ok((node, stat))) => abi::entry(e, node.id, &stat, node.ino),
            None | Some(Err(_)) => {
                e.raw(&[0; abi::ENTRY]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cut_of_a_record_is_refused() {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&7u64.to_ne_bytes());
        bytes.extend_from_slice(&9u64.to_ne_bytes());
        bytes.extend_from_slice(&24u16.to_ne_bytes());
        bytes.push(libc::DT_REG);
        bytes.extend_from_slice(b"name\0");
        let (record, len) = parse(&bytes).unwrap();
        assert_eq!((record.ino, record.next, record.name.as_c_str(), len), (7, 9, c"name", 24));
        for cut in 0..bytes.len() {
            assert!(parse(&bytes[..cut]).is_none(), "cut at {cut}");
        }
    }
}
