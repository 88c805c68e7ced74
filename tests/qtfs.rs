//! qtfs with real mounts over loopback. Needs root, /dev/fuse and mount namespaces; a test without them fails.

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

use lab::{Backing, Lab};
use shell::{errno, has, shell};

fn twins_agree(backing: Backing, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        // With one fd kept, every other request finds its inode anew: by handle, or step by step from the root.
        let node_fds = if seed % 2 == 0 { 1 } else { usize::MAX };
        let lab = Lab::with(backing, farside::config::Access::Rw, node_fds);
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
        // Born without a name, and given one later.
        use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
        let born = open(&lab.dst, OFlag::O_TMPFILE | OFlag::O_RDWR, nix::sys::stat::Mode::from_bits_truncate(0o640));
        let mut born = File::from(born.unwrap());
        born.write_all(b"nameless").unwrap();
        nix::unistd::linkat(&born, c"", AT_FDCWD, &lab.dst.join("named"), AtFlags::AT_EMPTY_PATH).unwrap();
        assert_eq!(fs::read(lab.src.join("named")).unwrap(), b"nameless");
    }
}

#[test]
fn a_tree_that_moves_under_an_open_directory_stays_found() {
    for backing in [Backing::Tmpfs, Backing::Overlay] {
        let lab = Lab::with(backing, farside::config::Access::Rw, 1);
        fs::create_dir_all(lab.dst.join("x/y/z")).unwrap();
        fs::write(lab.dst.join("x/y/z/f"), b"1").unwrap();
        let held = File::open(lab.dst.join("x/y/z")).unwrap();
        let inside = |name: &str| format!("/proc/self/fd/{}/{name}", std::os::fd::AsRawFd::as_raw_fd(&held));
        // Moved through the mount, then on the host, and asked for from within each time.
        fs::rename(lab.dst.join("x/y"), lab.dst.join("moved")).unwrap();
        assert_eq!(fs::read(inside("f")).unwrap(), b"1", "{backing:?}");
        fs::rename(lab.src.join("moved"), lab.src.join("x/again")).unwrap();
        assert_eq!(fs::read(inside("f")).unwrap(), b"1", "{backing:?}");
        fs::write(inside("g"), b"2").unwrap();
        assert_eq!(fs::read(lab.src.join("x/again/z/g")).unwrap(), b"2");
        assert_eq!(fs::read(lab.dst.join("x/again/z/g")).unwrap(), b"2");
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
    let flock =
        libc::flock { l_type: libc::c_short::try_from(kind).unwrap(), l_whence: 0, l_start: 10, l_len: 5, l_pid: 0 };
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
    for (tag, perm, id) in
        [(1u16, 7u16, u32::MAX), (2, 7, 1000), (4, 0, u32::MAX), (0x10, 7, u32::MAX), (0x20, 0, u32::MAX)]
    {
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

#[test]
fn a_read_only_export_is_read_only_on_the_host() {
    let lab = Lab::read_only();
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
            let sql = format!(
                "pragma journal_mode={mode}; create table t(a); with recursive c(n) as (select 1 union all select n+1 from c where n<5000) insert into t select n from c; select sum(a) from t; pragma integrity_check;"
            );
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

/// `mount.qtfs` itself: its exit status and its words.
fn mount_qtfs(args: &[&str]) -> (Option<i32>, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_mount_qtfs"))
        .args(args)
        .env("FARSIDE_CONFIG_DIR", own_key::dir())
        .env("FARSIDE_RUN_DIR", own_key::dir())
        .output()
        .unwrap();
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn mount_qtfs_says_what_is_wrong_or_mounts() {
    let mut lab = Lab::new(Backing::Tmpfs);
    lab.umount(MntFlags::empty());
    let (src, dst) = (lab.src.to_str().unwrap(), lab.dst.to_str().unwrap());
    let host = format!("host={}", lab.far.addr);
    let options = |o: &str| mount_qtfs(&[src, dst, "-o", o]);
    for (typed, status, words) in [
        ("proc".to_string(), 1, "not in this release"),
        ("rw".into(), 1, "which host?"),
        ("host=127.0.0.1:1".into(), 32, "127.0.0.1:1"),
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
