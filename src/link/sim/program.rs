//! The programs at both ends of a simulated connection, and the model of what they say to each other.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};

use crate::mux::sim::Rng;
use crate::stream::Kind;
use crate::sys::nonblock::set_nonblocking;
use crate::sys::scm;

/// What was passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passed {
    /// A pipe's read end, with this number in it.
    Pipe(u32),
    /// One end of the conversation of this number.
    Socket(u32),
    Null,
}

/// What one end sends and the other receives.
#[derive(Debug, Default)]
struct Direction {
    sent: u64,
    got: u64,
    /// fds that are on their way, each with the byte that they belong to.
    marks: VecDeque<(u64, Passed)>,
    /// Lengths of records that are on their way.
    records: VecDeque<usize>,
}

#[derive(Debug, Default)]
pub(super) struct End {
    socket: Option<UnixStream>,
    attached: bool,
    shut: bool,
    ended: bool,
    /// Pipes that were passed, the number that each must give, and what it has given.
    pipes: Vec<(u32, File, Vec<u8>)>,
}

impl End {
    pub(super) fn attach(&mut self, socket: UnixStream) {
        assert!(!std::mem::replace(&mut self.attached, true), "one local end");
        socket.set_nonblocking(true).unwrap();
        self.socket = Some(socket);
    }
}

/// A conversation of two programs.
pub(super) struct Conn {
    pub(super) number: u32,
    pub(super) kind: Kind,
    pub(super) ends: [End; 2],
    /// Refused, cut or killed: what has come out need only be the beginning of what went in.
    pub(super) is_broken: bool,
    /// By which end sends.
    ways: [Direction; 2],
    /// The conversation in which one end of it was passed, until somebody has heard something of it. Until then its end may
    /// be this one's: who passed it does not know that it has come.
    pub(super) carrier: Option<u32>,
    /// fds that have come and belong to another conversation.
    pub(super) come: Vec<(u32, usize, UnixStream)>,
    ending: bool,
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, kind, ends, is_broken, ways, carrier, .. } = self;
        write!(f, "\n{number} {kind:?} broken={is_broken} carrier={carrier:?}\n  {ends:?}\n  {ways:?}")
    }
}

impl Conn {
    pub(super) fn new(number: u32, kind: Kind) -> Self {
        let (ends, ways) = Default::default();
        Self { number, kind, ends, is_broken: false, ways, carrier: None, come: Vec::new(), ending: false }
    }

    fn byte(&self, side: usize, at: u64) -> u8 {
        u8::try_from((u64::from(self.number) * 7 + side as u64 * 13 + at * 31 + at / 251) % 256).unwrap()
    }

    /// One random thing that the program at `side` does. Returns conversations that it has begun by passing a socket.
    pub(super) fn act(&mut self, side: usize, rng: &mut Rng, next: &mut u32, may_pass: bool) -> Vec<Conn> {
        match rng.below(200) {
            _ if self.ends[side].socket.is_none() => {}
            0..=79 => self.write(side, rng),
            80..=94 if may_pass => return self.pass(side, rng, next),
            95 if rng.chance(30) => self.shut(side),
            96 if rng.chance(20) => self.kill(side),
            97 if rng.chance(20) => self.pass_what_is_refused(side),
            _ => self.read(side, rng),
        }
        Vec::new()
    }

    fn kill(&mut self, side: usize) {
        self.is_broken = true;
        self.ends[side].socket = None;
        self.ends[side].pipes.clear();
    }

    fn shut(&mut self, side: usize) {
        let end = &mut self.ends[side];
        if let (Some(socket), false) = (&end.socket, end.shut) {
            // Its peer may be gone.
            let _ = socket.shutdown(Shutdown::Write);
            end.shut = true;
        }
    }

    /// Returns whether the kernel took it.
    fn send(&mut self, side: usize, len: usize, fds: &[RawFd]) -> bool {
        let from = self.ways[side].sent;
        let bytes: Vec<u8> = (0..len as u64).map(|at| self.byte(side, from + at)).collect();
        let end = &self.ends[side];
        let (Some(socket), false) = (&end.socket, end.shut) else { return false };
        let rights = [ControlMessage::ScmRights(fds)];
        let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], control, flags, None) {
            Ok(sent) => {
                self.ways[side].sent += sent as u64;
                if self.kind == Kind::SeqPacket {
                    self.ways[side].records.push_back(sent);
                }
                true
            }
            Err(Errno::EAGAIN) => false,
            Err(errno) => {
                assert!(self.is_broken, "{errno}: {self:?}");
                self.ends[side].shut = true;
                false
            }
        }
    }

    fn write(&mut self, side: usize, rng: &mut Rng) {
        let most = if rng.chance(80) { 700 } else { 60_000 };
        let len = 1 + rng.below(most);
        self.send(side, len, &[]);
    }

    /// A message with fds.
    fn pass(&mut self, side: usize, rng: &mut Rng, next: &mut u32) -> Vec<Conn> {
        let (mut all, mut fds, mut born): (Vec<Passed>, Vec<OwnedFd>, Vec<Conn>) = Default::default();
        for _ in 0..=rng.below(3) {
            let number = *next;
            *next += 1;
            match rng.below(5) {
                0..=1 => {
                    let (reader, mut writer) = std::io::pipe().unwrap();
                    writer.write_all(&number.to_le_bytes()).unwrap();
                    all.push(Passed::Pipe(number));
                    fds.push(reader.into());
                }
                2 => {
                    all.push(Passed::Null);
                    fds.push(File::open("/dev/null").unwrap().into());
                }
                _ => {
                    let (kind, socket) = match rng.chance(70) {
                        true => (Kind::Socket, SockType::Stream),
                        false => (Kind::SeqPacket, SockType::SeqPacket),
                    };
                    let (ours, theirs) = socketpair(AddressFamily::Unix, socket, None, SockFlag::SOCK_CLOEXEC).unwrap();
                    let mut child = Conn::new(number, kind);
                    child.ends[side].attach(ours.into());
                    child.carrier = Some(self.number);
                    born.push(child);
                    all.push(Passed::Socket(number));
                    fds.push(theirs);
                }
            }
        }
        let at = self.ways[side].sent;
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        if !self.send(side, 1 + rng.below(300), &raw) {
            return Vec::new();
        }
        self.ways[side].marks.extend(all.into_iter().map(|one| (at, one)));
        born
    }

    /// Its stream ends: nothing is delivered without its fd.
    fn pass_what_is_refused(&mut self, side: usize) {
        let event = EventFd::new().unwrap();
        // Bytes in front of it may still come.
        self.is_broken |= self.send(side, 1, &[event.as_fd().as_raw_fd()]);
    }

    pub(super) fn read(&mut self, side: usize, rng: &mut Rng) {
        let most = [1, 100, 5000, 100_000][rng.below(4)];
        let room = if self.kind == Kind::SeqPacket { 70_000 } else { 1 + rng.below(most) };
        let mut bytes = vec![0; room];
        let Some(socket) = self.ends[side].socket.as_ref().filter(|_| !self.ends[side].ended) else { return };
        match scm::receive(socket.as_fd(), &mut bytes) {
            Ok(record) if record.len == 0 && record.fds.is_empty() => self.on_end(side),
            Ok(record) => self.on_bytes(side, &bytes[..record.len], record.fds),
            Err(Errno::EAGAIN) => {}
            Err(errno) => {
                assert!(self.is_broken && errno == Errno::ECONNRESET, "{errno}: {self:?}");
                self.ends[side].ended = true;
            }
        }
    }

    fn on_end(&mut self, side: usize) {
        self.ends[side].ended = true;
        let whole = self.ways[1 - side].got == self.ways[1 - side].sent && self.ends[1 - side].shut;
        assert!(whole || self.is_broken, "an end before the end, at {side}: {self:?}");
    }

    fn on_bytes(&mut self, side: usize, bytes: &[u8], fds: Vec<OwnedFd>) {
        let other = 1 - side;
        let from = self.ways[other].got;
        for (at, byte) in (from..).zip(bytes) {
            assert_eq!(*byte, self.byte(other, at), "byte {at} of {side}: {self:?}");
        }
        let way = &mut self.ways[other];
        way.got += bytes.len() as u64;
        assert!(way.got <= way.sent, "more than was sent");
        if self.kind == Kind::SeqPacket {
            assert_eq!(way.records.pop_front(), Some(bytes.len()), "a record's length");
        }
        let got = way.got;
        let come = way.marks.iter().take_while(|(at, _)| *at < got).count();
        let expected: Vec<(u64, Passed)> = way.marks.drain(..come).collect();
        assert_eq!(expected.len(), fds.len(), "fds with bytes {from}..{got}: {expected:?}, {} came", fds.len());
        // One message's: two that were glued together would come with the first byte of one of them.
        assert!(expected.iter().all(|(at, _)| *at == expected[0].0), "fds of two messages at once");
        for ((_, what), fd) in expected.into_iter().zip(fds) {
            self.on_fd(side, what, fd);
        }
    }

    fn on_fd(&mut self, side: usize, what: Passed, fd: OwnedFd) {
        match what {
            Passed::Null => {
                assert_eq!(nix::sys::stat::fstat(&fd).unwrap().st_rdev, nix::sys::stat::makedev(1, 3), "/dev/null");
            }
            Passed::Pipe(number) => {
                set_nonblocking(&fd, true).unwrap();
                self.ends[side].pipes.push((number, fd.into(), Vec::new()));
            }
            Passed::Socket(number) => self.come.push((number, side, fd.into())),
        }
    }

    pub(super) fn begin_to_end(&mut self) {
        self.ending = true;
    }

    /// Reads to the end, and ends.
    pub(super) fn finish(&mut self, side: usize, rng: &mut Rng) {
        self.shut(side);
        for _ in 0..4 {
            self.read(side, rng);
        }
        self.read_pipes(side);
        if self.ends[side].ended {
            self.ends[side].socket = None;
        }
    }

    fn read_pipes(&mut self, side: usize) {
        let broken = self.is_broken;
        self.ends[side].pipes.retain_mut(|(number, pipe, got)| {
            let mut bytes = [0; 8];
            match pipe.read(&mut bytes) {
                Ok(0) => {
                    assert!(*got == number.to_le_bytes() || broken, "pipe {number} gave {got:?}");
                    false
                }
                Ok(count) => {
                    got.extend(&bytes[..count]);
                    assert!(number.to_le_bytes().starts_with(got), "pipe {number} gave {got:?}");
                    true
                }
                Err(_) => true,
            }
        });
    }

    /// Nobody has heard anything yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.ways.iter().all(|way| way.got == 0)
    }

    /// No program of it will read anything more: what was not handed out never will be.
    pub(super) fn is_deaf(&self) -> bool {
        self.ends.iter().all(|end| end.socket.is_none() || end.ended) && self.come.is_empty()
    }

    pub(super) fn is_over(&self) -> bool {
        let over = |end: &End| end.socket.is_none() && end.pipes.is_empty() && (end.attached || self.is_broken);
        self.ends.iter().all(over) && self.come.is_empty()
    }

    pub(super) fn check_end(&self, seed: u64) {
        for way in self.ways.iter().filter(|_| !self.is_broken) {
            assert_eq!(way.got, way.sent, "seed {seed}: bytes are lost: {self:?}");
            assert!(way.marks.is_empty() && way.records.is_empty(), "seed {seed}: fds are lost: {self:?}");
        }
    }
}
