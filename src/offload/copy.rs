//! Copies one entry of a list as it is: bytes with their holes, owner, mode, times, attributes, links.
//!
//! What is there already and equal is left alone, its ctime too; so a second run changes nothing, and an interrupted one
//! goes on where it stopped. A file gets its time last, so that one which was cut short never looks finished.

use std::collections::HashMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Whence, lseek};

use super::scan::{Entry, What};
use super::trouble::{Attempt, Trouble};
use super::wrapper;
use crate::errno::{Errno, Step};
use crate::sys::filemeta;

pub struct Copier<'a> {
    source: &'a Path,
    target: &'a Path,
    /// Where the first name of an inode with many names went.
    links: HashMap<(u64, u64), PathBuf>,
    pub changed: u64,
    /// Attributes that the target's file system does not take.
    pub attributes_lost: u64,
}

impl<'a> Copier<'a> {
    pub fn new(source: &'a Path, target: &'a Path) -> Self {
        Self { source, target, links: HashMap::new(), changed: 0, attributes_lost: 0 }
    }

    pub fn copy(&mut self, entry: &Entry) -> Attempt<()> {
        let (from, to) = (self.source.join(&entry.path), self.target.join(&entry.path));
        match entry.what {
            What::Dir => self.dir(&from, &to, &entry.meta),
            What::Symlink => self.symlink(&from, &to, &entry.meta),
            What::Node => self.node(&to, &entry.meta),
            What::File => self.file(&from, &to, &entry.meta),
            What::Wrapper => self.write(&to, &wrapper::text(&Path::new("/").join(&entry.path)), 0o755),
        }
    }

    /// Directories get their times when nothing more is put into them.
    pub fn finish_dir(&mut self, entry: &Entry) -> Attempt<()> {
        let to = self.target.join(&entry.path);
        let now = std::fs::symlink_metadata(&to).map_err(|e| Trouble::io("stat", &to, &e))?;
        if same_time(&now, &entry.meta) { Ok(()) } else { set_times(&to, &entry.meta) }
    }

    /// A file of our own making, left alone when it holds these bytes already.
    pub fn write(&mut self, to: &Path, bytes: &[u8], mode: u32) -> Attempt<()> {
        let there = std::fs::symlink_metadata(to).ok();
        if there.is_some_and(|m| m.is_file() && m.mode() & 0o7777 == mode)
            && std::fs::read(to).is_ok_and(|b| b == bytes)
        {
            return Ok(());
        }
        make_room(to)?;
        let failed = |e: std::io::Error| Trouble::io("write", to, &e);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(to).map_err(failed)?;
        file.write_all(bytes).map_err(failed)?;
        file.set_permissions(std::fs::Permissions::from_mode(mode)).map_err(failed)?;
        self.changed += 1;
        Ok(())
    }

    fn dir(&mut self, from: &Path, to: &Path, meta: &Metadata) -> Attempt<()> {
        match std::fs::symlink_metadata(to) {
            Ok(m) if m.is_dir() => {}
            Ok(_) => {
                return Err(Trouble::new(format!("{}: not a directory", to.display()), "remove it and run this again"));
            }
            Err(_) => {
                std::fs::create_dir(to).map_err(|e| Trouble::io("mkdir", to, &e))?;
                self.changed += 1;
            }
        }
        self.metadata(from, to, meta)
    }

    fn symlink(&mut self, from: &Path, to: &Path, meta: &Metadata) -> Attempt<()> {
        let leads = std::fs::read_link(from).map_err(|e| Trouble::io("readlink", from, &e))?;
        if std::fs::read_link(to).is_ok_and(|l| l == leads) {
            return Ok(());
        }
        make_room(to)?;
        std::os::unix::fs::symlink(&leads, to).map_err(|e| Trouble::io("symlink", to, &e))?;
        self.changed += 1;
        self.metadata(from, to, meta)?;
        set_times(to, meta)
    }

    fn node(&mut self, to: &Path, meta: &Metadata) -> Attempt<()> {
        if std::fs::symlink_metadata(to).is_ok_and(|m| m.file_type() == meta.file_type() && m.rdev() == meta.rdev()) {
            return Ok(());
        }
        make_room(to)?;
        let kind = meta.file_type();
        let flag = match () {
            () if kind.is_fifo() => SFlag::S_IFIFO,
            () if kind.is_char_device() => SFlag::S_IFCHR,
            () => SFlag::S_IFBLK,
        };
        mknod(to, flag, Mode::from_bits_truncate(meta.mode()), meta.rdev()).step_on("mknod", to.display())?;
        self.changed += 1;
        self.metadata(to, to, meta)
    }

    fn file(&mut self, from: &Path, to: &Path, meta: &Metadata) -> Attempt<()> {
        if meta.nlink() > 1 {
            match self.links.get(&(meta.dev(), meta.ino())) {
                Some(first) => {
                    let first = first.clone();
                    return self.hard_link(&first, to);
                }
                None => drop(self.links.insert((meta.dev(), meta.ino()), to.to_path_buf())),
            }
        }
        let there = std::fs::symlink_metadata(to).ok();
        if there.is_some_and(|m| m.is_file() && m.len() == meta.len() && same_time(&m, meta)) {
            return self.metadata(from, to, meta);
        }
        make_room(to)?;
        let input = File::open(from).map_err(|e| Trouble::io("open", from, &e))?;
        let output = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
        let output = output.map_err(|e| Trouble::io("create", to, &e))?;
        copy_bytes(&input, &output, meta.len()).map_err(|e| Trouble::io("copy to", to, &e))?;
        self.changed += 1;
        self.metadata(from, to, meta)?;
        set_times(to, meta)
    }

    fn hard_link(&mut self, first: &Path, to: &Path) -> Attempt<()> {
        let ids = |p: &Path| std::fs::symlink_metadata(p).map(|m| (m.dev(), m.ino())).ok();
        if ids(first).is_some() && ids(first) == ids(to) {
            return Ok(());
        }
        make_room(to)?;
        std::fs::hard_link(first, to).map_err(|e| Trouble::io("link", to, &e))?;
        self.changed += 1;
        Ok(())
    }

    /// Owner, attributes, mode: in an order in which none undoes another (chown clears set-uid and capabilities).
    fn metadata(&mut self, from: &Path, to: &Path, meta: &Metadata) -> Attempt<()> {
        let now = std::fs::symlink_metadata(to).map_err(|e| Trouble::io("stat", to, &e))?;
        let symlink = meta.is_symlink();
        let owned = (now.uid(), now.gid()) == (meta.uid(), meta.gid());
        if !owned {
            std::os::unix::fs::lchown(to, Some(meta.uid()), Some(meta.gid()))
                .map_err(|e| Trouble::io("chown", to, &e))?;
        }
        if from != to {
            self.attributes(from, to)?;
        }
        if !symlink && (!owned || now.mode() & 0o7777 != meta.mode() & 0o7777) {
            let mode = std::fs::Permissions::from_mode(meta.mode() & 0o7777);
            std::fs::set_permissions(to, mode).map_err(|e| Trouble::io("chmod", to, &e))?;
        }
        Ok(())
    }

    fn attributes(&mut self, from: &Path, to: &Path) -> Attempt<()> {
        for name in filemeta::xattr_names(from)? {
            let value = filemeta::xattr(from, &name)?;
            if filemeta::xattr(to, &name).is_ok_and(|v| v == value) {
                continue;
            }
            match filemeta::set_xattr(to, &name, &value) {
                Ok(()) => {}
                Err(e) if e.errno == Errno::EOPNOTSUPP => self.attributes_lost += 1,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

fn same_time(a: &Metadata, b: &Metadata) -> bool {
    (a.mtime(), a.mtime_nsec()) == (b.mtime(), b.mtime_nsec())
}

fn set_times(to: &Path, meta: &Metadata) -> Attempt<()> {
    let accessed = TimeSpec::new(meta.atime(), meta.atime_nsec());
    let modified = TimeSpec::new(meta.mtime(), meta.mtime_nsec());
    utimensat(AT_FDCWD, to, &accessed, &modified, UtimensatFlags::NoFollowSymlink)
        .step_on("utimensat", to.display())?;
    Ok(())
}

/// Takes away what is at `to`, unless it is a directory with something in it.
fn make_room(to: &Path) -> Attempt<()> {
    let removed = match std::fs::symlink_metadata(to) {
        Err(_) => return Ok(()),
        Ok(m) if m.is_dir() => std::fs::remove_dir(to),
        Ok(_) => std::fs::remove_file(to),
    };
    removed.map_err(|e| Trouble::io("remove", to, &e))
}

/// Data segment by segment, so that a hole stays one.
fn copy_bytes(mut input: &File, mut output: &File, length: u64) -> std::io::Result<()> {
    output.set_len(length)?;
    let mut at: i64 = 0;
    loop {
        let start = match lseek(input, at, Whence::SeekData) {
            Ok(start) => start,
            Err(Errno::ENXIO) => return Ok(()),
            // A file system without holes: all of it is data.
            Err(Errno::EINVAL) => 0,
            Err(e) => return Err(e.into()),
        };
        let end = lseek(input, start, Whence::SeekHole).unwrap_or_else(|_| i64::try_from(length).unwrap_or(i64::MAX));
        let (from, count) = (u64::try_from(start).unwrap_or(0), u64::try_from(end - start).unwrap_or(0));
        input.seek(SeekFrom::Start(from))?;
        output.seek(SeekFrom::Start(from))?;
        std::io::copy(&mut std::io::Read::take(input, count), &mut output)?;
        at = end;
        if count == 0 {
            return Ok(());
        }
    }
}
