//! A far side against a near side that says what it likes. Needs root, /dev/fuse and mount namespaces.

#[path = "common/far.rs"]
mod far;
#[path = "common/lab.rs"]
mod lab;
#[path = "common/own_key.rs"]
mod own_key;
#[path = "common/scratch.rs"]
mod scratch;
#[path = "common/shell.rs"]
mod shell;
#[path = "common/twins.rs"]
mod twins;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;

use farside::qtfs::abi::{self, InHeader, OutHeader, op};
use farside::qtfs::wire::{HEADER_LEN, Header, Kind, Mount, Mounted, frame, open_flags};
use lab::{Backing, Lab};
use shell::shell;

/// A near side that is not one: it says what it likes.
struct Hostile {
    reader: Box<dyn Read + Send>,
    writer: Box<dyn Write + Send>,
    next: u64,
}

impl Hostile {
    fn mount(lab: &Lab, path: &Path) -> (Self, Mounted) {
        let timeout = Duration::from_secs(5);
        let conn =
            farside::link::conn::dial(&lab.far.addr.to_string(), &far::hello(), timeout, &own_key::access()).unwrap();
        let (reader, writer, _) = conn.split().unwrap();
        let mut hostile = Self { reader, writer, next: 2 };
        let ask = Mount { path: path.to_str().unwrap().into(), read_only: false, base: 1 << 40 };
        hostile.writer.write_all(&frame(Kind::Mount, &ask.encode())).unwrap();
        let (kind, payload) = hostile.receive().expect("an answer");
        assert_eq!(kind, Kind::Mounted);
        let mounted = Mounted::decode(&payload).unwrap();
        (hostile, mounted)
    }

    fn receive(&mut self) -> Option<(Kind, Vec<u8>)> {
        let mut head = [0; HEADER_LEN];
        self.reader.read_exact(&mut head).ok()?;
        let header = Header::decode(&head).unwrap();
        let mut payload = vec![0; header.len];
        self.reader.read_exact(&mut payload).ok()?;
        Some((header.kind, payload))
    }

    /// The errno (0: none) and the body of the answer; `None`: the link is closed.
    fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Option<(i32, Vec<u8>)> {
        self.next += 2;
        self.writer.write_all(&frame(Kind::Request, &InHeader::encode(opcode, self.next, node, body))).ok()?;
        let (_, reply) = self.receive()?;
        let (header, mut d) = OutHeader::decode(&reply).unwrap();
        assert_eq!(header.unique, self.next);
        Some((-header.error, d.rest().to_vec()))
    }

    fn node(&mut self, parent: u64, name: &str) -> u64 {
        let (errno, body) = self.ask(op::LOOKUP, parent, format!("{name}\0").as_bytes()).unwrap();
        assert_eq!(errno, 0, "{name}");
        u64::from_le_bytes(body[..8].try_into().unwrap())
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

#[test]
fn a_hostile_near_side_stays_inside_its_export() {
    let lab = Lab::new(Backing::Tmpfs);
    fs::create_dir(lab.src.join("d")).unwrap();
    std::os::unix::fs::symlink("/etc", lab.src.join("link")).unwrap();
    nix::sys::stat::mknod(
        &lab.src.join("zero"),
        nix::sys::stat::SFlag::S_IFCHR,
        nix::sys::stat::Mode::from_bits_truncate(0o666),
        nix::sys::stat::makedev(1, 5),
    )
    .unwrap();
    shell(&lab.src, "mkfifo fifo");
    for path in ["/etc", "/", lab.twin.to_str().unwrap(), "../etc"] {
        let (_, mounted) = Hostile::mount(&lab, Path::new(path));
        assert!(matches!(mounted, Mounted::No { .. }), "{path}");
    }
    let (_, mounted) = Hostile::mount(&lab, &lab.src.join("link"));
    assert!(matches!(mounted, Mounted::No { .. }), "a link that leads out is no directory to mount");
    let (mut h, _) = Hostile::mount(&lab, &lab.src);
    let (_, dir) = (h.node(1, "link"), h.node(1, "d"));
    let einval = Some(Errno::EINVAL as i32);
    for name in ["..", ".", "", "d/..", "/etc/passwd", "d/../../x"] {
        for node in [1, dir] {
            let answer = h.ask(op::LOOKUP, node, format!("{name}\0").as_bytes()).map(|a| a.0);
            assert_eq!(answer, einval, "{name:?}");
            let two = format!("{name}\0{name}\0");
            let with = |head: &[u8]| [head, two.as_bytes()].concat();
            assert_eq!(h.ask(op::UNLINK, node, two.as_bytes()).map(|a| a.0), einval);
            assert_eq!(h.ask(op::MKDIR, node, &with(&words(&[0o777, 0]))).map(|a| a.0), einval);
            assert_eq!(h.ask(op::CREATE, node, &with(&words(&[2, 0o777, 0, 0]))).map(|a| a.0), einval);
            assert_eq!(h.ask(op::MKNOD, node, &with(&words(&[0o100_777, 0, 0, 0]))).map(|a| a.0), einval);
            assert_eq!(h.ask(op::RENAME, node, &with(&1u64.to_le_bytes())).map(|a| a.0), einval);
            assert_eq!(h.ask(op::LINK, node, &with(&dir.to_le_bytes())).map(|a| a.0), einval);
            assert_eq!(h.ask(op::SYMLINK, node, two.as_bytes()).map(|a| a.0), einval);
        }
    }
    // A link is text, not a way.
    let link = h.node(1, "link");
    assert_eq!(h.ask(op::LOOKUP, link, b"passwd\0").map(|a| a.0), Some(Errno::ENOTDIR as i32));
    assert_eq!(h.ask(op::OPENDIR, link, &words(&[0, 0])).map(|a| a.0), Some(Errno::ENOTDIR as i32));
    assert_ne!(h.ask(op::OPEN, link, &words(&[0, 0])).map(|a| a.0), Some(0));
    // Devices and FIFOs of the host are not opened.
    for name in ["zero", "fifo"] {
        let node = h.node(1, name);
        assert_eq!(h.ask(op::OPEN, node, &words(&[0, 0])).map(|a| a.0), Some(Errno::EACCES as i32), "{name}");
        let create = [words(&[2, 0o666, 0, 0]), format!("{name}\0").into_bytes()].concat();
        assert_eq!(h.ask(op::CREATE, 1, &create).map(|a| a.0), Some(Errno::ESTALE as i32), "{name}");
    }
    // Numbers that nobody was told.
    for node in [0, 2, 77, u64::MAX, 1 << 63] {
        for opcode in 1..60 {
            // To give back what is not there is nothing.
            if op::is_silent(opcode) || matches!(opcode, op::INIT | op::RELEASE | op::RELEASEDIR) {
                continue;
            }
            let answer = h.ask(opcode, node, &[0; 160]).map(|a| a.0);
            assert!(answer.is_some_and(|e| e != 0), "opcode {opcode} on node {node}: {answer:?}");
        }
    }
    // Forgetting more than was told takes nothing from others, and the root stays.
    let forget = InHeader::encode(op::FORGET, 0, 1, &u64::MAX.to_le_bytes());
    h.writer.write_all(&frame(Kind::Request, &forget)).unwrap();
    h.node(1, "d");
    assert!(lab.dst.join("d").exists());
}

#[test]
fn noise_closes_the_link_it_came_on_and_nothing_else() {
    let lab = Lab::new(Backing::Tmpfs);
    fs::write(lab.src.join("f"), b"x").unwrap();
    for seed in 1..400u64 {
        let mut rng = twins::Rng::new(seed);
        let (mut h, _) = Hostile::mount(&lab, &lab.src);
        let node = h.node(1, "f");
        let mut byte = || u8::try_from(rng.below(256)).unwrap();
        let mut body: Vec<u8> = (0..byte()).map(|_| byte()).collect();
        let opcode = u32::from(byte() % 60);
        // Often nearly right: a handle and lengths that may exist.
        if byte() % 2 == 0 {
            body.iter_mut().for_each(|b| *b &= 3);
        }
        let mut bytes = frame(Kind::Request, &InHeader::encode(opcode, 8, [1, node][usize::from(byte() % 2)], &body));
        if byte() % 4 == 0 {
            let at = usize::from(byte()) % bytes.len();
            bytes[at] ^= byte();
        }
        let _ = h.writer.write_all(&bytes);
    }
    let (mut h, _) = Hostile::mount(&lab, &lab.src);
    let mut long = Header { len: 0, kind: Kind::Request }.encode();
    long[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    h.writer.write_all(&long).unwrap();
    assert!(h.receive().is_none(), "a length beyond the limit closes the link");
    assert!(lab.dst.metadata().is_ok());
}

/// What a request of a read-only mount gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gets {
    Served,
    Errno(Errno),
    /// The kernel wants no answer.
    Silence,
}

/// Well-formed requests about the file `f` (node `f`, handle `fh`, a listing's handle `dh`), which a mount that may be
/// written serves, or refuses for another reason than that.
fn requests(f: u64, fh: &[u8], dh: &[u8]) -> Vec<(u32, u64, Vec<u8>, Gets)> {
    use Gets::{Served, Silence};
    let erofs = Gets::Errno(Errno::EROFS);
    let named = |head: &[u32], names: &str| [words(head), names.as_bytes().to_vec()].concat();
    let of = |handle: &[u8], rest: &[u32]| [handle, &words(rest)].concat();
    let set = |valid: u32| [words(&[valid, 0]), vec![0; 80]].concat();
    let copy = [of(fh, &[0, 0, 0, 0]), fh.to_vec(), words(&[0, 0, 1, 0, 0, 0])].concat();
    let lock = |kind: i32, flags: u32| lock_body(fh, 7, kind, flags);
    let mut all = vec![
        (op::LOOKUP, 1, b"f\0".to_vec(), Served),
        (op::GETATTR, f, words(&[0; 4]), Served),
        (op::STATX, f, words(&[0; 6]), Served),
        (op::READLINK, f, Vec::new(), Gets::Errno(Errno::EINVAL)),
        (op::SYMLINK, 1, b"n\0t\0".to_vec(), erofs),
        (op::MKNOD, 1, named(&[0o100_644, 0, 0, 0], "n\0"), erofs),
        (op::MKDIR, 1, named(&[0o755, 0], "n\0"), erofs),
        (op::UNLINK, 1, b"f\0".to_vec(), erofs),
        (op::RMDIR, 1, b"f\0".to_vec(), erofs),
        (op::RENAME, 1, named(&[1, 0], "f\0n\0"), erofs),
        (op::RENAME2, 1, named(&[1, 0, 0, 0], "f\0n\0"), erofs),
        (op::LINK, 1, [f.to_le_bytes().to_vec(), b"n\0".to_vec()].concat(), erofs),
        (op::OPEN, f, words(&[0, 0]), Served),
        (op::READ, f, of(fh, &[0, 0, 1, 0, 0, 0, 0, 0]), Served),
        (op::WRITE, f, [of(fh, &[0, 0, 1, 0, 0, 0, 0, 0]), b"y".to_vec()].concat(), erofs),
        (op::STATFS, f, Vec::new(), Served),
        (op::FSYNC, f, of(fh, &[0, 0]), Served),
        (op::SETXATTR, f, named(&[1, 0, 0, 0], "user.a\0v"), erofs),
        (op::GETXATTR, f, named(&[0, 0], "user.a\0"), Gets::Errno(Errno::ENODATA)),
        (op::LISTXATTR, f, words(&[0, 0]), Served),
        (op::REMOVEXATTR, f, b"user.a\0".to_vec(), erofs),
        (op::FLUSH, f, of(fh, &[0, 0, 9, 0]), Served),
        (op::INIT, 1, words(&[7, 31, 0, 0]), Gets::Errno(Errno::ENOSYS)),
        (op::OPENDIR, 1, words(&[0, 0]), Served),
        (op::READDIR, 1, of(dh, &[0, 0, 512, 0, 0, 0, 0, 0]), Served),
        (op::READDIRPLUS, 1, of(dh, &[0, 0, 512, 0, 0, 0, 0, 0]), Served),
        (op::FSYNCDIR, 1, of(dh, &[0, 0]), Served),
        (op::GETLK, f, lock(libc::F_WRLCK, 0), Served),
        (op::CREATE, 1, named(&[0, 0o644, 0, 0], "f\0"), erofs),
        (op::CREATE, 1, named(&[0, 0o644, 0, 0], "n\0"), erofs),
        (op::TMPFILE, 1, named(&[2, 0o644, 0, 0], "n\0"), erofs),
        (op::FALLOCATE, f, of(fh, &[0, 0, 9, 0, 0, 0]), erofs),
        (op::LSEEK, f, of(fh, &[0, 0, 3, 0]), Served),
        (op::COPY_FILE_RANGE, f, copy.clone(), erofs),
        (op::COPY_FILE_RANGE_64, f, copy, erofs),
        (op::INTERRUPT, 0, words(&[99, 0]), Silence),
        (op::FORGET, f, 0u64.to_le_bytes().to_vec(), Silence),
        (op::BATCH_FORGET, 0, words(&[0, 0]), Silence),
        (op::RELEASEDIR, 1, of(&[0; 8], &[0; 4]), Served),
        (op::RELEASE, f, of(&[0; 8], &[0; 4]), Served),
    ];
    let opens = [1, 2, 3, open_flags::TRUNC, open_flags::TRUNC | open_flags::APPEND];
    all.extend(opens.map(|flags| (op::OPEN, f, words(&[flags, 0]), erofs)));
    let fields = [1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 7, 1 << 8];
    all.extend(fields.map(|valid| (op::SETATTR, f, set(valid), erofs)));
    for wait in [op::SETLK, op::SETLKW] {
        for flags in [0, abi::LK_FLOCK] {
            all.push((wait, f, lock(libc::F_WRLCK, flags), Gets::Errno(Errno::EBADF)));
            all.push((wait, f, lock(libc::F_RDLCK, flags), Served));
            all.push((wait, f, lock(libc::F_UNLCK, flags), Served));
        }
    }
    all
}

fn lock_body(fh: &[u8], owner: u64, kind: i32, flags: u32) -> Vec<u8> {
    let range = [0u64, 0].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>();
    let rest = words(&[u32::try_from(kind).unwrap(), 1, flags, 0]);
    [fh, &owner.to_le_bytes(), &range, &rest].concat()
}

impl Hostile {
    fn opened(&mut self, opcode: u32, node: u64, flags: u32) -> Vec<u8> {
        let (errno, body) = self.ask(opcode, node, &words(&[flags, 0])).unwrap();
        assert_eq!(errno, 0);
        body[..8].to_vec()
    }

    fn gets(&mut self, opcode: u32, node: u64, body: &[u8]) -> Gets {
        if op::is_silent(opcode) {
            self.writer.write_all(&frame(Kind::Request, &InHeader::encode(opcode, 0, node, body))).unwrap();
            // The next answer is that of the next request.
            self.node(1, "f");
            return Gets::Silence;
        }
        match self.ask(opcode, node, body).expect("the link lives").0 {
            0 => Gets::Served,
            errno => Gets::Errno(Errno::from_raw(errno)),
        }
    }
}

#[test]
fn every_change_of_a_read_only_export_is_refused_by_the_host() {
    let lab = Lab::read_only();
    let file = lab.src.join("f");
    fs::write(&file, b"x").unwrap();
    let look = || {
        let m = file.metadata().unwrap();
        let times = (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        let names: Vec<_> = fs::read_dir(&lab.src).unwrap().map(|e| e.unwrap().file_name()).collect();
        (fs::read(&file).unwrap(), m.mode(), m.uid(), m.gid(), m.nlink(), times, names)
    };
    let before = look();
    let (mut h, mounted) = Hostile::mount(&lab, &lab.src);
    assert!(matches!(mounted, Mounted::Yes { read_only: true, .. }));
    let f = h.node(1, "f");
    let (fh, dh) = (h.opened(op::OPEN, f, 0), h.opened(op::OPENDIR, 1, 0));
    let requests = requests(f, &fh, &dh);
    for (opcode, node, body, gets) in &requests {
        assert_eq!(h.gets(*opcode, *node, body), *gets, "opcode {opcode}, {body:?}");
    }
    let unknown = (1..=u32::from(u8::MAX)).filter(|opcode| requests.iter().all(|(known, ..)| known != opcode));
    for opcode in unknown.filter(|opcode| !op::is_silent(*opcode)) {
        assert_eq!(h.gets(opcode, f, &[0; 160]), Gets::Errno(Errno::ENOSYS), "opcode {opcode}");
    }
    assert_eq!(look(), before);
}

/// QEMU takes byte 100 of an image for writing, and a program is executed, however a peer that may read locks.
#[test]
fn a_peer_that_may_read_keeps_the_host_from_nothing() {
    let lab = Lab::read_only();
    fs::write(lab.src.join("f"), b"x").unwrap();
    fs::copy("/bin/true", lab.src.join("true")).unwrap();
    let (mut h, _) = Hostile::mount(&lab, &lab.src);
    for (name, kind) in [("f", libc::F_WRLCK), ("true", libc::F_RDLCK)] {
        let node = h.node(1, name);
        let fh = h.opened(op::OPEN, node, 0);
        for (owner, flags) in [(7, 0), (8, abi::LK_FLOCK)] {
            h.ask(op::SETLK, node, &lock_body(&fh, owner, kind, flags)).unwrap();
        }
    }
    let file = fs::File::options().read(true).write(true).open(lab.src.join("f")).unwrap();
    let mut all = libc::flock { l_type: 1, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    assert_eq!(farside::sys::file::ofd_lock(file.as_fd(), libc::F_OFD_SETLK, &mut all), Ok(()));
    assert_eq!(farside::sys::file::flock(file.as_fd(), libc::LOCK_EX | libc::LOCK_NB), Ok(()));
    let run = std::process::Command::new(lab.src.join("true")).status();
    assert!(run.is_ok_and(|status| status.success()), "it is open for writing here");
}

/// What fcntl(2) checks of the fd, which a peer without one leaves out.
#[test]
fn a_lock_needs_a_handle_that_was_opened_for_it() {
    let lab = Lab::new(Backing::Tmpfs);
    fs::write(lab.src.join("f"), b"x").unwrap();
    let (mut h, _) = Hostile::mount(&lab, &lab.src);
    let f = h.node(1, "f");
    let (served, ebadf) = (Gets::Served, Gets::Errno(Errno::EBADF));
    for (flags, reads, writes) in [(0, served, ebadf), (1, ebadf, served), (2, served, served)] {
        let fh = h.opened(op::OPEN, f, flags);
        for (kind, gets) in [(libc::F_RDLCK, reads), (libc::F_WRLCK, writes), (libc::F_UNLCK, served)] {
            assert_eq!(h.gets(op::SETLK, f, &lock_body(&fh, 7, kind, 0)), gets, "opened {flags}, lock {kind}");
            assert_eq!(h.gets(op::SETLK, f, &lock_body(&fh, 8, kind, abi::LK_FLOCK)), served, "flock(2) asks none");
        }
    }
}
