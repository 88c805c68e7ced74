//! A peer that speaks the protocol by hand, and not to our good.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};

use super::session::access::twins::{access, own};
use super::session::sealed;
use super::tests::{World, pair_of};
use super::*;
use crate::auth::{Handshake, Opener, Progress, Sealer};
use crate::errno::OsResult;
use crate::fdpass::{Files, Maker, Pump};
use crate::limits::{INITIAL_WINDOW, RECORD_MAX};
use crate::ring::Wish;
use crate::sys::scm;
use crate::wire::frame::{FrameType, HEADER_LEN, Header, flags};
use crate::wire::hello::{Hello, Lane, Role, Verdict};
use crate::wire::recipe::{Access, FileId, Recipe, Seals, encode_all};
use crate::wire::service;

type Opened = (UnixStream, Attached);

/// How a stream that a peer has opened gets its local end.
type Begin = Box<dyn FnOnce() -> Opened + Send>;

struct Takes(Mutex<mpsc::Sender<Begin>>);

impl Handler for Takes {
    fn on_open(&self, incoming: Incoming) {
        let begin = Box::new(move || {
            let (fd, theirs, kind) = pair_of(SockType::Stream);
            theirs.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            (theirs, incoming.stream.attach(Pump::new(fd, kind)))
        });
        // The test may have ended.
        let _ = self.0.lock().unwrap().send(begin);
    }
}

/// A node, and a peer of it that is only a TCP connection.
struct Peer {
    node: Node,
    link: TcpStream,
    sealer: Sealer,
    opener: Opener,
    /// Heard and not looked at yet.
    heard: Vec<u8>,
    opened: mpsc::Receiver<Begin>,
}

const CREDIT: u32 = 100_000;
const READ_ONLY: Access = Access { read: true, write: false, append: false, nonblock: false };

fn memfd(stream: u32) -> Recipe {
    Recipe::Memfd { stream, access: READ_ONLY, len: 5, offset: 0, seals: Seals::default() }
}

/// The dialler's part of the handshake, with the key that everybody in this process has.
fn shake(link: &mut TcpStream) -> (Sealer, Opener) {
    let mut handshake = Handshake::dialler(&own().tls().unwrap()).unwrap();
    let (mut buffer, mut got) = ([0; 4096], 0);
    loop {
        let mut out = Vec::new();
        let step = handshake.on_bytes(&buffer[..got], &mut out).unwrap();
        link.write_all(&out).unwrap();
        match step {
            Progress::Done(done) => return (done.sealer, done.opener),
            Progress::More(more) => handshake = more,
        }
        got = link.read(&mut buffer).unwrap();
    }
}

impl Peer {
    fn new() -> Self {
        Self::with(Maker::default())
    }

    fn with(fds: Maker) -> Self {
        let (tell, opened) = mpsc::channel();
        let handler = Arc::new(Takes(Mutex::new(tell)));
        let (engine, access, files) = (Wish::Auto, access(), None);
        let node = Node::start(NodeOptions { workers: 1, engine, access, handler, files, grace: Duration::ZERO, fds })
            .unwrap();
        let door = Door::bind("127.0.0.1:0", node.clone()).unwrap();
        let addr = door.addresses()[0];
        door.open().unwrap();
        let mut link = TcpStream::connect(addr).unwrap();
        link.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let (sealer, opener) = shake(&mut link);
        let hello = Hello {
            role: Role::Client,
            lane: Lane::Lat,
            verdict: Verdict::Ok,
            node: [9; 16],
            session: 77,
            index: 0,
            workers: 1,
            initial_window: INITIAL_WINDOW,
            record_max: RECORD_MAX,
            features: 0,
            name: "hostile".into(),
            reason: String::new(),
            voucher: Vec::new(),
        };
        let mut peer = Self { node, link, sealer, opener, heard: Vec::new(), opened };
        peer.say(&[hello.encode()]);
        assert_eq!(peer.hear().0.kind, FrameType::Hello);
        peer
    }

    fn say(&mut self, frames: &[Vec<u8>]) {
        let bytes = frames.concat();
        let link = &mut self.link;
        let mut sealed = Vec::new();
        self.sealer.seal([&bytes[..]], &mut sealed).unwrap();
        link.write_all(&sealed).unwrap();
    }

    fn hear(&mut self) -> (Header, Vec<u8>) {
        let head = self.take(HEADER_LEN).try_into().unwrap();
        let header = Header::decode(&head).unwrap();
        (header, self.take(header.len as usize))
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        while self.heard.len() < count {
            let link = &mut self.link;
            let record = sealed::read_record(&mut self.opener, |into| link.read(into)).unwrap().unwrap();
            self.heard.extend(record);
        }
        self.heard.drain(..count).collect()
    }

    fn hear_of(&mut self, kind: FrameType, stream: u32) -> Header {
        loop {
            let (header, _) = self.hear();
            if header.kind == kind && header.stream == stream {
                return header;
            }
        }
    }

    fn open(&mut self, stream: u32, service: u16, credit: u32) -> Opened {
        self.open_slowly(stream, service, credit)()
    }

    fn open_slowly(&mut self, stream: u32, service: u16, credit: u32) -> Begin {
        self.say(&[frame(FrameType::Open, stream, 0, service, credit, b"")]);
        self.opened.recv_timeout(Duration::from_secs(5)).unwrap()
    }

    /// Whether its worker still answers, after helpers have had their time.
    fn lives(&mut self) {
        std::thread::sleep(Duration::from_millis(300));
        self.say(&[frame(FrameType::Ping, 0, 0, 0, 5, b"")]);
        self.hear_of(FrameType::Pong, 0);
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.node.leave(Duration::ZERO);
    }
}

fn frame(kind: FrameType, stream: u32, flags: u8, aux: u16, credit: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).unwrap();
    let mut out = Header { len, flags, aux, credit, ..Header::new(kind, stream) }.encode().to_vec();
    out.extend_from_slice(body);
    out
}

fn message(stream: u32, recipes: &[Recipe]) -> Vec<u8> {
    let count = u16::try_from(recipes.len()).unwrap();
    let mut out = frame(FrameType::Recipe, stream, 0, 0, CREDIT, &encode_all(recipes));
    out.extend(frame(FrameType::Data, stream, flags::HAS_FDS, count, CREDIT, b"d"));
    out
}

#[test]
fn an_id_that_is_used_again_meets_nothing_of_its_last_owner() {
    let (mut peer, opening) = Opening::begin();
    let _first = peer.open(7, service::UDS, 0);
    peer.hear_of(FrameType::Accept, 7);
    peer.say(&[message(7, &[FILE])]);
    opening.begun();
    peer.say(&[frame(FrameType::Reset, 7, 0, 104, 0, b"")]);
    let (second, _) = peer.open(7, service::UDS, 0);
    peer.hear_of(FrameType::Accept, 7);
    opening.ends_and_the_file_is_closed();
    peer.lives();
    second.set_nonblocking(true).unwrap();
    assert_eq!((&second).read(&mut [0]).unwrap_err().raw_os_error(), Some(libc::EAGAIN), "a message of the first");
}

#[test]
fn a_commands_end_among_fds_that_never_became_whole() {
    let mut peer = Peer::new();
    let (_end, attached) = peer.open(7, service::EXEC, CREDIT);
    peer.say(&[message(7, &[memfd(9), Recipe::Pipe { stream: 11, access: READ_ONLY }])]);
    // Both are made, and the memfd waits for its bytes.
    peer.hear_of(FrameType::Accept, 9);
    attached.finish_children();
    peer.lives();
}

/// Both directions end, as far as the protocol goes.
fn ends(stream: u32) -> Vec<u8> {
    let fin = frame(FrameType::Data, stream, flags::FIN, 0, CREDIT, b"");
    [fin, frame(FrameType::Credit, stream, flags::READ_CLOSED, 0, CREDIT, b"")].concat()
}

/// The program sees its socket's end, whichever it is.
#[track_caller]
fn is_closed(mut end: UnixStream) {
    match end.read(&mut [0]) {
        Ok(0) => {}
        Err(e) if e.raw_os_error() == Some(libc::ECONNRESET) => {}
        other => panic!("the socket is still held: {other:?}"),
    }
}

const FILE: Recipe = Recipe::File { file: FileId { mount: [0; 16], node: 1 }, access: READ_ONLY, offset: 0 };

/// Takes its time to open a file, which is a pipe's end.
struct Slow(Mutex<(mpsc::Sender<OwnedFd>, mpsc::Receiver<()>)>);

impl Files for Slow {
    fn reopen(&self, _: &FileId, _: Access) -> OsResult<OwnedFd> {
        let (begun, go_on) = &*self.0.lock().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        begun.send(reader).unwrap();
        go_on.recv_timeout(Duration::from_secs(5)).unwrap();
        Ok(writer)
    }

    fn exported_path(&self, _: BorrowedFd<'_>) -> Option<Vec<u8>> {
        None
    }
}

/// A file that a helper is opening.
struct Opening {
    begins: mpsc::Receiver<OwnedFd>,
    go_on: mpsc::Sender<()>,
    reader: std::cell::OnceCell<std::fs::File>,
}

impl Opening {
    fn begin() -> (Peer, Self) {
        let (begun, begins) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel();
        let files: Arc<dyn Files> = Arc::new(Slow(Mutex::new((begun, goes_on))));
        let peer = Peer::with(Maker { files: Some(files), ..Maker::default() });
        (peer, Self { begins, go_on, reader: std::cell::OnceCell::new() })
    }

    fn begun(&self) {
        let reader = self.begins.recv_timeout(Duration::from_secs(5)).unwrap();
        self.reader.set(reader.into()).unwrap();
    }

    /// Whoever gets the file now has nobody to give it to.
    fn ends_and_the_file_is_closed(&self) {
        self.go_on.send(()).unwrap();
        let mut reader = self.reader.get().unwrap();
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn fds_that_are_made_too_late_for_their_session_leave_nothing() {
    let (mut peer, opening) = Opening::begin();
    let (end, _) = peer.open(7, service::UDS, CREDIT);
    peer.say(&[message(7, &[FILE]), ends(7)]);
    opening.begun();
    peer.lives();
    peer.link.shutdown(Shutdown::Both).unwrap();
    while !peer.node.sessions().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    opening.ends_and_the_file_is_closed();
    is_closed(end);
}

#[test]
fn an_ended_streams_message_that_ends_the_session_leaves_nothing() {
    let mut peer = Peer::new();
    let (end, _) = peer.open(7, service::UDS, CREDIT);
    // Number 2 is not the peer's to announce.
    peer.say(&[message(7, &[Recipe::Pipe { stream: 2, access: READ_ONLY }]), ends(7)]);
    is_closed(end);
}

#[test]
fn a_local_end_that_comes_when_its_stream_has_ended_is_closed() {
    let mut peer = Peer::new();
    let begin = peer.open_slowly(7, service::UDS, CREDIT);
    let data = frame(FrameType::Data, 7, 0, 0, CREDIT, b"d");
    peer.say(&[data, ends(7)]);
    // It takes the first one's place.
    let _next = peer.open(9, service::UDS, CREDIT);
    let (mut end, _) = begin();
    assert_eq!(end.read(&mut [0; 2]).unwrap(), 1, "what came in time");
    is_closed(end);
    peer.lives();
}

/// A memfd's stream is told this, and ends with that errno.
fn memory_is_told(frames: &[Vec<u8>], errno: i32) {
    let mut peer = Peer::new();
    let _end = peer.open(7, service::UDS, CREDIT);
    peer.say(&[message(7, &[memfd(9)])]);
    peer.hear_of(FrameType::Accept, 9);
    peer.say(frames);
    assert_eq!(i32::from(peer.hear_of(FrameType::Reset, 9).aux), errno);
    peer.lives();
}

#[test]
fn memory_takes_no_more_than_was_said() {
    let data = |bytes: &[u8]| frame(FrameType::Data, 9, 0, 0, CREDIT, bytes);
    memory_is_told(&[data(b"12345"), data(b"6")], libc::EFBIG);
}

#[test]
fn memory_carries_no_fds() {
    memory_is_told(&[message(9, &[memfd(11)])], libc::EPROTO);
}

#[test]
fn records_sent_at_once_to_a_listener_that_crossed_stay_apart() {
    let world = World::new(1);
    let (near, far) = world.connect();
    let seqpacket = || socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let path = std::env::temp_dir().join(format!("farside-listener-{}", std::process::id()));
    let address = UnixAddr::new(&path).unwrap();
    let listener = seqpacket();
    bind(listener.as_raw_fd(), &address).unwrap();
    listen(&listener, Backlog::new(5).unwrap()).unwrap();
    scm::send(near.as_fd(), b"here", &[listener.as_fd()]).unwrap();
    let crossed = scm::receive_waiting(far.as_fd(), &mut [0; 10]).unwrap().fds;
    let client = seqpacket();
    connect(client.as_raw_fd(), &address).unwrap();
    std::fs::remove_file(&path).unwrap();
    let records = [&b"one"[..], b"", b"three"];
    for record in records {
        scm::send(client.as_fd(), record, &[]).unwrap();
    }
    let there = crate::sys::unix::accept(crossed[0].as_fd()).unwrap();
    for record in records {
        let mut room = [0; 100];
        let got = scm::receive_waiting(there.as_fd(), &mut room).unwrap();
        assert_eq!(&room[..got.len], record);
    }
}
