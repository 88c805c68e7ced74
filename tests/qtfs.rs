//! qtfs with real mounts over loopback. Needs root, /dev/fuse and mount namespaces; a test without them fails.

#[path = "common/far.rs"]
mod far;
#[path = "common/lab.rs"]
mod lab;
#[path = "common/twins.rs"]
mod twins;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::MntFlags;

use farside::qtfs::abi::{InHeader, OutHeader, op};
use farside::qtfs::wire::{HEADER_LEN, Header, Kind, Mount, Mounted, frame};
use lab::{Backing, Lab};

fn errno<T: std::fmt::Debug>(r: std::io::Result<T>) -> Errno {
    farside::errno::errno_of(&r.expect_err("it should have failed"))
}

/// Says so loudly when a program is missing; the test is then no proof of anything.
fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap().status.success();
    if !found {
        eprintln!("!!! NOT TESTED: {program} is not installed");
    }
    found
}

fn shell(dir: &Path, script: &str) -> String {
    let out = Command::new("sh").args(["-ec", script]).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn twins_agree(backing: Backing, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let lab = Lab::new(backing);
        twins::compare(&lab.twin, &lab.dst, seed, 3000);
        // And what the host sees is what the mount shows.
        assert_eq!(twins::picture(&lab.src), twins::picture(&lab.dst), "seed {seed}");
    }
}

#[test]
fn random_operations_do_on_the_mount_what_they_do_on_tmpfs() {
    twins_agree(Backing::Tmpfs, 1..5);
}

#[test]
fn random_operations_do_on_the_mount_what_they_do_on_the_disk() {
    twins_agree(Backing::Disk, 11..14);
}

#[test]
fn random_operations_do_on_the_mount_what_they_do_on_overlayfs() {
    twins_agree(Backing::Overlay, 21..24);
}

#[test]
fn a_file_that_lost_its_name_lives_on_while_open() {
    for backing in [Backing::Tmpfs, Backing::Overlay] {
        let lab = Lab::new(backing);
        let path = lab.dst.join("f");
        let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.write_all(b"hello").unwrap();
        fs::rename(&path, lab.dst.join("g")).unwrap();
        fs::remove_file(lab.src.join("g")).unwrap();
        file.write_all(b" world").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello world");
        let meta = file.metadata().unwrap();
        assert_eq!((meta.nlink(), meta.len()), (0, 11));
        file.set_len(3).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 3);
        file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[test]
fn what_one_side_writes_the_other_reads_at_once() {
    let lab = Lab::new(Backing::Tmpfs);
    let (here, there) = (lab.dst.join("f"), lab.src.join("f"));
    fs::write(&there, b"0").unwrap();
    let near = File::options().read(true).write(true).open(&here).unwrap();
    let far = File::options().read(true).write(true).open(&there).unwrap();
    let mut byte = [0];
    for n in 0..200u8 {
        far.write_all_at(&[n], 0).unwrap();
        near.read_exact_at(&mut byte, 0).unwrap();
        assert_eq!(byte, [n]);
        near.write_all_at(&[n ^ 255], 0).unwrap();
        far.read_exact_at(&mut byte, 0).unwrap();
        assert_eq!(byte, [n ^ 255]);
        far.set_len(u64::from(n) + 1).unwrap();
        assert_eq!(near.metadata().unwrap().len(), u64::from(n) + 1);
        // The same when a path walk has just brought attributes, before or after the file was opened.
        assert_eq!(here.metadata().unwrap().len(), u64::from(n) + 1);
        far.set_len(u64::from(n) + 2).unwrap();
        assert_eq!(near.metadata().unwrap().len(), u64::from(n) + 2);
        fs::write(lab.src.join("o"), b"").unwrap();
        let just_opened = File::open(lab.dst.join("o")).unwrap();
        fs::write(lab.src.join("o"), b"more").unwrap();
        assert_eq!(just_opened.metadata().unwrap().len(), 4);
        // A new file under the same name.
        fs::write(lab.src.join("new"), [n]).unwrap();
        fs::rename(lab.src.join("new"), lab.src.join("g")).unwrap();
        assert_eq!(fs::read(lab.dst.join("g")).unwrap(), [n]);
    }
    fs::remove_file(&there).unwrap();
    assert!(!here.exists());
}

#[test]
fn appends_of_both_sides_never_overwrite_each_other() {
    let lab = Lab::new(Backing::Tmpfs);
    let open = |p: &Path| File::options().append(true).create(true).open(p).unwrap();
    let (near, far) = (open(&lab.dst.join("log")), open(&lab.src.join("log")));
    std::thread::scope(|s| {
        for (mut file, byte) in [(near, b'n'), (far, b'f')] {
            s.spawn(move || (0..500).for_each(|_| file.write_all(&[byte; 10]).unwrap()));
        }
    });
    let log = fs::read(lab.src.join("log")).unwrap();
    assert_eq!(log.len(), 10_000);
    assert!(log.chunks(10).all(|c| c.iter().all(|b| *b == c[0])), "records are whole");
}

#[test]
fn a_shared_mapping_reaches_the_host() {
    let lab = Lab::new(Backing::Tmpfs);
    if !has("python3") {
        return;
    }
    let script = r"
import mmap, os
f = open('m', 'a+b'); f.write(b'x' * 8192); f.flush()
m = mmap.mmap(f.fileno(), 8192); m[4096:4101] = b'HELLO'; m.flush(); m[0:2] = b'yy'; m.close(); f.close()
";
    shell(&lab.dst, &format!("python3 -c \"{script}\""));
    let got = fs::read(lab.src.join("m")).unwrap();
    assert_eq!(got.len(), 8192, "write-back of a mapping is no append, whatever the fd's flags");
    assert_eq!((&got[..3], &got[4096..4102]), (&b"yyx"[..], &b"HELLOx"[..]));
}

fn lock(file: &File, kind: i32, wait: bool) -> nix::Result<()> {
    let flock = libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap(),
        l_whence: 0,
        l_start: 10,
        l_len: 5,
        l_pid: 0,
    };
    use nix::fcntl::{FcntlArg, fcntl};
    fcntl(file, if wait { FcntlArg::F_SETLKW(&flock) } else { FcntlArg::F_SETLK(&flock) }).map(drop)
}

/// A lock of the host that only its own close ends. (This process is both sides, and a POSIX lock ends with the first
/// close of *any* fd of its process.)
fn hold(path: &Path) -> File {
    let file = File::options().write(true).open(path).unwrap();
    let mut all = libc::flock {
        l_type: libc::c_short::try_from(libc::F_WRLCK).unwrap(),
        l_whence: 0,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    farside::sys::file::ofd_lock(file.as_fd(), libc::F_OFD_SETLK, &mut all).unwrap();
    file
}

/// Whether another process could take the lock just now.
fn is_free_for_others(path: &Path) -> bool {
    let script = "import fcntl,sys; f=open(sys.argv[1],'r+b')\ntry: fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB,5,10)\nexcept OSError: sys.exit(1)";
    Command::new("python3").args(["-c", script]).arg(path).status().unwrap().success()
}

#[test]
fn posix_locks_are_the_hosts() {
    if !has("python3") {
        return;
    }
    let lab = Lab::new(Backing::Tmpfs);
    fs::write(lab.src.join("f"), b"").unwrap();
    let open = |dir: &Path| File::options().read(true).write(true).open(dir.join("f")).unwrap();
    let near = open(&lab.dst);
    lock(&near, libc::F_WRLCK, false).unwrap();
    assert!(!is_free_for_others(&lab.src.join("f")), "a host process meets the lock");
    assert!(!is_free_for_others(&lab.dst.join("f")), "and so does another one here");
    let again = open(&lab.dst);
    drop(again);
    assert!(is_free_for_others(&lab.src.join("f")), "closing any fd of the file gives the lock back, as POSIX wants");
    lock(&near, libc::F_WRLCK, false).unwrap();
    lock(&near, libc::F_UNLCK, false).unwrap();
    assert!(is_free_for_others(&lab.src.join("f")));
    // And the other way round: the host's lock is met here.
    let far = open(&lab.src);
    lock(&far, libc::F_WRLCK, false).unwrap();
    assert_eq!(lock(&near, libc::F_WRLCK, false), Err(Errno::EAGAIN));
    std::thread::scope(|s| {
        let waiter = s.spawn(|| lock(&near, libc::F_WRLCK, true));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!waiter.is_finished(), "it waits");
        lock(&far, libc::F_UNLCK, false).unwrap();
        waiter.join().unwrap().unwrap();
    });
}

#[test]
fn who_asks_for_a_lock_in_the_way_hears_of_it() {
    if !has("python3") {
        return;
    }
    let lab = Lab::new(Backing::Tmpfs);
    fs::write(lab.src.join("f"), b"").unwrap();
    let near = File::options().read(true).write(true).open(lab.dst.join("f")).unwrap();
    lock(&near, libc::F_WRLCK, false).unwrap();
    let ask = "import fcntl,os,struct,sys
f=open(sys.argv[1],'r+b')
l=fcntl.fcntl(f,fcntl.F_GETLK,struct.pack('hhqqi4x',fcntl.F_RDLCK,0,0,0,0))
print(*struct.unpack('hhqqi4x',l))";
    let out = Command::new("python3").args(["-c", ask]).arg(lab.dst.join("f")).output().unwrap();
    let said = String::from_utf8(out.stdout).unwrap();
    // Type, whence, start, length, and the pid of the program here that holds it.
    assert_eq!(said.trim(), format!("{} 0 10 5 {}", libc::F_WRLCK, std::process::id()));
    let far = Command::new("python3").args(["-c", ask]).arg(lab.src.join("f")).output().unwrap();
    let said = String::from_utf8(far.stdout).unwrap();
    assert!(said.starts_with(&format!("{} 0 10 5", libc::F_WRLCK)), "the host sees it: {said}");
}

#[test]
fn a_signal_ends_the_wait_for_a_lock_and_waits_do_not_eat_the_pool() {
    let lab = Lab::new(Backing::Tmpfs);
    fs::write(lab.src.join("f"), b"").unwrap();
    let far = hold(&lab.src.join("f"));
    std::thread::scope(|s| {
        let (tell, told) = std::sync::mpsc::channel();
        let waiters: Vec<_> = (0..40)
            .map(|_| {
                let (tell, path) = (tell.clone(), lab.dst.join("f"));
                s.spawn(move || {
                    let near = File::options().write(true).open(path).unwrap();
                    tell.send(farside::sys::kick::Kickable::this_thread()).unwrap();
                    lock(&near, libc::F_WRLCK, true)
                })
            })
            .collect();
        let threads: Vec<_> = told.iter().take(40).collect();
        std::thread::sleep(Duration::from_millis(200));
        assert!(lab.dst.join("f").exists(), "others are served meanwhile");
        threads.iter().for_each(|t| t.kick());
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap(), Err(Errno::EINTR));
        }
    });
    drop(far);
}

#[test]
fn flock_is_the_hosts_too() {
    let lab = Lab::new(Backing::Tmpfs);
    fs::write(lab.src.join("f"), b"").unwrap();
    let (near, far) = (File::open(lab.dst.join("f")).unwrap(), File::open(lab.src.join("f")).unwrap());
    let try_far = || farside::sys::file::flock(far.as_fd(), libc::LOCK_EX | libc::LOCK_NB);
    farside::sys::file::flock(near.as_fd(), libc::LOCK_EX).unwrap();
    assert_eq!(try_far(), Err(Errno::EAGAIN));
    drop(near);
    let end = Instant::now() + Duration::from_secs(2);
    while try_far().is_err() {
        assert!(Instant::now() < end, "the last close gives it back");
    }
}

#[test]
fn new_files_belong_to_the_caller_with_the_callers_umask() {
    let lab = Lab::new(Backing::Tmpfs);
    fs::set_permissions(&lab.src, fs::Permissions::from_mode(0o777)).unwrap();
    let make = "umask 027; echo x > f; mkdir d; ln -s x l; mkfifo p";
    let status = Command::new("sh").args(["-ec", make]).current_dir(&lab.dst).uid(1234).gid(2345).status().unwrap();
    assert!(status.success());
    for (name, mode) in [("f", 0o640), ("d", 0o750), ("l", 0o777), ("p", 0o640)] {
        let m = lab.src.join(name).symlink_metadata().unwrap();
        assert_eq!((m.uid(), m.gid(), m.mode() & 0o7777), (1234, 2345, mode), "{name}");
    }
    let peek = Command::new("cat").arg(lab.dst.join("f")).uid(1235).gid(1).output().unwrap();
    assert!(!peek.status.success(), "a stranger may not read it");
    // A default ACL replaces the umask, as on the host.
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in [(1u16, 7u16, u32::MAX), (2, 7, 1000), (4, 0, u32::MAX), (0x10, 7, u32::MAX), (0x20, 0, u32::MAX)] {
        acl.extend([tag.to_le_bytes(), perm.to_le_bytes()].concat());
        acl.extend(id.to_le_bytes());
    }
    for dir in [&lab.dst, &lab.twin] {
        let sub = dir.join("acl");
        fs::create_dir(&sub).unwrap();
        let path = std::ffi::CString::new(sub.to_str().unwrap()).unwrap();
        farside::sys::file::setxattr(&path, c"system.posix_acl_default", &acl, 0).unwrap();
        shell(&sub, "umask 077; echo x > f; mkdir d");
    }
    assert_eq!(twins::picture(&lab.dst.join("acl")), twins::picture(&lab.twin.join("acl")));
    // Named in the ACL: may write; not named: not even look.
    fs::set_permissions(lab.dst.join("acl"), fs::Permissions::from_mode(0o777)).unwrap();
    for (uid, may) in [(1000, true), (1001, false)] {
        let script = format!("cat {0} >/dev/null 2>&1 && echo y >> {0}", lab.dst.join("acl/f").display());
        let ok = Command::new("sh").args(["-c", &script]).uid(uid).gid(uid).status().unwrap().success();
        assert_eq!(ok, may, "uid {uid}");
    }
}

#[test]
fn a_hundred_thousand_files_need_few_fds() {
    for (backing, count) in [(Backing::Tmpfs, 100_000), (Backing::Overlay, 20_000)] {
        let lab = Lab::new(backing);
        for n in 0..count {
            let dir = lab.src.join(format!("s{}", n / 1000));
            if n % 1000 == 0 {
                fs::create_dir(&dir).unwrap();
            }
            File::create(dir.join(format!("f{n}"))).unwrap();
        }
        // What is open now and then must not be what the cache throws out.
        let mut kept = Vec::new();
        for n in 0..count {
            let path = lab.dst.join(format!("s{}/f{n}", n / 1000));
            assert_eq!(path.symlink_metadata().unwrap().len(), 0);
            if n % 1000 == 7 {
                kept.push(File::open(path).unwrap());
            }
        }
        let fds = fs::read_dir("/proc/self/fd").unwrap().count();
        assert!(fds < 9000, "{fds} fds in this process, which is both sides (and other tests)");
        for file in kept {
            assert_eq!(file.metadata().unwrap().nlink(), 1);
        }
    }
}

#[test]
fn a_cut_link_is_eio_within_seconds_and_then_works_again() {
    let lab = Lab::new(Backing::Tmpfs);
    fs::write(lab.src.join("f"), b"one").unwrap();
    let mut old = File::open(lab.dst.join("f")).unwrap();
    let _far = hold(&lab.src.join("f"));
    std::thread::scope(|s| {
        let near = File::options().write(true).open(lab.dst.join("f")).unwrap();
        let waiter = s.spawn(move || lock(&near, libc::F_WRLCK, true));
        std::thread::sleep(Duration::from_millis(100));
        let cut = Instant::now();
        lab.far.cut(false);
        assert_eq!(waiter.join().unwrap(), Err(Errno::EIO), "what was under way");
        assert_eq!(errno(lab.dst.join("f").metadata()), Errno::EIO, "what comes later");
        assert!(cut.elapsed() < Duration::from_secs(3), "{:?}", cut.elapsed());
    });
    lab.far.reopen();
    let back = Instant::now();
    while lab.dst.join("f").metadata().is_err() {
        assert!(back.elapsed() < Duration::from_secs(10), "the mount comes back by itself");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(fs::read(lab.dst.join("f")).unwrap(), b"one");
    fs::write(lab.dst.join("g"), b"two").unwrap();
    assert_eq!(fs::read(lab.src.join("g")).unwrap(), b"two");
    let mut text = String::new();
    assert_eq!(errno(old.read_to_string(&mut text)), Errno::ESTALE, "what was open before says so");
}

#[test]
fn umount_ends_everything() {
    let mut lab = Lab::new(Backing::Tmpfs);
    let _host = UnixListener::bind(lab.src.join("s")).unwrap();
    drop(UnixStream::connect(lab.dst.join("s")).unwrap());
    lab.umount(MntFlags::empty());
    // With the host gone, by force, and with a file open.
    lab.mount();
    let open = File::create(lab.dst.join("f")).unwrap();
    lab.far.cut(false);
    let _ = nix::mount::umount2(&lab.dst, MntFlags::MNT_FORCE);
    drop(open);
    lab.umount(MntFlags::MNT_DETACH);
    // Lazily, while a file is in use: it works on until it is closed.
    lab.far.reopen();
    lab.mount();
    let mut open = File::create(lab.dst.join("f")).unwrap();
    let wait = std::thread::spawn({
        let dst = lab.dst.clone();
        move || {
            nix::mount::umount2(&dst, MntFlags::MNT_DETACH).unwrap();
            std::thread::sleep(Duration::from_secs(2));
            open.write_all(b"late").unwrap();
        }
    });
    wait.join().unwrap();
    assert_eq!(fs::read(lab.src.join("f")).unwrap(), b"late");
}

fn talk(stream: &mut UnixStream, text: &str) -> String {
    stream.write_all(text.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Answers everyone with a word and what they said.
fn answer_all(listener: UnixListener, word: &'static str) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut text = String::new();
            let _ = stream.read_to_string(&mut text);
            let _ = stream.write_all(format!("{word}:{text}").as_bytes());
        }
    });
}

#[test]
fn a_plain_connect_reaches_the_hosts_socket() {
    for backing in [Backing::Tmpfs, Backing::Disk, Backing::Overlay] {
        let lab = Lab::new(backing);
        answer_all(UnixListener::bind(lab.src.join("s")).unwrap(), "host");
        for n in 0..20 {
            let mut stream = UnixStream::connect(lab.dst.join("s")).unwrap_or_else(|e| panic!("{backing:?} {n}: {e}"));
            assert_eq!(talk(&mut stream, "hi"), "host:hi");
        }
        let mode = lab.dst.join("s").symlink_metadata().unwrap().mode();
        assert_eq!(mode, lab.src.join("s").symlink_metadata().unwrap().mode());
        // nobody may not connect to a socket that only root may write.
        fs::set_permissions(lab.src.join("s"), fs::Permissions::from_mode(0o600)).unwrap();
        let script = "import socket,sys; s=socket.socket(socket.AF_UNIX)\ntry: s.connect(sys.argv[1])\nexcept PermissionError: sys.exit(13)";
        if has("python3") {
            let run = |uid| {
                let mut c = Command::new("python3");
                c.args(["-c", script]).arg(lab.dst.join("s")).uid(uid).gid(uid).status().unwrap().code()
            };
            assert_eq!(run(65534), Some(13), "{backing:?}");
            assert_eq!(run(0), Some(0));
        }
        fs::remove_file(lab.dst.join("s")).unwrap();
        assert!(!lab.src.join("s").exists());
        assert_eq!(errno(UnixStream::connect(lab.dst.join("s"))), Errno::ENOENT);
        // Another server, another inode, the same name.
        answer_all(UnixListener::bind(lab.src.join("s")).unwrap(), "second");
        assert_eq!(talk(&mut UnixStream::connect(lab.dst.join("s")).unwrap(), "hi"), "second:hi");
    }
}

#[test]
fn a_host_socket_without_its_process_refuses() {
    let lab = Lab::new(Backing::Tmpfs);
    let listener = UnixListener::bind(lab.src.join("s")).unwrap();
    drop(UnixStream::connect(lab.dst.join("s")).unwrap());
    drop(listener);
    assert_eq!(errno(UnixStream::connect(lab.dst.join("s"))), Errno::ECONNREFUSED);
}

#[test]
fn a_socket_bound_here_is_always_the_binders() {
    for backing in [Backing::Tmpfs, Backing::Overlay] {
        let mut lab = Lab::new(backing);
        fs::create_dir(lab.dst.join("sub")).unwrap();
        for n in 0..100 {
            let path = lab.dst.join("sub/mine");
            answer_all(UnixListener::bind(&path).unwrap(), "binder");
            if n % 10 == 0 {
                // The kernel may drop every name that nobody holds.
                let _ = fs::write("/proc/sys/vm/drop_caches", "2");
                std::thread::sleep(Duration::from_millis(20));
            }
            assert_eq!(path.symlink_metadata().unwrap().mode() & libc::S_IFMT, libc::S_IFSOCK);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o775)).unwrap();
            let mut stream = UnixStream::connect(&path).unwrap();
            assert_eq!(talk(&mut stream, "hi"), "binder:hi", "round {n}");
            if n % 2 == 0 {
                fs::rename(&path, lab.dst.join("sub/moved")).unwrap();
                let mut stream = UnixStream::connect(lab.dst.join("sub/moved")).unwrap();
                assert_eq!(talk(&mut stream, "hi"), "binder:hi", "round {n}, renamed");
                fs::remove_file(lab.dst.join("sub/moved")).unwrap();
            } else {
                fs::remove_file(&path).unwrap();
            }
        }
        // A new mount process asks the same kernel table, so its answer is the same: nobody on the host is behind it.
        let listener = UnixListener::bind(lab.dst.join("sub/kept")).unwrap();
        lab.umount(MntFlags::MNT_DETACH);
        lab.mount();
        assert_eq!(errno(UnixStream::connect(lab.dst.join("sub/kept"))), Errno::ECONNREFUSED);
        drop(listener);
    }
}

#[test]
fn a_read_only_export_is_read_only_on_the_host() {
    let lab = Lab::with(Backing::Tmpfs, farside::config::Access::Ro);
    fs::write(lab.src.join("f"), b"x").unwrap();
    assert_eq!(fs::read(lab.dst.join("f")).unwrap(), b"x");
    assert_eq!(errno(File::create(lab.dst.join("g"))), Errno::EROFS);
    assert_eq!(errno(fs::remove_file(lab.dst.join("f"))), Errno::EROFS);
}

#[test]
fn programs_work_on_it() {
    let lab = Lab::new(Backing::Disk);
    if has("git") {
        let script = "git init -q r && cd r && git config user.email a@b && git config user.name a && \
                      for i in 1 2 3 4 5; do echo $i > f$i; git add .; git commit -qm $i; done; git gc -q; git fsck && git log --oneline | wc -l";
        assert_eq!(shell(&lab.dst, script).trim(), "5");
    }
    if has("sqlite3") {
        for mode in ["wal", "delete"] {
            let sql = format!("pragma journal_mode={mode}; create table t(a); with recursive c(n) as (select 1 union all select n+1 from c where n<5000) insert into t select n from c; select sum(a) from t; pragma integrity_check;");
            let got = shell(&lab.dst, &format!("sqlite3 {mode}.db '{sql}'"));
            assert_eq!(got, format!("{mode}\n12502500\nok\n"));
        }
    }
    if has("qemu-img") {
        let script = "qemu-img create -q -f qcow2 b.qcow2 64M && qemu-img create -q -f qcow2 -b b.qcow2 -F qcow2 o.qcow2 && \
                      qemu-img snapshot -c s1 o.qcow2 && qemu-img info o.qcow2 | grep -q s1 && \
                      head -c 5000000 /dev/urandom > r.raw && qemu-img convert -f raw -O qcow2 -t none -T none r.raw c.qcow2 && \
                      qemu-img compare -f raw -F qcow2 r.raw c.qcow2";
        shell(&lab.dst, script);
        shell(&lab.src, "qemu-img compare -f raw -F qcow2 r.raw c.qcow2");
    }
}

/// A near side that is not one: it says what it likes.
struct Hostile {
    reader: Box<dyn Read + Send>,
    writer: Box<dyn Write + Send>,
    next: u64,
}

impl Hostile {
    fn mount(lab: &Lab, path: &Path) -> (Self, Mounted) {
        let timeout = Duration::from_secs(5);
        let conn = farside::link::conn::dial(&lab.far.addr.to_string(), &far::hello(), timeout).unwrap();
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
    let lab = Lab::with(Backing::Tmpfs, farside::config::Access::Ro);
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

/// `mount.qtfs` itself: its exit status and its words.
fn mount_qtfs(args: &[&str]) -> (Option<i32>, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_mount_qtfs")).args(args).env_remove("FARSIDE_INSECURE_PLAINTEXT")
        .env("FARSIDE_CONFIG_DIR", "/nonexistent").output().unwrap();
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn mount_qtfs_says_what_is_wrong_or_mounts() {
    let mut lab = Lab::new(Backing::Tmpfs);
    lab.umount(MntFlags::empty());
    let (src, dst) = (lab.src.to_str().unwrap(), lab.dst.to_str().unwrap());
    let host = format!("insecure-plaintext,host={}", lab.far.addr);
    let options = |o: &str| mount_qtfs(&[src, dst, "-o", o]);
    for (typed, status, words) in [
        ("proc".to_string(), 1, "not in this release"),
        ("insecure-plaintext".into(), 1, "which host?"),
        ("host=127.0.0.1:1".into(), 1, "not encrypted"),
        ("insecure-plaintext,host=127.0.0.1:1".into(), 32, "127.0.0.1:1"),
        (format!("{host},frob"), 1, "frob"),
    ] {
        let (code, said) = options(&typed);
        assert_eq!(code, Some(status), "{typed}: {said}");
        assert!(said.contains(words), "{typed}: {said}");
        assert!(said.lines().filter(|l| !l.contains("warning")).count() == 1, "one line: {said}");
    }
    let (code, said) = mount_qtfs(&["/etc", dst, "-o", &host]);
    assert!(code == Some(32) && said.contains("does not export"), "{said}");
    assert_eq!(options(&host).0, Some(0));
    let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    let line = mounts.lines().find(|l| l.starts_with(&format!("{src} {dst} fuse.qtfs "))).expect("in the mount table");
    assert!(line.contains("rw,nosuid,nodev"), "{line}");
    fs::write(lab.dst.join("f"), b"x").unwrap();
    assert_eq!(fs::read(lab.src.join("f")).unwrap(), b"x");
    nix::mount::umount(&lab.dst).unwrap();
    let process = |p: &fs::DirEntry| {
        let line = fs::read(p.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(dst) && p.file_name() != *std::process::id().to_string()
    };
    let end = Instant::now() + Duration::from_secs(5);
    while fs::read_dir("/proc").unwrap().flatten().any(|p| process(&p)) {
        assert!(Instant::now() < end, "the mount's process ends with the mount");
        std::thread::sleep(Duration::from_millis(20));
    }
}
