//! The server: its client's first byte says what it wants.
//!
//! ```text
//!   'B'              that byte comes back, and so does each later one
//!   'E' + u32 size   echo records of that size, by a thread of its own: one wake-up a request, no event loop
//!   'M' + u32 size   the same by the event loop, for many connections
//!   'S' + u32 size   take everything up to the byte END, compare it with the pattern, answer with the count (u64; all
//!                    ones: it was wrong). Not up to the end of the stream: there are proxies that lose such an answer
//!   'F' + u32 0      messages of 8 bytes, each with the writing end of a pipe: the 8 bytes are written to it
//! ```
//!
//! The event loop accepts, reads the wish, and keeps what needs no thread. It never waits for a single client.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::fds;
use crate::pattern::{PIECE_MAX, Pattern};
use crate::target::{Listener, Stream, Target};

pub(crate) const BYTE: u8 = b'B';
pub(crate) const ECHO: u8 = b'E';
pub(crate) const MANY: u8 = b'M';
pub(crate) const SINK: u8 = b'S';
pub(crate) const FDS: u8 = b'F';
/// What the sink answers when the bytes were not the pattern's.
pub(crate) const WRONG: u64 = u64::MAX;

/// No byte of the pattern.
pub(crate) const END: u8 = u8::MAX;

const EVENTS: usize = 256;
const SIZE_MAX: usize = 16 << 20;

pub(crate) fn run(targets: &[Target]) -> Result<(), String> {
    let mut server = Server::new().map_err(|e| format!("epoll: {e}"))?;
    for target in targets {
        let listener = Listener::bind(target).map_err(|e| format!("{target}: {e}"))?;
        server.listen(listener).map_err(|e| format!("{target}: {e}"))?;
        println!("serving on {target}");
    }
    server.run().map_err(|e| format!("serve: {e}"))
}

struct Server {
    epoll: Epoll,
    listeners: Vec<Listener>,
    clients: HashMap<u64, Client>,
    /// Keys below the number of listeners are theirs.
    next: u64,
}

/// A connection of the event loop.
struct Client {
    stream: Stream,
    /// Bytes of a record; 0 until the wish is whole.
    size: usize,
    /// What has been read and not answered: at most a record or a wish.
    got: Vec<u8>,
    /// What of `got` has been written, when it is an answer that did not fit.
    written: usize,
    answering: bool,
}

enum Next {
    Stay,
    Gone,
    /// It wants a thread: which wish, and the size.
    Thread(u8, usize),
}

impl Server {
    fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { epoll, listeners: Vec::new(), clients: HashMap::new(), next: 1024 })
    }

    fn listen(&mut self, listener: Listener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let key = self.listeners.len() as u64;
        self.epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, key))?;
        self.listeners.push(listener);
        Ok(())
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other?,
            };
            for event in &events[..count] {
                match usize::try_from(event.data()).ok().and_then(|key| self.listeners.get(key)) {
                    Some(_) => self.accept(event.data())?,
                    None => self.serve(event.data(), event.events().contains(EpollFlags::EPOLLOUT)),
                }
            }
        }
    }

    fn accept(&mut self, key: u64) -> io::Result<()> {
        let listener = &self.listeners[usize::try_from(key).expect("an index")];
        loop {
            let stream = match listener.accept() {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // The client gave up before it was accepted.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => continue,
                other => other?,
            };
            stream.set_nonblocking(true)?;
            let key = self.next;
            self.next += 1;
            self.epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, key))?;
            self.clients.insert(key, Client { stream, size: 0, got: Vec::new(), written: 0, answering: false });
        }
    }

    fn serve(&mut self, key: u64, writable: bool) {
        let Some(client) = self.clients.get_mut(&key) else { return };
        let was = client.answering;
        // A client that goes away ends its own measurement, and says so itself.
        let next = if writable { client.write() } else { client.read() }.unwrap_or(Next::Gone);
        if let Next::Stay = next {
            if was != client.answering {
                let flags = if client.answering { EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
                self.epoll.modify(&client.stream, &mut EpollEvent::new(flags, key)).expect("it is in there");
            }
            return;
        }
        let client = self.clients.remove(&key).expect("it was found");
        if let Next::Thread(wish, size) = next {
            let _ = self.epoll.delete(&client.stream);
            std::thread::spawn(move || {
                let _ = client.stream.set_nonblocking(false).and_then(|()| in_thread(client.stream, wish, size));
            });
        }
    }
}

impl Client {
    fn read(&mut self) -> io::Result<Next> {
        if self.size == 0 {
            return self.read_wish();
        }
        let have = self.got.len();
        self.got.resize(self.size, 0);
        let count = self.stream.read(&mut self.got[have..]);
        self.got.truncate(have + *count.as_ref().unwrap_or(&0));
        match count {
            Ok(0) => Ok(Next::Gone),
            Ok(_) if self.got.len() == self.size => self.write(),
            Ok(_) => Ok(Next::Stay),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Next::Stay),
            Err(e) => Err(e),
        }
    }

    fn read_wish(&mut self) -> io::Result<Next> {
        let have = self.got.len();
        let mut wish = [0; 5];
        // Not a byte more: what follows is read by whoever it is for.
        let want = if have == 0 { 1 } else { 5 - have };
        let count = match self.stream.read(&mut wish[..want]) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Next::Stay),
            other => other?,
        };
        if count == 0 {
            return Ok(Next::Gone);
        }
        self.got.extend(&wish[..count]);
        if self.got[0] == BYTE {
            self.size = 1;
            return self.write();
        }
        let Some(size) = self.got.get(1..5) else { return Ok(Next::Stay) };
        let size = u32::from_le_bytes(size.try_into().expect("four bytes")) as usize;
        let size = size.clamp(1, SIZE_MAX);
        if self.got[0] != MANY {
            return Ok(Next::Thread(self.got[0], size));
        }
        self.size = size;
        self.got.clear();
        Ok(Next::Stay)
    }

    fn write(&mut self) -> io::Result<Next> {
        while self.written < self.got.len() {
            match self.stream.write(&self.got[self.written..]) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.answering = true;
                    return Ok(Next::Stay);
                }
                other => self.written += other?,
            }
        }
        (self.written, self.answering) = (0, false);
        self.got.clear();
        Ok(Next::Stay)
    }
}

fn in_thread(mut client: Stream, wish: u8, size: usize) -> io::Result<()> {
    match wish {
        ECHO => {
            let mut buffer = vec![0; size];
            loop {
                client.read_exact(&mut buffer)?;
                client.write_all(&buffer)?;
            }
        }
        SINK => sink(&mut client, size),
        FDS => fds::answer(client),
        other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("wish {other}"))),
    }
}

fn sink(client: &mut Stream, size: usize) -> io::Result<()> {
    let (pattern, mut buffer, mut total) = (Pattern::new(), vec![0; size.min(PIECE_MAX)], 0_u64);
    let mut wrong = false;
    loop {
        let count = client.read(&mut buffer)?;
        let Some(last) = buffer[..count].last() else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        let is_over = *last == END;
        let bytes = &buffer[..count - usize::from(is_over)];
        wrong |= bytes != pattern.at(total, bytes.len());
        total += bytes.len() as u64;
        if is_over {
            return client.write_all(&(if wrong { WRONG } else { total }).to_le_bytes());
        }
    }
}

/// A connection that has said its wish.
pub(crate) fn connect(target: &Target, wish: u8, size: u32) -> Result<Stream, String> {
    let mut stream = Stream::connect(target).map_err(|e| format!("connect to {target}: {e}"))?;
    stream.be_impatient().map_err(|e| format!("{target}: {e}"))?;
    let size = size.to_le_bytes();
    stream.write_all(&[wish, size[0], size[1], size[2], size[3]]).map_err(|e| format!("{target}: {e}"))?;
    Ok(stream)
}

/// The fd itself, for those who send and receive messages on it.
pub(crate) fn into_fd(stream: Stream) -> OwnedFd {
    match stream {
        Stream::Unix(stream) => stream.into(),
        Stream::Tcp(stream) => stream.into(),
    }
}
