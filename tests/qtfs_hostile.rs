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
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;

use farside::qtfs::abi::{InHeader, OutHeader, op};
use farside::qtfs::wire::{HEADER_LEN, Header, Kind, Mount, Mounted, frame};
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

#[test]
fn every_change_of_a_read_only_export_is_refused_by_the_host() {
    let lab = Lab::read_only();
    fs::write(lab.src.join("f"), b"x").unwrap();
    let (mut h, mounted) = Hostile::mount(&lab, &lab.src);
    assert!(matches!(mounted, Mounted::Yes { read_only: true, .. }));
    let f = h.node(1, "f");
    let named = |head: &[u32], names: &str| [words(head), names.as_bytes().to_vec()].concat();
    let (_, opened) = h.ask(op::OPEN, f, &words(&[0, 0])).unwrap();
    let fh = &opened[..8];
    let with_fh = |rest: &[u32]| [fh, &words(rest)].concat();
    let set_size = [words(&[1 << 3, 0]), vec![0; 80]].concat();
    let attempts = [
        (op::SETATTR, f, set_size),
        (op::SYMLINK, 1, b"n\0t\0".to_vec()),
        (op::MKNOD, 1, named(&[0o100_644, 0, 0, 0], "n\0")),
        (op::MKDIR, 1, named(&[0o755, 0], "n\0")),
        (op::UNLINK, 1, b"f\0".to_vec()),
        (op::RMDIR, 1, b"f\0".to_vec()),
        (op::RENAME, 1, named(&[1, 0], "f\0n\0")),
        (op::RENAME2, 1, named(&[1, 0, 0, 0], "f\0n\0")),
        (op::LINK, 1, [f.to_le_bytes().to_vec(), b"n\0".to_vec()].concat()),
        (op::OPEN, f, words(&[1, 0])),
        (op::OPEN, f, words(&[2, 0])),
        (op::OPEN, f, words(&[farside::qtfs::wire::open_flags::TRUNC, 0])),
        (op::CREATE, 1, named(&[0, 0o644, 0, 0], "f\0")),
        (op::TMPFILE, 1, named(&[2, 0o644, 0, 0], "n\0")),
        (op::WRITE, f, [with_fh(&[0, 0, 1, 0, 0, 0, 0, 0]), b"y".to_vec()].concat()),
        (op::SETXATTR, f, named(&[1, 0, 0, 0], "user.a\0v")),
        (op::REMOVEXATTR, f, b"user.a\0".to_vec()),
        (op::FALLOCATE, f, with_fh(&[0, 0, 9, 0, 0, 0])),
        (op::COPY_FILE_RANGE, f, [with_fh(&[0, 0, 0, 0]), fh.to_vec(), words(&[0, 0, 1, 0, 0, 0])].concat()),
    ];
    for (opcode, node, body) in attempts {
        assert_eq!(h.ask(opcode, node, &body).map(|a| a.0), Some(Errno::EROFS as i32), "opcode {opcode}");
    }
    assert_eq!(fs::read(lab.src.join("f")).unwrap(), b"x");
    assert_eq!(fs::read_dir(&lab.src).unwrap().count(), 1);
}
