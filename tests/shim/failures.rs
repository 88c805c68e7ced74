//! Every no, exactly as the far kernel or the local one said it; and what dies in the middle.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use farside::sys::scm;
use farside::sys::unix::{self, SocketKind};

use crate::lab::{Answer, Lab, ends_soon, lab, open_fds, said, serve, soon};

fn errno(lab: &Lab, name: &str, kind: &str) -> String {
    lab.run(&["errno", &lab.near(name), kind])
}

#[test]
fn the_far_errno_is_the_callers() {
    let Some(lab) = lab("errno") else { return };
    let far = |name: &str| lab.far_path(name);
    drop(UnixListener::bind(far("stale")).unwrap());
    std::fs::write(far("file"), "").unwrap();
    std::os::unix::fs::symlink("loop", far("loop")).unwrap();
    serve(far("live").as_os_str().as_encoded_bytes(), SocketKind::Stream, 0o600, Answer::Echo);
    for (name, kind, expected) in [
        ("missing", "stream", "ENOENT"),
        ("stale", "stream", "ECONNREFUSED"),
        ("file", "stream", "ECONNREFUSED"),
        ("loop", "stream", "ELOOP"),
        ("live", "seqpacket", "EPROTOTYPE"),
        ("live", "dgram", "EPROTOTYPE"),
        ("file/x", "stream", "ENOTDIR"),
        ("live", "stream", "OK"),
    ] {
        assert_eq!(errno(&lab, name, kind), format!("{expected}\n"), "{name} {kind}");
    }
}

#[test]
fn somebody_else_is_somebody_else_over_there() {
    let Some(lab) = lab("identity") else { return };
    let path = |name: &str| lab.far_path(name).into_os_string().into_encoded_bytes();
    serve(&path("private"), SocketKind::Stream, 0o600, Answer::Identity);
    serve(&path("open"), SocketKind::Stream, 0o666, Answer::Identity);
    assert_eq!(lab.run(&["as", &lab.near("private"), "65534"]), "EACCES\n");
    let said = lab.run(&["as", &lab.near("open"), "65534"]);
    assert_eq!(said, "OK\nuid 65534 gid 65534 groups [65535]\n");
    assert_eq!(lab.run(&["as", &lab.near("private"), "0"]), "OK\nuid 0 gid 0 groups [1]\n");
    // Not among the uids that may ask: as if there were no daemon.
    assert_eq!(lab.run(&["as", &lab.near("open"), "1234"]), "ENOENT\n");
}

#[test]
fn peercred_shows_who_listens_over_there() {
    let Some(lab) = lab("peercred") else { return };
    let script = "
import os, socket, sys
os.setgid(107); os.setuid(64055)
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print('up', flush=True); s.accept()";
    let path = lab.far_path("q");
    std::fs::set_permissions(lab.dir.join("far"), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let mut python = std::process::Command::new("python3");
    let mut server = python.args(["-c", script]).arg(&path).stdout(Stdio::piped()).spawn().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(server.stdout.take().unwrap()), &mut String::new())
        .unwrap();
    let script = "
import socket, struct, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
print(struct.unpack('3i', s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1:])";
    let mut command = lab.program("python3");
    command.args(["-c", script, &lab.near("q")]);
    assert_eq!(said(command), "(64055, 107)\n");
    server.wait().unwrap();
}

#[test]
fn a_full_backlog_is_eagain_or_a_wait() {
    let Some(lab) = lab("backlog") else { return };
    let listener = unix::socket(SocketKind::Stream, false).unwrap();
    unix::bind(listener.as_fd(), lab.far_path("full").as_os_str().as_encoded_bytes()).unwrap();
    unix::listen(listener.as_fd(), 0).unwrap();
    assert_eq!(errno(&lab, "full", "stream"), "OK\n");
    assert_eq!(lab.run(&["nonblock", &lab.near("full")]), "EAGAIN\n");
    let waits = lab.client(&["errno", &lab.near("full")]).stdout(Stdio::piped()).spawn().unwrap();
    soon("the third ask", || lab.asked() == 3);
    std::thread::sleep(Duration::from_millis(200));
    let _first = unix::accept(listener.as_fd()).unwrap();
    assert_eq!(ends_soon(waits).stdout, b"OK\n");
    let begun = Instant::now();
    let slow = ends_soon(lab.client(&["errno", &lab.near("full")]).stdout(Stdio::piped()).spawn().unwrap());
    assert_eq!(slow.stdout, b"ETIMEDOUT\n");
    assert!(begun.elapsed() < Duration::from_secs(6));
}

#[test]
fn names_of_this_machine_never_reach_the_daemon() {
    let Some(lab) = lab("never") else { return };
    for path in
        ["/run/systemd/x", "/var/run/dbus/none", "/dev/log.none/../log", "/run/user/1/x", "@/tmp/x", "/run/nscd/s"]
    {
        if !std::path::Path::new(path).exists() {
            let said = lab.run(&["errno", path]);
            assert!(said == "ENOENT\n" || said == "ECONNREFUSED\n", "{path}: {said}");
        }
    }
    let link = lab.dir.join("near/link");
    std::os::unix::fs::symlink("/run/systemd", &link).unwrap();
    assert_eq!(lab.run(&["errno", &lab.near("link/near/x")]), "ENOENT\n", "wherever a link leads");
    assert_eq!(lab.asked(), 0);
}

#[test]
fn without_a_daemon_the_local_errno_comes_at_once() {
    let Some(mut lab) = lab("absent") else { return };
    lab.stop();
    let begun = Instant::now();
    assert_eq!(errno(&lab, "x", "stream"), "ENOENT\n");
    drop(UnixListener::bind(lab.near("stale")).unwrap());
    assert_eq!(errno(&lab, "stale", "stream"), "ECONNREFUSED\n");
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[test]
fn what_the_kernel_refuses_stays_refused() {
    let Some(lab) = lab("wild") else { return };
    assert_eq!(lab.run(&["wild", &lab.near("x")]), "EFAULT\nEBADF\nEINVAL\nEINVAL\nENOTSOCK\n");
    assert_eq!(lab.asked(), 0);
}

#[test]
fn programs_without_fds_to_spare_get_the_local_errno() {
    let Some(lab) = lab("fds") else { return };
    serve(lab.far_path("x").as_os_str().as_encoded_bytes(), SocketKind::Stream, 0o666, Answer::Echo);
    assert_eq!(lab.run(&["fdlimit", &lab.near("x")]), "ENOENT\n");
    assert_eq!(lab.run(&["closed", &lab.near("x")]), "OK\nOK\n");
}

#[test]
fn interrupted_and_cancelled_callers_are_served_or_gone() {
    let Some(lab) = lab("eintr") else { return };
    serve(lab.far_path("x").as_os_str().as_encoded_bytes(), SocketKind::Stream, 0o666, Answer::Echo);
    *lab.far.delay.lock().unwrap() = Duration::from_millis(300);
    assert_eq!(lab.run(&["eintr", &lab.near("x")]), "OK\n");
    *lab.far.delay.lock().unwrap() = Duration::ZERO;
    // A thread blocked in the real connect, by a local listener whose backlog is full.
    let listener = unix::socket(SocketKind::Stream, false).unwrap();
    unix::bind(listener.as_fd(), lab.near("full").as_bytes()).unwrap();
    unix::listen(listener.as_fd(), 0).unwrap();
    assert_eq!(errno(&lab, "full", "stream"), "OK\n");
    assert_eq!(lab.run(&["cancel", &lab.near("full"), &lab.near("x")]), "cancelled\nOK\n");
}

#[test]
fn an_asker_killed_in_the_middle_leaves_nothing() {
    let Some(lab) = lab("killed") else { return };
    let ended = Arc::new(AtomicUsize::new(0));
    let path = lab.far_path("x");
    serve(path.as_os_str().as_encoded_bytes(), SocketKind::Stream, 0o666, Answer::Count(ended.clone()));
    assert_eq!(errno(&lab, "x", "stream"), "OK\n");
    soon("the first connection's end", || ended.load(Ordering::SeqCst) == 1);
    let before = open_fds();
    *lab.far.delay.lock().unwrap() = Duration::from_millis(300);
    for n in 0..8 {
        let mut child = lab.client(&["errno", &lab.near("x")]).stdout(Stdio::null()).spawn().unwrap();
        soon("the ask", || lab.asked() == 2 + n);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    soon("the far connections' ends", || ended.load(Ordering::SeqCst) == 9);
    soon("the fds' return", || open_fds() <= before);
}

/// A daemon that reads the request and then does `what`.
fn fake_daemon(lab: &Lab, what: fn(std::os::fd::OwnedFd, Vec<std::os::fd::OwnedFd>)) {
    let listener = unix::socket(SocketKind::SeqPacket, false).unwrap();
    std::fs::create_dir_all(lab.dir.join("ctl")).unwrap();
    let path = lab.dir.join("ctl/uds.sock");
    let _ = std::fs::remove_file(&path);
    unix::bind(listener.as_fd(), path.as_os_str().as_encoded_bytes()).unwrap();
    unix::listen(listener.as_fd(), 8).unwrap();
    std::thread::spawn(move || {
        let control = unix::accept(listener.as_fd()).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let record = scm::receive(control.as_fd(), &mut [0; 200]).unwrap();
        what(control, record.fds);
    });
}

#[test]
fn a_daemon_that_dies_under_the_question_costs_no_more_than_the_local_errno() {
    let Some(mut lab) = lab("dies") else { return };
    lab.stop();
    fake_daemon(&lab, |_, _| {});
    let begun = Instant::now();
    assert_eq!(errno(&lab, "x", "stream"), "ENOENT\n");
    assert!(begun.elapsed() < Duration::from_secs(2));
    // It had connected the socket already: that is not the untouched socket that ENOENT promises.
    fake_daemon(&lab, |_, fds| {
        let listener = unix::socket(SocketKind::Stream, false).unwrap();
        unix::bind(listener.as_fd(), b"\0uds-test-dies").unwrap();
        unix::listen(listener.as_fd(), 1).unwrap();
        unix::connect(fds[0].as_fd(), b"\0uds-test-dies").unwrap();
    });
    assert_eq!(errno(&lab, "x", "stream"), "ECONNRESET\n");
}

#[test]
fn a_daemon_that_hangs_costs_five_seconds() {
    let Some(mut lab) = lab("hangs") else { return };
    lab.stop();
    fake_daemon(&lab, |control, _| {
        std::thread::sleep(Duration::from_secs(8));
        drop(control);
    });
    let begun = Instant::now();
    assert_eq!(errno(&lab, "x", "stream"), "ETIMEDOUT\n");
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(4_900) && took < Duration::from_secs(6), "{took:?}");
}
