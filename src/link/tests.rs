//! Two real nodes over loopback: what a program at one end does, a program at the other end sees.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};

use super::session::access::twins::{Twin, access, own};
use super::*;
use crate::auth::SecretKey;
use crate::errno::Errno;
use crate::fdpass::{Maker, Mode, OnRefusal, Pump};
use crate::ring::Wish;
use crate::stream::Kind;
use crate::sys::{scm, unix};
use crate::wire::hello::{Hello, Lane, Role};
use crate::wire::service;

/// A pair of sockets, and how this node's end is pumped.
pub(super) fn pair_of(kind: SockType) -> (OwnedFd, UnixStream, Kind) {
    let (ours, theirs) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
    setsockopt(&ours, sockopt::SndBufForce, &(1 << 20)).unwrap();
    setsockopt(&theirs, sockopt::SndBufForce, &(1 << 20)).unwrap();
    let pump = match kind {
        SockType::Stream => Kind::Socket,
        SockType::SeqPacket => Kind::SeqPacket,
        _ => Kind::Datagram,
    };
    (ours, theirs.into(), pump)
}

/// Answers OPEN with one end of a socket pair and gives the test the other; ENOENT for the request `missing`.
struct Far(mpsc::Sender<UnixStream>);

impl Handler for Far {
    fn on_open(&self, incoming: Incoming) {
        if incoming.request == b"missing" {
            return incoming.stream.refuse(Errno::ENOENT);
        }
        let kinds = [SockType::Stream, SockType::SeqPacket, SockType::Datagram];
        let kind = kinds.into_iter().find(|kind| incoming.request == format!("{kind:?}").as_bytes());
        let (fd, theirs, kind) = pair_of(kind.unwrap_or(SockType::Stream));
        incoming.stream.attach(Pump::new(fd, kind));
        self.0.send(theirs).unwrap();
    }
}

pub(super) struct Nobody;

impl Handler for Nobody {
    fn on_open(&self, incoming: Incoming) {
        incoming.stream.refuse(Errno::EOPNOTSUPP);
    }
}

pub(super) struct World {
    near: Node,
    far: Node,
    opened: mpsc::Receiver<UnixStream>,
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

impl World {
    pub(super) fn new(workers: usize) -> Self {
        let (tell, opened) = mpsc::channel();
        let far = Node::start(NodeOptions {
            workers,
            engine: Wish::Auto,
            access: access(),
            handler: Arc::new(Far(tell)),
            files: None,
            grace: Duration::ZERO,
            fds: Maker::default(),
        })
        .unwrap();
        let door = Door::bind("127.0.0.1:0", far.clone()).unwrap();
        let addr = door.addresses()[0].to_string();
        door.open().unwrap();
        let near = Node::start(NodeOptions {
            workers: 1,
            engine: Wish::Auto,
            access: access(),
            handler: Arc::new(Nobody),
            files: None,
            grace: Duration::ZERO,
            fds: Maker::default(),
        })
        .unwrap();
        keep_session(&near, addr).unwrap();
        while !near.has_session(None) {
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { near, far, opened }
    }

    /// A connected pair of sockets: one on each machine.
    pub(super) fn connect(&self) -> (UnixStream, UnixStream) {
        self.connect_as(SockType::Stream)
    }

    pub(super) fn connect_as(&self, kind: SockType) -> (UnixStream, UnixStream) {
        let stream = self.near.open(service::UDS, format!("{kind:?}").into_bytes(), soon()).unwrap();
        let (fd, theirs, kind) = pair_of(kind);
        stream.attach(Pump::new(fd, kind));
        let far = self.opened.recv_timeout(Duration::from_secs(10)).unwrap();
        for end in [&theirs, &far] {
            end.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        }
        (theirs, far)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.near.leave(Duration::ZERO);
        self.far.leave(Duration::ZERO);
    }
}

pub(super) fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 31 + i / 251 + seed) % 256).unwrap()).collect()
}

#[test]
fn a_request_and_its_answer_cross() {
    let world = World::new(2);
    let (mut near, mut far) = world.connect();
    for i in 0..100 {
        near.write_all(&pattern(64, i)).unwrap();
        let mut got = [0; 64];
        far.read_exact(&mut got).unwrap();
        assert_eq!(got[..], pattern(64, i));
        far.write_all(&got).unwrap();
        near.read_exact(&mut got).unwrap();
        assert_eq!(got[..], pattern(64, i));
    }
}

#[test]
fn the_far_errno_comes_back() {
    let world = World::new(1);
    let said = world.near.open(service::UDS, b"missing".to_vec(), soon());
    assert_eq!(said.err(), Some(Errno::ENOENT));
}

#[test]
fn half_close_and_then_the_reply() {
    let world = World::new(1);
    let (mut near, mut far) = world.connect();
    near.write_all(b"question").unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    let mut got = String::new();
    far.read_to_string(&mut got).unwrap();
    assert_eq!(got, "question");
    far.write_all(b"reply").unwrap();
    drop(far);
    let mut got = String::new();
    near.read_to_string(&mut got).unwrap();
    assert_eq!(got, "reply");
}

#[test]
fn megabytes_cross_both_ways_at_once_while_a_small_stream_answers() {
    let world = World::new(2);
    let (small_near, mut small_far) = world.connect();
    let (near, far) = world.connect();
    let len = 32 << 20;
    let send = |mut to: UnixStream, seed| {
        std::thread::spawn(move || {
            for piece in pattern(len, seed).chunks(100_000) {
                to.write_all(piece).unwrap();
            }
            to.shutdown(Shutdown::Write).unwrap();
        })
    };
    let recv = |mut from: UnixStream, seed| {
        std::thread::spawn(move || {
            let mut got = Vec::new();
            from.read_to_end(&mut got).unwrap();
            assert_eq!(got.len(), len);
            assert!(got == pattern(len, seed), "other bytes came out");
        })
    };
    let threads = [send(near.try_clone().unwrap(), 1), send(far.try_clone().unwrap(), 2), recv(near, 2), recv(far, 1)];
    let mut small_near = small_near;
    for _ in 0..200 {
        small_near.write_all(b"ping").unwrap();
        let mut got = [0; 4];
        small_far.read_exact(&mut got).unwrap();
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn one_that_does_not_read_stops_its_own_writer_and_nobody_else() {
    let world = World::new(1);
    let (stuck, _unread) = world.connect();
    stuck.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let until = Instant::now() + Duration::from_millis(300);
    while Instant::now() < until {
        match (&stuck).write(&[0; 65536]) {
            Ok(n) => sent += n,
            Err(e) => {
                assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    assert!(sent < 8 << 20, "{sent} bytes went nowhere");
    let (mut near, mut far) = world.connect();
    let begun = Instant::now();
    for _ in 0..100 {
        near.write_all(b"x").unwrap();
        far.read_exact(&mut [0]).unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[test]
fn a_closed_reader_is_epipe_for_the_writer() {
    let world = World::new(1);
    let (mut near, far) = world.connect();
    drop(far);
    let until = soon();
    loop {
        match near.write(b"x") {
            Ok(_) => assert!(Instant::now() < until, "no EPIPE came"),
            Err(e) => break assert_eq!(e.kind(), std::io::ErrorKind::BrokenPipe),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    // As with a local socket: the end, or ECONNRESET when something that was written had not been read.
    match near.read(&mut [0]) {
        Ok(count) => assert_eq!(count, 0),
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

#[test]
fn three_hundred_streams_at_once() {
    let world = World::new(2);
    let mut all: Vec<_> = (0..300).map(|_| world.connect()).collect();
    for (i, (near, _)) in all.iter_mut().enumerate() {
        near.write_all(&pattern(3000, i)).unwrap();
    }
    for (i, (_, far)) in all.iter_mut().enumerate() {
        let mut got = vec![0; 3000];
        far.read_exact(&mut got).unwrap();
        assert!(got == pattern(3000, i));
    }
}

fn receive(from: &UnixStream, bytes: &mut [u8]) -> (usize, Vec<OwnedFd>) {
    let record = scm::receive_waiting(from.as_fd(), bytes).unwrap();
    assert!(!record.truncated);
    (record.len, record.fds)
}

/// Sends fds with the first bytes of a stream, as rexec does, and returns what the far program receives.
fn pass(world: &World, fds: Vec<(OwnedFd, Mode)>) -> (Attached, UnixStream, UnixStream, Vec<OwnedFd>) {
    let count = fds.len();
    let stream = world.near.open(service::EXEC, Vec::new(), soon()).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let first = First { bytes: b"request".to_vec(), fds: Maker::default().describe(fds, OnRefusal::Fail).unwrap() };
    let attached = stream.attach_sending(Pump::new(ours.into(), Kind::Socket), first);
    let far = world.opened.recv_timeout(Duration::from_secs(10)).unwrap();
    far.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut bytes = [0; 100];
    let (n, got) = receive(&far, &mut bytes);
    assert_eq!((&bytes[..n], got.len()), (&b"request"[..], count));
    (attached, theirs, far, got)
}

#[test]
fn pipes_cross_as_fds_with_their_ends() {
    let world = World::new(2);
    let (stdin_reader, mut stdin_writer) = std::io::pipe().unwrap();
    let (mut stdout_reader, stdout_writer) = std::io::pipe().unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let twin = stdout_writer.try_clone().unwrap();
    let fds = vec![
        (stdin_reader.into(), Mode::Stdin),
        (stdout_writer.into(), Mode::Output),
        (twin.into(), Mode::Output),
        (null.into(), Mode::Inherited),
    ];
    let (_attached, _control, _far, mut got) = pass(&world, fds);
    stdin_writer.write_all(b"to the far program").unwrap();
    drop(stdin_writer);
    got.pop();
    let twin = got.pop().unwrap();
    assert!(crate::sys::same_file::same_open_file(&twin, &got[1]), "2>&1 stays one file");
    drop(twin);
    let mut far_out = std::fs::File::from(got.pop().unwrap());
    let mut far_in = std::fs::File::from(got.pop().unwrap());
    let mut text = String::new();
    far_in.read_to_string(&mut text).unwrap();
    assert_eq!(text, "to the far program");
    far_out.write_all(b"back").unwrap();
    drop(far_out);
    let mut text = String::new();
    stdout_reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "back");
}

#[test]
fn a_listener_crosses_with_a_client_already_in_its_queue() {
    let world = World::new(2);
    let dir = crate::sys::tempdir::PrivateDir::new("test").unwrap();
    let path = dir.path().join("monitor.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut early = UnixStream::connect(&path).unwrap();
    early.write_all(b"early").unwrap();
    let (_attached, _control, _far, mut got) = pass(&world, vec![(listener.into(), Mode::Inherited)]);
    let far_listener = UnixListener::from(got.pop().unwrap());
    let (mut client, _) = far_listener.accept().unwrap();
    let mut bytes = [0; 5];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"early");
    client.write_all(b"hello").unwrap();
    early.read_exact(&mut bytes).unwrap();
    drop(early);
    assert_eq!(client.read(&mut bytes).unwrap(), 0);
    let mut second = UnixStream::connect(&path).unwrap();
    let (mut client, _) = far_listener.accept().unwrap();
    client.write_all(b"again").unwrap();
    second.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"again");
    drop(far_listener);
    let mut refused = UnixStream::connect(&path).unwrap();
    assert_eq!(refused.read(&mut bytes).unwrap(), 0, "nobody is there any more");
}

/// Also where nobody tries to connect any more.
#[test]
fn a_listener_that_its_program_has_closed_is_refused_soon() {
    let world = World::new(1);
    let dir = crate::sys::tempdir::PrivateDir::new("test").unwrap();
    let path = dir.path().join("monitor.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let (_attached, _control, _far, mut got) = pass(&world, vec![(listener.into(), Mode::Passed)]);
    let far_listener = UnixListener::from(got.pop().unwrap());
    let _client = UnixStream::connect(&path).unwrap();
    far_listener.accept().unwrap();
    drop(far_listener);
    // A connect would find out by itself.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(UnixStream::connect(&path).unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
}

#[test]
fn what_a_finished_command_has_written_comes_out_before_the_end() {
    let world = World::new(1);
    let (mut reader, writer) = std::io::pipe().unwrap();
    // The test holds the far handle of the same stream too, which in production is the exec service's.
    let (attached, _control, _far, mut got) = pass(&world, vec![(writer.into(), Mode::Output)]);
    let mut out = std::fs::File::from(got.pop().unwrap());
    out.write_all(&pattern(60_000, 3)).unwrap();
    drop(out);
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    assert!(bytes == pattern(60_000, 3));
    let (tell, told) = mpsc::channel();
    attached.when_children_done(Box::new(move || tell.send(()).unwrap()));
    told.recv_timeout(Duration::from_secs(10)).unwrap();
}

#[test]
fn an_fd_in_a_message_of_a_proxied_socket_crosses() {
    let world = World::new(2);
    let (near, far) = world.connect();
    let (reader, mut writer) = std::io::pipe().unwrap();
    scm::send(near.as_fd(), b"take this", &[reader.as_fd()]).unwrap();
    drop(reader);
    let mut bytes = [0; 100];
    let (n, mut got) = receive(&far, &mut bytes);
    assert_eq!((&bytes[..n], got.len()), (&b"take this"[..], 1));
    writer.write_all(b"through the pipe").unwrap();
    drop(writer);
    let mut text = String::new();
    std::fs::File::from(got.pop().unwrap()).read_to_string(&mut text).unwrap();
    assert_eq!(text, "through the pipe");
    // One that cannot cross ends the stream; its message is not delivered without it.
    let event = nix::sys::eventfd::EventFd::new().unwrap();
    scm::send(near.as_fd(), b"and this", &[event.as_fd()]).unwrap();
    let (n, got) = receive(&far, &mut bytes);
    assert_eq!((n, got.len()), (0, 0));
}

#[test]
fn when_the_far_node_dies_every_stream_ends_and_a_new_session_comes() {
    let world = World::new(1);
    let (mut near, far) = world.connect();
    world.far.leave(Duration::ZERO);
    // The session drains only when its streams end; the near end closes first here.
    near.shutdown(Shutdown::Both).unwrap();
    drop(far);
    assert_eq!(near.read(&mut [0]).unwrap(), 0);
    let until = soon();
    while world.near.has_session(None) {
        assert!(Instant::now() < until, "the session does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(world.near.open(service::UDS, Vec::new(), soon()).err(), Some(Errno::ENOTCONN));
}

#[test]
fn two_nodes_that_dial_each_other_at_once_keep_one_session() {
    for _ in 0..20 {
        let start = || {
            let node = Node::start(NodeOptions {
                workers: 2,
                engine: Wish::Auto,
                access: access(),
                handler: Arc::new(Nobody),
                files: None,
                grace: Duration::ZERO,
                fds: Maker::default(),
            });
            let node = node.unwrap();
            let door = Door::bind("127.0.0.1:0", node.clone()).unwrap();
            let addr = door.addresses()[0].to_string();
            door.open().unwrap();
            (node, addr)
        };
        let ((a, at_a), (b, at_b)) = (start(), start());
        keep_session(&a, at_b).unwrap();
        keep_session(&b, at_a).unwrap();
        let until = soon();
        // The same one at both ends: for a moment each may know only the other's.
        while a.sessions().len() != 1 || a.sessions() != b.sessions() {
            assert!(Instant::now() < until, "sessions {:?} and {:?}", a.sessions(), b.sessions());
            std::thread::sleep(Duration::from_millis(2));
        }
        // The survivor carries streams both ways.
        for node in [&a, &b] {
            assert_eq!(node.open(77, Vec::new(), soon()).err(), Some(Errno::EOPNOTSUPP));
        }
        assert!(a.leave(Duration::from_secs(5)) && b.leave(Duration::from_secs(5)));
    }
}

#[test]
fn a_stranger_is_refused_by_both_sides_and_told_so() {
    let start = |access: Access| {
        let (handler, files, fds) = (Arc::new(Nobody), None, Maker::default());
        Node::start(NodeOptions { workers: 1, engine: Wish::Auto, access, handler, files, grace: Duration::ZERO, fds })
            .unwrap()
    };
    let other = |trusts| Access::Keys(Arc::new(Twin { key: SecretKey::generate(), trusts }));
    let node = start(access());
    let door = Door::bind("127.0.0.1:0", node.clone()).unwrap();
    let addr = door.addresses()[0].to_string();
    door.open().unwrap();
    let hello = Hello { node: [7; 16], ..node.hello(Role::Client, Lane::Lat, 1, 0) };
    let dial = |access| conn::dial(&addr, &hello, Duration::from_secs(5), &access).map(drop).map_err(|e| e.text);
    assert_eq!(dial(access()), Ok(()));
    let said = dial(other(Vec::new())).unwrap_err();
    assert!(said.contains(&addr) && said.contains("is a stranger"), "the dialler does not trust it: {said}");
    let said = dial(other(vec![own().key.public()])).unwrap_err();
    assert!(said.contains("refused: you are a stranger"), "it does not trust the dialler: {said}");
    node.leave(Duration::ZERO);
}

#[test]
fn a_link_with_another_key_does_not_join_a_session() {
    let (handler, files, fds) = (Arc::new(Nobody), None, Maker::default());
    let second = SecretKey::generate();
    let trusts = vec![second.public()];
    let both = Arc::new(Twin { key: SecretKey::generate(), trusts });
    let options = NodeOptions {
        workers: 1,
        engine: Wish::Auto,
        access: Access::Keys(both.clone()),
        handler,
        files,
        grace: Duration::ZERO,
        fds,
    };
    let node = Node::start(options).unwrap();
    let door = Door::bind("127.0.0.1:0", node.clone()).unwrap();
    let addr = door.addresses()[0].to_string();
    door.open().unwrap();
    let first = node.hello(Role::Client, Lane::Lat, 7, 0);
    let first = Hello { node: [7; 16], ..first };
    let dial = |hello: &Hello, access: &Access| conn::dial(&addr, hello, Duration::from_secs(5), access);
    let _up = dial(&first, &Access::Keys(both.clone())).unwrap();
    let bulk = Hello { lane: Lane::Bulk, ..first };
    let stranger = Access::Keys(Arc::new(Twin { key: second, trusts: vec![both.key.public()] }));
    let said = dial(&bulk, &stranger).unwrap_err();
    assert!(said.text.contains("no longer) here"), "{said}");
    dial(&bulk, &Access::Keys(both)).unwrap();
    node.leave(Duration::ZERO);
}

#[test]
fn an_end_with_something_unread_is_a_reset_for_the_other_program() {
    let world = World::new(1);
    for kind in [SockType::Stream, SockType::SeqPacket] {
        for turned in [false, true] {
            let (a, b) = world.connect_as(kind);
            let (mut stays, mut goes) = if turned { (b, a) } else { (a, b) };
            goes.write_all(b"last words").unwrap();
            stays.write_all(b"never read").unwrap();
            while crate::sys::readable::bytes(&goes) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(goes);
            let mut said = Vec::new();
            while said.last() != Some(&Ok(Vec::new())) {
                let mut got = [0; 100];
                let read = stays.read(&mut got).map_err(|e| e.raw_os_error());
                said.push(read.map(|count| got[..count].to_vec()));
            }
            let (words, reset) = (Ok(b"last words".to_vec()), Err(Some(libc::ECONNRESET)));
            let mut wanted = [words, reset, Ok(Vec::new())];
            if kind == SockType::SeqPacket && said.first() == Some(&wanted[1]) {
                // As the kernel has it there for a record that nobody has read yet: the error comes first.
                wanted.swap(0, 1);
            }
            assert_eq!(said, wanted, "{kind:?}");
            assert_eq!(stays.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPIPE));
        }
    }
}

#[test]
fn a_program_that_ended_its_half_and_then_goes_is_missed_at_once() {
    let world = World::new(1);
    for kind in [SockType::Stream, SockType::SeqPacket] {
        let (near, far) = world.connect_as(kind);
        near.shutdown(Shutdown::Write).unwrap();
        assert_eq!((&far).read(&mut [0]).unwrap(), 0);
        (&far).write_all(b"answer").unwrap();
        let mut got = [0; 6];
        (&near).read_exact(&mut got).unwrap();
        assert!(!unix::is_gone(far.as_fd()), "only half of it has ended");
        drop(near);
        let gone = Instant::now();
        // Nothing is written meanwhile: only the kernel's word tells.
        while !unix::is_gone(far.as_fd()) {
            assert!(gone.elapsed() < Duration::from_secs(2), "nobody heard that the program has gone");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
