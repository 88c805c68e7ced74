//! Each way in which programs call connect.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use farside::sys::unix::SocketKind;

use crate::lab::{Answer, Lab, ends_soon, lab, lab_in, said, serve, soon};

fn echo(lab: &Lab, name: &str) {
    serve(lab.far_path(name).as_os_str().as_encoded_bytes(), SocketKind::Stream, 0o666, Answer::Echo);
}

fn whole(peer: &str) -> String {
    format!("connect OK\nerrno 77\nflags same\npeer {peer}\nown \necho 5 hello\nepoll 7\neof 0\n")
}

#[test]
fn a_connect_looks_exactly_like_a_local_one() {
    let Some(lab) = lab("whole") else { return };
    for (word, kind) in [("stream", SocketKind::Stream), ("seqpacket", SocketKind::SeqPacket)] {
        serve(lab.far_path(word).as_os_str().as_encoded_bytes(), kind, 0o666, Answer::Echo);
        let path = lab.near(word);
        assert_eq!(lab.run(&["whole", &path, word]), whole(&path));
        assert_eq!(lab.run(&["whole", &path, word, "nonblock"]), whole(&path));
    }
}

#[test]
fn datagrams_reach_a_far_socket() {
    let Some(lab) = lab("dgram") else { return };
    let kept = Arc::new(Mutex::new(Vec::new()));
    let path = lab.far_path("d");
    serve(path.as_os_str().as_encoded_bytes(), SocketKind::Datagram, 0o666, Answer::Keep(kept.clone()));
    let near = lab.near("d");
    let expected = format!("connect OK\nerrno 77\nflags same\npeer {near}\nown \n");
    assert_eq!(lab.run(&["whole", &near, "dgram"]), expected);
    soon("the datagram", || *kept.lock().unwrap() == b"hello");
}

#[test]
fn abstract_names_reach_the_far_machine() {
    let Some(lab) = lab("abstract") else { return };
    let name = format!("near {}", std::process::id());
    let far = format!("\0{}", name.replace("near", "far"));
    serve(far.as_bytes(), SocketKind::Stream, 0, Answer::Echo);
    let typed = format!("@{name}");
    assert_eq!(lab.run(&["whole", &typed, "stream"]), whole(&typed));
    assert_eq!(lab.run(&["threads", &typed, "64"]), "good 64\n");
    assert_eq!(lab.run(&["errno", "@near nobody"]), "ECONNREFUSED\n");
}

#[test]
fn an_abstract_name_is_found_from_another_network_namespace() {
    let Some(lab) = lab("netns") else { return };
    let name = format!("near-net {}", std::process::id());
    serve(format!("\0{}", name.replace("near", "far")).as_bytes(), SocketKind::Stream, 0, Answer::Echo);
    let typed = format!("@{name}");
    let mut command = lab.program("unshare");
    command.arg("--net").arg(crate::lab::client()).args(["whole", &typed, "stream"]);
    assert_eq!(said(command), whole(&typed));
}

#[test]
fn a_refused_socket_is_good_for_another_try() {
    let Some(lab) = lab("retry") else { return };
    let path = lab.near("later");
    let mut child = lab.client(&["retry", &path]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut says = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(says.next().unwrap(), "ENOENT");
    echo(&lab, "later");
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert_eq!(says.collect::<Vec<_>>(), ["OK".to_owned(), format!("peer {path}")]);
    ends_soon(child);
}

#[test]
fn relative_paths_start_where_the_caller_stands() {
    let Some(lab) = lab("relative") else { return };
    echo(&lab, "r");
    std::fs::create_dir(lab.dir.join("near/sub")).unwrap();
    let near = lab.near("");
    assert_eq!(lab.run(&["chdir", "r", &near]), whole("r"));
    assert_eq!(lab.run(&["chdir", "./../r", &lab.near("sub")]), whole("./../r"));
}

#[test]
fn a_caller_in_a_chroot_is_understood_from_its_own_root() {
    let Some(lab) = lab_in("chroot", |dir| dir.join("jail/ctl/uds.sock")) else { return };
    echo(&lab, "c");
    let jail = lab.dir.join("jail");
    std::fs::create_dir_all(jail.join("real/near")).unwrap();
    std::os::unix::fs::symlink("/real/near", jail.join("near")).unwrap();
    for path in ["/near/c", "/real/near/c", "/missing/near/c"] {
        let mut command = lab.client(&["chroot", path, jail.to_str().unwrap()]);
        command.env("FARSIDE_UDS_SOCKET", "/ctl/uds.sock");
        assert_eq!(said(command), whole(path));
    }
}

#[test]
fn children_connect_too() {
    let Some(lab) = lab("fork") else { return };
    echo(&lab, "f");
    assert_eq!(lab.run(&["fork", &lab.near("f")]), "fork OK\nvfork OK\nOK\nparent OK\n");
}

#[test]
fn many_connects_to_one_path_at_once() {
    let Some(lab) = lab("burst") else { return };
    echo(&lab, "b");
    assert_eq!(lab.run(&["threads", &lab.near("b"), "64"]), "good 64\n");
    assert_eq!(lab.run(&["threads", &lab.near("b"), "32", "20"]), "good 640\n");
}

#[test]
fn a_signal_handler_connects_on_a_small_stack() {
    let Some(lab) = lab("signal") else { return };
    echo(&lab, "s");
    assert_eq!(lab.run(&["signal", &lab.near("s")]), "signals many bad 0\n");
}

#[test]
fn a_python_program_knows_nothing() {
    let Some(lab) = lab("python") else { return };
    echo(&lab, "p");
    let script = "
import asyncio, socket, sys
path = sys.argv[1]
s = socket.socket(socket.AF_UNIX)
s.settimeout(5)
s.connect(path)
assert s.getpeername() == path, s.getpeername()
s.sendall(b'x' * 100000 + b'end')
s.shutdown(socket.SHUT_WR)
got = b''
while part := s.recv(65536):
    got += part
assert got == b'x' * 100000 + b'end', len(got)

async def one():
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b'hello')
    writer.write_eof()
    assert await reader.read() == b'hello'
    writer.close()

async def all():
    await asyncio.gather(*(one() for _ in range(64)))

asyncio.run(all())
try:
    socket.socket(socket.AF_UNIX).connect(path + '.missing')
except FileNotFoundError:
    print('fine')
";
    let mut command = lab.program("python3");
    command.args(["-c", script, &lab.near("p")]);
    assert_eq!(said(command), "fine\n");
}

#[test]
fn the_environment_says_what_is_remote() {
    let Some(lab) = lab("env") else { return };
    echo(&lab, "e");
    // A list that names the path: the daemon is asked before the local kernel, which has another socket there.
    let _local = std::os::unix::net::UnixListener::bind(lab.near("e")).unwrap();
    let mut command = lab.client(&["whole", &lab.near("e"), "stream"]);
    command.env("FARSIDE_UDS_REMOTE", format!("/other:{}", lab.near("")));
    assert_eq!(said(command), whole(&lab.near("e")));
    assert_eq!(lab.asked(), 1);
    // An allow-list that does not: local alone.
    let mut command = lab.client(&["errno", &lab.near("none")]);
    command.env("FARSIDE_UDS_ONLY", "/other");
    assert_eq!(said(command), "ENOENT\n");
    assert_eq!(lab.asked(), 1);
}
