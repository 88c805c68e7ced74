//! Datagrams: connected ones and those that name their addressee, with and without a name of the sender's own.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use farside::sys::unix::SocketKind;

use crate::lab::{Answer, Lab, ends_soon, lab, lab_in, open_fds, said, serve, soon};

const WAYS: [&str; 4] = ["connect", "sendto", "sendmsg", "sendmmsg"];

fn far(lab: &Lab, name: &str, mode: u32, answer: Answer) {
    serve(lab.far_path(name).as_os_str().as_encoded_bytes(), SocketKind::Datagram, mode, answer);
}

#[test]
fn many_to_one_name_arrive_in_order_by_one_connection() {
    let Some(lab) = lab("posts") else { return };
    for (n, way) in WAYS.iter().enumerate() {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let name = format!("d{n}");
        far(&lab, &name, 0o666, Answer::Keep(kept.clone()));
        let asked = lab.asked();
        let near = lab.near(&name);
        let head = if *way == "connect" { format!("peer {near}\n") } else { String::new() };
        assert_eq!(lab.run(&["posts", &near, way, "-", "100"]), head + "done\n", "{way}");
        assert_eq!(lab.asked() - asked, 1, "{way}");
        let expected: String = (0..100).map(|n| format!("msg {n};")).collect();
        soon(way, || *kept.lock().unwrap() == expected.as_bytes());
    }
}

#[test]
fn whoever_has_a_name_is_answered_by_the_name_it_asked() {
    let Some(lab) = lab("answers") else { return };
    far(&lab, "r", 0o666, Answer::Reply);
    let near = lab.near("r");
    for way in WAYS {
        let own = format!("{}/own", lab.dir.display());
        for own in [&own, "relative", "@abstract farside test", "!", &format!("moved {own}")] {
            let mut command = lab.client(&["posts", &near, way, own, "3"]);
            command.current_dir(&lab.dir);
            let head = if way == "connect" { format!("peer {near}\n") } else { String::new() };
            let answers: String = (0..3).map(|n| format!("msg {n}; from {near}\n")).collect();
            assert_eq!(said(command), format!("{head}{answers}done\n"), "{way}, {own}");
            for left in ["own", "own.aside", "relative"] {
                let _ = std::fs::remove_file(lab.dir.join(left));
            }
        }
    }
}

#[test]
fn an_abstract_sender_in_another_network_namespace_is_answered() {
    let Some(lab) = lab("posts-net") else { return };
    far(&lab, "r", 0o666, Answer::Reply);
    let near = lab.near("r");
    let mut command = lab.program("unshare");
    command.arg("--net").arg(crate::lab::client()).args(["posts", &near, "sendto", "@over there", "1"]);
    assert_eq!(said(command), format!("msg 0; from {near}\ndone\n"));
}

#[test]
fn the_far_errno_of_a_datagram_is_the_senders() {
    let Some(lab) = lab("posts-errno") else { return };
    let kept = Answer::Keep(Arc::default());
    far(&lab, "private", 0o600, kept.clone());
    far(&lab, "open", 0o666, kept);
    serve(lab.far_path("stream").as_os_str().as_encoded_bytes(), SocketKind::Stream, 0o666, Answer::Echo);
    drop(std::os::unix::net::UnixDatagram::bind(lab.far_path("stale")).unwrap());
    for (name, expected) in
        [("missing", "ENOENT"), ("stale", "ECONNREFUSED"), ("stream", "EPROTOTYPE"), ("private", "OK")]
    {
        assert_eq!(lab.run(&["errno", &lab.near(name), "post"]), format!("{expected}\n"), "{name}");
    }
    assert_eq!(lab.run(&["as", &lab.near("private"), "65534", "post"]), "EACCES\n");
    assert_eq!(lab.run(&["as", &lab.near("open"), "65534", "post"]), "OK\n");
    assert_eq!(lab.run(&["as", &lab.near("open"), "1234", "post"]), "ENOENT\n", "not one who may ask");
}

#[test]
fn children_and_signal_handlers_post_too() {
    let Some(lab) = lab("posts-fork") else { return };
    far(&lab, "f", 0o666, Answer::Keep(Arc::default()));
    assert_eq!(lab.run(&["fork", &lab.near("f"), "post"]), "fork OK\nvfork OK\nOK\nparent OK\n");
    assert_eq!(lab.run(&["signal", &lab.near("f"), "post"]), "signals many bad 0\n");
    assert_eq!(lab.run(&["fdlimit", &lab.near("f"), "post"]), "ENOENT\n");
}

#[test]
fn without_proc_the_local_errno_stands() {
    let Some(lab) = lab_in("posts-noproc", |dir| dir.join("jail/ctl/uds.sock")) else { return };
    far(&lab, "c", 0o666, Answer::Keep(Arc::default()));
    let jail = lab.dir.join("jail");
    std::fs::create_dir_all(jail.join("near")).unwrap();
    let mut command = lab.client(&["chroot", "/near/c", jail.to_str().unwrap(), "post"]);
    command.env("FARSIDE_UDS_SOCKET", "/ctl/uds.sock");
    assert_eq!(said(command), "ENOENT\n");
}

#[test]
fn a_far_server_that_ends_refuses_the_next_datagram() {
    let Some(lab) = lab("posts-end") else { return };
    for way in ["connect", "sendto"] {
        let path = lab.far_path(way);
        let server = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        let mut child = lab.client(&["posts", &lab.near(way), way, "-", "1"]);
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut says = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert_eq!(says.find(|l| !l.starts_with("peer")).unwrap(), "done");
        server.recv(&mut [0; 10]).unwrap();
        drop(server);
        let mut input = child.stdin.take().unwrap();
        // The first one is lost on its way; that it was is what the next one hears.
        soon("a refusal", || {
            input.write_all(b"\n").unwrap();
            let refused = says.next().unwrap() == "ECONNREFUSED";
            refused && says.next().unwrap() == "done"
        });
        drop(input);
        ends_soon(child);
    }
}

#[test]
fn a_socket_that_is_closed_ends_its_stream_in_seconds() {
    let Some(lab) = lab("posts-close") else { return };
    far(&lab, "c", 0o666, Answer::Reply);
    let before = open_fds();
    for way in ["connect", "sendto"] {
        for own in ["-", "!"] {
            let mut child = lab.client(&["posts", &lab.near("c"), way, own, "5"]);
            let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let mut says = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
            assert!(says.any(|l| l == "done"));
            // It lives: nothing ends, whatever the time.
            std::thread::sleep(Duration::from_millis(if own == "!" { 5_000 } else { 0 }));
            child.stdin.as_ref().unwrap().write_all(b"\n").unwrap();
            let next = says.next().unwrap();
            assert!(next == "done" || next.starts_with("msg 0; from"), "{next}");
            drop(child.stdin.take());
            ends_soon(child);
        }
    }
    let begun = Instant::now();
    soon("the fds' return", || open_fds() <= before);
    println!("ended after {:?}", begun.elapsed());
}

#[test]
fn a_socket_that_connects_elsewhere_lets_go_of_the_first_name() {
    let Some(lab) = lab("posts-elsewhere") else { return };
    far(&lab, "a", 0o666, Answer::Keep(Arc::default()));
    let script = "
import socket, sys, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect(sys.argv[1])
other = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); other.bind(sys.argv[1] + '.local')
s.connect(sys.argv[1] + '.local')
print('there', flush=True); sys.stdin.readline()";
    let before = open_fds();
    let mut command = lab.program("python3");
    command.args(["-c", script, &lab.near("a")]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    let mut says = BufReader::new(child.stdout.take().unwrap());
    says.read_line(&mut line).unwrap();
    assert_eq!(line, "there\n");
    drop(says);
    soon("the fds' return", || open_fds() <= before + 1);
    drop(child.stdin.take());
    ends_soon(child);
}
