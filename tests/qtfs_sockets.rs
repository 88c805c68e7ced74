//! Unix sockets through a mount, both ways. Needs root, /dev/fuse and mount namespaces.

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

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::MntFlags;

use lab::{Backing, Lab};
use shell::{errno, has};

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
