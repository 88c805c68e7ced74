//! Far sockets at local paths: programs without the shim.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use farside::errno::Errno;
use farside::sys::unix::{self, SocketKind};

use crate::lab::{Answer, Attach, Lab, lab, serve, soon};

/// `KIND:LOCAL=FAR` and LOCAL.
fn export(lab: &Lab, kind: &str, name: &str) -> (String, PathBuf) {
    let local = lab.dir.join(format!("local-{name}"));
    (format!("{kind}{}={}", local.display(), lab.near(name)), local)
}

fn far(lab: &Lab, name: &str, kind: SocketKind, answer: Answer) {
    serve(lab.far_path(name).as_os_str().as_encoded_bytes(), kind, 0o666, answer);
}

#[test]
fn an_exported_socket_is_reached_as_whoever_connects() {
    let Some(lab) = lab("export") else { return };
    far(&lab, "who", SocketKind::Stream, Answer::Identity);
    far(&lab, "packets", SocketKind::SeqPacket, Answer::Echo);
    let (who, who_at) = export(&lab, "", "who");
    let (packets, packets_at) = export(&lab, "seqpacket:", "packets");
    lab.export(&[who, packets]).unwrap();
    assert_eq!(std::fs::metadata(&who_at).unwrap().mode() & 0o777, 0o600);
    let mut said = String::new();
    UnixStream::connect(&who_at).unwrap().read_to_string(&mut said).unwrap();
    assert!(said.starts_with("uid 0 gid 0 groups"), "{said}");
    let client = unix::socket(SocketKind::SeqPacket, false).unwrap();
    unix::connect(client.as_fd(), packets_at.as_os_str().as_encoded_bytes()).unwrap();
    let mut client = UnixStream::from(client);
    for text in [&b"one"[..], b"three"] {
        client.write_all(text).unwrap();
        let mut got = [0; 10];
        let n = client.read(&mut got).unwrap();
        assert_eq!(&got[..n], text);
    }
}

#[test]
fn a_far_no_is_an_end_at_once() {
    let Some(lab) = lab("export-no") else { return };
    let (missing, at) = export(&lab, "", "missing");
    lab.export(&[missing]).unwrap();
    for _ in 0..3 {
        let mut client = UnixStream::connect(&at).unwrap();
        // Broken pipe when the end came first.
        let _ = client.write_all(b"hello");
        let got = client.read(&mut [0; 10]);
        assert!(matches!(&got, Ok(0)) || got.is_err_and(|e| e.raw_os_error() == Some(nix::libc::ECONNRESET)));
    }
}

#[test]
fn datagrams_go_to_a_far_server_and_to_its_successor() {
    let Some(lab) = lab("export-dgram") else { return };
    let (datagrams, at) = export(&lab, "dgram:", "d");
    lab.export(&[datagrams]).unwrap();
    let sender = UnixDatagram::unbound().unwrap();
    for _ in 0..2 {
        let server = UnixDatagram::bind(lab.far_path("d")).unwrap();
        server.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
        let mut got = [0; 10];
        soon("a datagram", || {
            sender.send_to(b"hello", &at).unwrap();
            server.recv(&mut got).is_ok_and(|n| &got[..n] == b"hello")
        });
        drop(server);
        std::fs::remove_file(lab.far_path("d")).unwrap();
    }
    let kept = Arc::new(Mutex::new(Vec::new()));
    far(&lab, "d", SocketKind::Datagram, Answer::Keep(kept.clone()));
    soon("another", || {
        sender.send_to(b"x", &at).unwrap();
        !kept.lock().unwrap().is_empty()
    });
}

/// HUP and the daemon's end wait for an export's thread.
#[test]
fn a_datagram_with_a_file_that_does_not_answer_holds_up_no_change_of_exports() {
    let Some(lab) = lab("export-hung") else { return };
    *lab.far.attach.lock().unwrap() = Attach::Nowhere;
    let (datagrams, at) = export(&lab, "dgram:", "hung");
    lab.export(&[datagrams]).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/shim/hung_file.py");
    let mut sender = Command::new("unshare");
    sender.args(["-m", "--propagation", "private", "python3", script]).arg(&at);
    let mut sender = sender.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(sender.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "sent\n");
    let changed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            lab.export(&[]).unwrap();
            changed.store(true, Ordering::Relaxed);
        });
        let until = Instant::now() + Duration::from_secs(5);
        while !changed.load(Ordering::Relaxed) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        let in_time = changed.load(Ordering::Relaxed);
        // Now the file system goes, and whoever waits for it goes on.
        drop(sender.stdin.take());
        assert!(sender.wait().unwrap().success());
        assert!(in_time, "the export's thread closes the file itself");
    });
}

#[test]
fn a_dead_socket_file_is_replaced_and_a_living_one_is_not() {
    let Some(mut lab) = lab("export-stale") else { return };
    far(&lab, "e", SocketKind::Stream, Answer::Echo);
    let (text, at) = export(&lab, "", "e");
    let living = UnixListener::bind(&at).unwrap();
    assert_eq!(lab.export(std::slice::from_ref(&text)).unwrap_err().errno, Errno::EADDRINUSE);
    drop(living);
    lab.export(std::slice::from_ref(&text)).unwrap();
    let inode = || std::fs::symlink_metadata(&at).unwrap().ino();
    let first = inode();
    // The same again changes nothing.
    lab.export(std::slice::from_ref(&text)).unwrap();
    assert_eq!(inode(), first);
    let mut client = UnixStream::connect(&at).unwrap();
    client.write_all(b"hello").unwrap();
    client.read_exact(&mut [0; 5]).unwrap();
    lab.export(&[]).unwrap();
    assert!(!at.exists());
    client.write_all(b"still").unwrap();
    client.read_exact(&mut [0; 5]).unwrap();
    std::fs::write(&at, "a file").unwrap();
    assert_eq!(lab.export(std::slice::from_ref(&text)).unwrap_err().errno, Errno::EADDRINUSE);
    std::fs::remove_file(&at).unwrap();
    lab.export(&[text]).unwrap();
    lab.stop();
    assert!(!at.exists(), "removed with the daemon");
}
