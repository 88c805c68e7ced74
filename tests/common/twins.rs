//! The same random operations on two directories: each must answer alike, and both must look alike in the end.

#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use farside::sys::file;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, OFlag, RenameFlags};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, Whence};

pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
}

/// An operation's result as text: what it gave, or its errno.
type Said = String;

fn said<T: std::fmt::Debug>(r: nix::Result<T>) -> Said {
    match r {
        Ok(v) => format!("{v:?}"),
        Err(e) => format!("{e:?}"),
    }
}

fn said_io<T: std::fmt::Debug>(r: std::io::Result<T>) -> Said {
    said(r.map_err(|e| farside::errno::errno_of(&e)))
}

#[derive(Debug, Clone)]
enum Op {
    Open { path: String, flags: OFlag, mode: u32, slot: usize },
    Close { slot: usize },
    Read { slot: usize, at: u64, len: usize },
    Write { slot: usize, at: u64, len: usize, byte: u8 },
    Append { slot: usize, len: usize, byte: u8 },
    Resize { slot: usize, to: i64 },
    Stat { slot: usize },
    Allocate { slot: usize, mode: FallocateFlags, at: i64, len: i64 },
    Seek { slot: usize, at: i64, whence: Whence },
    Copy { from: usize, to: usize, at: i64, to_at: i64, len: usize },
    Sync { slot: usize },
    Path(PathOp, String),
    Two(TwoOp, String, String),
}

#[derive(Debug, Clone, Copy)]
enum PathOp {
    Stat,
    Mkdir(u32),
    Rmdir,
    Unlink,
    Readlink,
    Chmod(u32),
    Chown(u32, u32),
    Truncate(i64),
    Times(i64),
    List,
    Fifo,
    SetXattr(u8),
    GetXattr,
    RemoveXattr,
    ListXattr,
    Whole,
}

#[derive(Debug, Clone, Copy)]
enum TwoOp {
    Rename(u32),
    Link,
    Symlink,
}

const NAMES: [&str; 5] = ["a", "b", "c", "d0", "d1"];
const SLOTS: usize = 4;
const BIG: u64 = 300_000;

fn path(rng: &mut Rng) -> String {
    match rng.below(8) {
        0..4 => rng.pick(&NAMES).into(),
        4..7 => format!("{}/{}", rng.pick(&NAMES), rng.pick(&NAMES)),
        _ => format!("{}/{}/{}", rng.pick(&NAMES), rng.pick(&NAMES), rng.pick(&NAMES)),
    }
}

fn int(rng: &mut Rng, n: u64) -> i64 {
    i64::try_from(rng.below(n)).unwrap()
}

fn random(rng: &mut Rng) -> Op {
    let slot = usize::try_from(rng.below(SLOTS as u64)).unwrap();
    let byte = u8::try_from(rng.below(256)).unwrap();
    let len = usize::try_from(rng.below(BIG)).unwrap();
    match rng.below(40) {
        0..8 => {
            let mut flags = rng.pick(&[OFlag::O_RDONLY, OFlag::O_WRONLY, OFlag::O_RDWR, OFlag::O_RDWR]);
            for extra in
                [OFlag::O_CREAT, OFlag::O_CREAT, OFlag::O_EXCL, OFlag::O_TRUNC, OFlag::O_APPEND, OFlag::O_NOFOLLOW]
            {
                if rng.below(3) == 0 {
                    flags |= extra;
                }
            }
            Op::Open {
                path: path(rng),
                flags: flags | OFlag::O_NONBLOCK,
                mode: rng.pick(&[0o644, 0o600, 0o4755]),
                slot,
            }
        }
        8 => Op::Close { slot },
        9..11 => Op::Read { slot, at: rng.below(BIG), len },
        11..14 => Op::Write { slot, at: rng.below(BIG), len, byte },
        14 => Op::Append { slot, len: len / 10, byte },
        15 => Op::Resize { slot, to: int(rng, BIG) },
        16 => Op::Stat { slot },
        17 => {
            let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let mode = rng.pick(&[FallocateFlags::empty(), keep, keep | FallocateFlags::FALLOC_FL_PUNCH_HOLE]);
            Op::Allocate { slot, mode, at: int(rng, BIG), len: int(rng, BIG) }
        }
        18 => {
            Op::Seek { slot, at: int(rng, BIG), whence: if byte < 128 { Whence::SeekData } else { Whence::SeekHole } }
        }
        19 => Op::Copy { from: slot, to: (slot + 1) % SLOTS, at: int(rng, BIG), to_at: int(rng, BIG), len },
        20 => Op::Sync { slot },
        21..25 => {
            let op = match rng.below(6) {
                0..3 => TwoOp::Rename(rng.pick(&[0, 0, 1, 2])),
                3 => TwoOp::Symlink,
                _ => TwoOp::Link,
            };
            Op::Two(op, path(rng), path(rng))
        }
        _ => {
            let op = match rng.below(22) {
                0..3 => PathOp::Mkdir(rng.pick(&[0o755, 0o700])),
                3 => PathOp::Rmdir,
                4..6 => PathOp::Unlink,
                6 => PathOp::Readlink,
                7 => PathOp::Chmod(rng.pick(&[0o600, 0o755, 0o4711, 0o2755])),
                8 => PathOp::Chown(rng.pick(&[0, 7]), rng.pick(&[0, 7])),
                9 => PathOp::Truncate(int(rng, BIG)),
                10 => PathOp::Times(int(rng, 1 << 40)),
                11 | 12 => PathOp::List,
                13 => PathOp::Fifo,
                14 => PathOp::SetXattr(byte),
                15 => PathOp::GetXattr,
                16 => PathOp::RemoveXattr,
                17 => PathOp::ListXattr,
                18 => PathOp::Whole,
                _ => PathOp::Stat,
            };
            Op::Path(op, path(rng))
        }
    }
}

/// One of the two directories, with what is open there.
struct Twin {
    root: PathBuf,
    open: [Option<File>; SLOTS],
}

fn shown(m: &std::fs::Metadata) -> String {
    let size = if m.is_dir() { 0 } else { m.size() };
    format!("{:o} links {} owner {}:{} size {size} rdev {}", m.mode(), m.nlink(), m.uid(), m.gid(), m.rdev())
}

fn cstring(p: &Path) -> CString {
    CString::new(p.as_os_str().as_bytes()).unwrap()
}

impl Twin {
    fn new(root: &Path) -> Self {
        Self { root: root.into(), open: Default::default() }
    }

    fn file(&self, slot: usize) -> Result<&File, Said> {
        self.open[slot].as_ref().ok_or_else(|| "closed".into())
    }

    fn run(&mut self, op: &Op) -> Result<Said, Said> {
        Ok(match op {
            Op::Open { path, flags, mode, slot } => {
                let how = *flags | OFlag::O_CLOEXEC;
                let opened = nix::fcntl::open(&self.root.join(path), how, Mode::from_bits_truncate(*mode));
                let text = said(opened.as_ref().map(|_| ()).map_err(|e| *e));
                // What is not a regular file is not compared further.
                let file = opened.ok().map(File::from).filter(|f| f.metadata().is_ok_and(|m| m.is_file()));
                self.open[*slot] = file;
                text
            }
            Op::Close { slot } => {
                self.open[*slot] = None;
                String::new()
            }
            Op::Read { slot, at, len } => {
                let mut buf = vec![0; *len];
                let got = self.file(*slot)?.read_at(&mut buf, *at);
                let sum = buf.iter().fold(7u64, |s, b| s.wrapping_mul(31).wrapping_add(u64::from(*b)));
                format!("{} sum {sum}", said_io(got))
            }
            Op::Write { slot, at, len, byte } => said_io(self.file(*slot)?.write_at(&vec![*byte; *len], *at)),
            Op::Append { slot, len, byte } => said(file::append(self.file(*slot)?.as_fd(), &vec![*byte; *len])),
            Op::Resize { slot, to } => said(nix::unistd::ftruncate(self.file(*slot)?, *to)),
            Op::Stat { slot } => said_io(self.file(*slot)?.metadata().map(|m| shown(&m))),
            Op::Allocate { slot, mode, at, len } => said(nix::fcntl::fallocate(self.file(*slot)?, *mode, *at, *len)),
            Op::Seek { slot, at, whence } => said(nix::unistd::lseek64(self.file(*slot)?, *at, *whence)),
            Op::Copy { from, to, at, to_at, len } => {
                let (mut at, mut to_at) = (*at, *to_at);
                let (from, to) = (self.file(*from)?, self.file(*to)?);
                said(nix::fcntl::copy_file_range(from, Some(&mut at), to, Some(&mut to_at), *len))
            }
            Op::Sync { slot } => said(nix::unistd::fsync(self.file(*slot)?)),
            Op::Path(op, path) => self.path(*op, &self.root.join(path)),
            Op::Two(op, a, b) => {
                let (from, to) = (self.root.join(a), self.root.join(b));
                match op {
                    TwoOp::Rename(flags) => {
                        let flags = RenameFlags::from_bits_truncate(*flags);
                        said(nix::fcntl::renameat2(AT_FDCWD, &from, AT_FDCWD, &to, flags))
                    }
                    TwoOp::Link => said(nix::unistd::linkat(AT_FDCWD, &from, AT_FDCWD, &to, AtFlags::empty())),
                    TwoOp::Symlink => said(nix::unistd::symlinkat(a.as_str(), AT_FDCWD, &to)),
                }
            }
        })
    }

    fn path(&self, op: PathOp, at: &Path) -> Said {
        let name = c"user.twin";
        match op {
            PathOp::Stat => said_io(at.symlink_metadata().map(|m| shown(&m))),
            PathOp::Mkdir(mode) => said(nix::unistd::mkdir(at, Mode::from_bits_truncate(mode))),
            PathOp::Rmdir => said(nix::unistd::unlinkat(AT_FDCWD, at, UnlinkatFlags::RemoveDir)),
            PathOp::Unlink => said(nix::unistd::unlink(at)),
            PathOp::Readlink => said_io(std::fs::read_link(at)),
            PathOp::Chmod(mode) => {
                let mode = Mode::from_bits_truncate(mode);
                said(nix::sys::stat::fchmodat(AT_FDCWD, at, mode, FchmodatFlags::FollowSymlink))
            }
            PathOp::Chown(uid, gid) => {
                let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
                said(nix::unistd::fchownat(AT_FDCWD, at, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW))
            }
            PathOp::Truncate(to) => said(file::truncate(&cstring(at), to)),
            PathOp::Times(t) => {
                let time = TimeSpec::new(t, 123_456_789);
                let set = nix::sys::stat::utimensat(AT_FDCWD, at, &time, &time, UtimensatFlags::NoFollowSymlink);
                format!("{} {}", said(set), said_io(at.symlink_metadata().map(|m| (m.mtime(), m.mtime_nsec()))))
            }
            PathOp::List => said_io(std::fs::read_dir(at).and_then(|entries| {
                let mut names = entries.map(|e| e.map(|e| e.file_name())).collect::<Result<Vec<_>, _>>()?;
                names.sort();
                Ok(names)
            })),
            PathOp::Fifo => said(nix::sys::stat::mknod(at, SFlag::S_IFIFO, Mode::from_bits_truncate(0o640), 0)),
            PathOp::SetXattr(byte) => said(file::setxattr(&cstring(at), name, &[byte; 40], i32::from(byte % 3))),
            PathOp::GetXattr => {
                let mut value = [0; 64];
                said(file::getxattr(&cstring(at), name, &mut value).map(|n| value[..n].to_vec()))
            }
            PathOp::RemoveXattr => said(file::removexattr(&cstring(at), name)),
            PathOp::ListXattr => {
                let mut names = [0; 256];
                said(file::listxattr(&cstring(at), &mut names).map(|n| names[..n].to_vec()))
            }
            PathOp::Whole => said_io(std::fs::metadata(at).and_then(|m| {
                if m.is_file() {
                    std::fs::read(at).map(|b| (b.len(), b.iter().map(|b| u64::from(*b)).sum::<u64>()))
                } else {
                    Ok((0, 0))
                }
            })),
        }
    }
}

/// Every path below `root` with what it is.
pub(crate) fn picture(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let m = path.symlink_metadata().unwrap();
            let mut text = shown(&m);
            if m.is_dir() {
                todo.push(path.clone());
            } else if m.is_file() {
                let bytes = std::fs::read(&path).unwrap();
                let sum = bytes.iter().fold(7u64, |s, b| s.wrapping_mul(31).wrapping_add(u64::from(*b)));
                text += &format!(" sum {sum} blocks {}", m.blocks());
            } else if m.is_symlink() {
                text += &format!(" to {}", std::fs::read_link(&path).unwrap().display());
            }
            all.insert(path.strip_prefix(root).unwrap().to_path_buf(), text);
        }
    }
    all
}

/// Panics with the seed and the last operations where the two differ.
pub(crate) fn compare(left: &Path, right: &Path, seed: u64, steps: usize) {
    let mut rng = Rng::new(seed);
    let (mut a, mut b) = (Twin::new(left), Twin::new(right));
    let mut log: Vec<String> = Vec::new();
    for step in 0..steps {
        let op = random(&mut rng);
        let (said_a, said_b) = (a.run(&op), b.run(&op));
        log.push(format!("{op:?} = {said_a:?}"));
        let recent = || log[log.len().saturating_sub(400)..].join("\n");
        assert_eq!(said_a, said_b, "seed {seed}, step {step}: {op:?}\n{}", recent());
    }
    assert_eq!(picture(left), picture(right), "seed {seed}: the trees differ");
    // A test of errors alone would prove little.
    let worked = log.iter().filter(|l| !l.contains(" = Ok(\"E") && !l.contains("closed")).count();
    assert!(worked * 4 > steps, "seed {seed}: only {worked} of {steps} operations did anything");
}
