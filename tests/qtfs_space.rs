//! What a mount holds of the host's files and file systems, and when it lets go. Needs root, /dev/fuse and mount
//! namespaces. Each test counts what this process has open, which is both sides, so they run in directories of their own.

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

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use farside::limits::{MOUNTS_CROSSED_MAX, NODE_IDLE};
use farside::sys::file;
use lab::{Backing, Lab};
use shell::errno;

const ALL: [Backing; 3] = [Backing::Tmpfs, Backing::Disk, Backing::Overlay];
/// Nobody waits longer than two looks, and the machine may be busy.
const SOON: Duration = Duration::from_secs(10);

#[track_caller]
fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < end, "still not: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What this process has open at or below `path`, deleted or not.
fn open_below(path: &Path) -> Vec<PathBuf> {
    let fds = fs::read_dir("/proc/self/fd").unwrap().flatten();
    fds.filter_map(|fd| fs::read_link(fd.path()).ok()).filter(|target| target.starts_with(path)).collect()
}

/// Waits until the far side has given up all fds below the export that nobody uses: `kept` are left.
#[track_caller]
fn idle(lab: &Lab, kept: usize) {
    let below = || open_below(&lab.src).into_iter().filter(|path| *path != lab.src).count();
    soon(&format!("{kept} fds below the export: {:?}", open_below(&lab.src)), || below() == kept);
}

/// Blocks and inodes that are free on the host's file system.
fn free(dir: &Path) -> (u64, u64) {
    let s = nix::sys::statvfs::statvfs(dir).unwrap();
    (s.blocks_free(), s.files_free())
}

fn mounted(kind: &str, at: &Path, data: Option<&str>) {
    fs::create_dir_all(at).unwrap();
    mount(Some(kind), at, Some(kind), MsFlags::empty(), data).unwrap_or_else(|e| panic!("{kind}: {e}"));
}

fn open_path(path: &Path) -> OwnedFd {
    nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty()).unwrap()
}

fn stat(fd: &OwnedFd) -> nix::Result<file::Stat> {
    file::stat(fd.as_fd())
}

#[track_caller]
fn is_gone(fd: &OwnedFd, what: &str) {
    assert!(matches!(stat(fd), Err(Errno::ESTALE | Errno::ENOENT)), "{what}: {:?}", stat(fd));
}

#[test]
fn what_the_host_or_another_mount_deletes_gives_its_space_back() {
    for backing in [Backing::Tmpfs, Backing::Overlay] {
        let lab = Lab::new(backing);
        let mut spec = lab.spec();
        spec.target = lab.dst.with_file_name("second");
        fs::create_dir_all(&spec.target).unwrap();
        let second = spec.target.clone();
        let mounting = farside::qtfs::near::mount(spec, None).unwrap_or_else(|e| panic!("{e}"));
        let served = std::thread::spawn(|| mounting.run());
        let before = free(&lab.src);
        for deleter in [&lab.src, &second] {
            fs::create_dir_all(lab.src.join("d/e")).unwrap();
            fs::write(lab.src.join("d/e/f"), vec![1; 8 << 20]).unwrap();
            assert_eq!(fs::read(lab.dst.join("d/e/f")).unwrap().len(), 8 << 20);
            assert_ne!(free(&lab.src), before);
            fs::remove_dir_all(deleter.join("d")).unwrap();
            soon("the space is free", || free(&lab.src) == before);
        }
        umount2(&second, MntFlags::MNT_DETACH).unwrap();
        served.join().unwrap();
    }
}

#[test]
fn what_is_deleted_here_gives_its_space_back_at_once() {
    for backing in [Backing::Tmpfs, Backing::Overlay] {
        let lab = Lab::new(backing);
        // Renaming over something makes the host's overlay keep a whiteout's inode.
        fs::write(lab.dst.join("over"), b"").unwrap();
        fs::rename(lab.dst.join("over"), lab.dst.join("over2")).unwrap();
        fs::remove_file(lab.dst.join("over2")).unwrap();
        idle(&lab, 0);
        let before = free(&lab.src);
        let begin = Instant::now();
        const ROUNDS: u32 = 20;
        for _ in 0..ROUNDS {
            let path = |name: &str| lab.dst.join(name);
            fs::write(path("f"), vec![1; 1 << 20]).unwrap();
            fs::write(path("g"), vec![1; 1 << 20]).unwrap();
            fs::create_dir(path("d")).unwrap();
            assert!(path("f").exists() && path("g").exists() && path("d").exists());
            fs::rename(path("f"), path("g")).unwrap();
            fs::remove_file(path("g")).unwrap();
            fs::remove_dir(path("d")).unwrap();
            soon("the space is free", || free(&lab.src) == before);
        }
        // By its age alone each round would take NODE_IDLE at least.
        assert!(begin.elapsed() < NODE_IDLE * ROUNDS / 2, "{backing:?}: {:?}", begin.elapsed());
    }
}

#[test]
fn what_is_open_here_is_read_long_after_its_name_is_gone() {
    for backing in ALL {
        let lab = Lab::new(backing);
        fs::create_dir_all(lab.src.join("d/e")).unwrap();
        fs::write(lab.src.join("d/e/f"), b"text").unwrap();
        fs::write(lab.src.join("d/g"), b"unused").unwrap();
        let mut open = File::open(lab.dst.join("d/e/f")).unwrap();
        let (dir, unused) = (File::open(lab.dst.join("d/e")).unwrap(), open_path(&lab.dst.join("d/g")));
        assert_eq!(stat(&unused).unwrap().size, 6);
        fs::remove_dir_all(lab.src.join("d")).unwrap();
        // The open file and directory, each with its inode; nothing else.
        idle(&lab, 4);
        let mut text = String::new();
        open.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), open.metadata().unwrap().nlink()), ("text", 0));
        assert!(dir.metadata().unwrap().is_dir());
        is_gone(&unused, "a deleted file that nobody has open");
        // Another file of that name is another file.
        fs::create_dir(lab.src.join("d")).unwrap();
        fs::write(lab.src.join("d/g"), b"another one").unwrap();
        assert_eq!(fs::read(lab.dst.join("d/g")).unwrap(), b"another one");
        is_gone(&unused, "it does not come back as another file");
        drop((open, dir));
        idle(&lab, 0);
    }
}

#[test]
fn what_was_idle_is_found_again() {
    for backing in ALL {
        let lab = Lab::new(backing);
        fs::create_dir_all(lab.src.join("x/b/c")).unwrap();
        fs::write(lab.src.join("x/b/c/f"), b"text").unwrap();
        let held = open_path(&lab.dst.join("x/b/c"));
        let inside = |name: &str| PathBuf::from(format!("/proc/self/fd/{}/{name}", held.as_raw_fd()));
        let open = File::open(lab.dst.join("x/b")).unwrap();
        for round in 0..2u8 {
            // `x/b` is open: its file and its inode.
            idle(&lab, 2);
            assert_eq!(fs::read(inside("f")).unwrap(), b"text", "{backing:?}, round {round}");
            assert!(stat(&held).is_ok());
            fs::write(inside("g"), [round]).unwrap();
            assert_eq!(fs::read(lab.src.join("x/b/c/g")).unwrap(), [round]);
            if round == 0 {
                // Above what is open, so also without file handles it is found from there.
                fs::rename(lab.src.join("x"), lab.src.join("moved")).unwrap();
                fs::rename(lab.src.join("moved"), lab.src.join("x")).unwrap();
            }
        }
        drop(open);
    }
}

/// A file system below the export, with something in it: what kind, and how to mount it.
fn file_systems(lab: &Lab) -> Vec<(&'static str, Option<String>)> {
    let part = |name: &str| lab.dst.with_file_name("layers").join(name);
    mounted("tmpfs", &lab.dst.with_file_name("layers"), None);
    for name in ["lower", "upper", "work"] {
        fs::create_dir_all(part(name)).unwrap();
    }
    let dirs = ["lower", "upper", "work"].map(|name| part(name).display().to_string());
    let data = format!("lowerdir={},upperdir={},workdir={}", dirs[0], dirs[1], dirs[2]);
    vec![("tmpfs", None), ("overlay", Some(data))]
}

#[test]
fn the_host_unmounts_a_file_system_that_nobody_uses_here() {
    let lab = Lab::new(Backing::Tmpfs);
    let at = lab.src.join("sub/m");
    for (kind, data) in file_systems(&lab) {
        mounted(kind, &at, data.as_deref());
        mounted("tmpfs", &at.join("nested"), None);
        fs::write(at.join("f"), b"text").unwrap();
        fs::write(at.join("nested/g"), b"more").unwrap();
        let here = lab.dst.join("sub/m");
        assert_eq!(fs::read(here.join("f")).unwrap(), b"text");
        let mut open = File::open(here.join("nested/g")).unwrap();
        // A program's working directory is not an open file: the host's administrator goes first.
        let held = open_path(&here);
        // A socket that a host process was bound to: the near side looks after it every few seconds.
        let listener = UnixListener::bind(at.join("s")).unwrap();
        drop(std::os::unix::net::UnixStream::connect(here.join("s")).unwrap());
        drop(listener);
        idle(&lab, 2);
        assert_eq!(umount2(&at.join("nested"), MntFlags::empty()), Err(Errno::EBUSY), "its file is open here");
        open.seek(SeekFrom::Start(0)).unwrap();
        assert_eq!(std::io::read_to_string(&mut open).unwrap(), "more");
        drop(open);
        soon("the nested one is unmounted", || umount2(&at.join("nested"), MntFlags::empty()).is_ok());
        soon("and then the other", || umount2(&at, MntFlags::empty()).is_ok());
        is_gone(&held, "a directory whose file system is gone");
        assert_eq!(errno(fs::read(here.join("f"))), Errno::ENOENT, "{kind}");
        // Another file system at the same place, whose inodes have the same numbers.
        mounted("tmpfs", &at, None);
        fs::write(at.join("f"), b"another").unwrap();
        assert_eq!(fs::read(here.join("f")).unwrap(), b"another");
        is_gone(&held, "it is not the other file system's directory");
        soon("that one too", || umount2(&at, MntFlags::empty()).is_ok());
    }
    let _ = umount2(&lab.dst.with_file_name("layers"), MntFlags::MNT_DETACH);
}

#[test]
fn an_idle_file_system_below_the_export_is_found_again() {
    let lab = Lab::new(Backing::Tmpfs);
    let at = lab.src.join("sub/m");
    for (kind, data) in file_systems(&lab) {
        mounted(kind, &at, data.as_deref());
        mounted("tmpfs", &at.join("deep/nested"), None);
        fs::create_dir(at.join("deep/nested/d")).unwrap();
        let held = [open_path(&lab.dst.join("sub/m/deep")), open_path(&lab.dst.join("sub/m/deep/nested/d"))];
        idle(&lab, 0);
        for (fd, inside) in held.iter().zip(["deep", "deep/nested/d"]) {
            assert!(stat(fd).is_ok(), "{kind}");
            fs::write(format!("/proc/self/fd/{}/f", fd.as_raw_fd()), b"text").unwrap();
            assert_eq!(fs::read(at.join(inside).join("f")).unwrap(), b"text");
        }
        // The place of the mounts has another name, and the kernel has looked it up.
        fs::rename(lab.src.join("sub"), lab.src.join("other")).unwrap();
        assert!(lab.dst.join("other/m/deep/nested/d/f").exists());
        idle(&lab, 0);
        assert!(held.iter().all(|fd| stat(fd).is_ok()), "{kind}, renamed");
        fs::rename(lab.src.join("other"), lab.src.join("sub")).unwrap();
        drop(held);
        soon("the nested one is unmounted", || umount2(&at.join("deep/nested"), MntFlags::empty()).is_ok());
        soon("and then the other", || umount2(&at, MntFlags::empty()).is_ok());
    }
    let _ = umount2(&lab.dst.with_file_name("layers"), MntFlags::MNT_DETACH);
}

#[test]
fn file_systems_that_come_and_go_are_not_counted_for_ever() {
    let lab = Lab::new(Backing::Tmpfs);
    let count = MOUNTS_CROSSED_MAX * 2 / 3;
    // Directories that programs stand in, so that the near kernel remembers what is gone.
    let mut held = Vec::new();
    for round in 0..3 {
        let places: Vec<_> = (0..count).map(|n| lab.src.join(format!("m{n}"))).collect();
        for (n, place) in places.iter().enumerate() {
            mounted("tmpfs", place, None);
            fs::write(place.join("f"), b"text").unwrap();
            let here = lab.dst.join(format!("m{n}"));
            assert_eq!(fs::read(here.join("f")).unwrap(), b"text", "round {round}, mount {n}");
            held.push(open_path(&here));
        }
        for place in &places {
            soon("it is unmounted", || umount2(place, MntFlags::empty()).is_ok());
        }
    }
}
