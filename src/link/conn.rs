//! One TCP connection after its handshake, and how to get one by dialling. Blocking: never called on a worker.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};

use crate::config;
use crate::limits::{HELLO_MAX, LAT_NOTSENT_LOWAT, PING_AFTER_MS, TCP_USER_TIMEOUT_MS};
use crate::wire::frame::{HEADER_LEN, Header};
use crate::wire::hello::{Hello, Lane, Role, Verdict};

/// A connection whose two HELLOs have crossed. Nothing behind them has been read.
#[derive(Debug)]
pub struct Conn {
    stream: TcpStream,
    /// What the other end said.
    pub peer: Hello,
    pub peer_addr: SocketAddr,
}

/// Why there is no connection; one line for a person.
#[derive(Debug)]
pub struct DialError {
    pub text: String,
    /// The listener knows of another session between the same two nodes.
    pub duplicate: bool,
}

impl DialError {
    fn new(text: String) -> Self {
        Self { text, duplicate: false }
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for DialError {}

impl Conn {
    pub fn new(stream: TcpStream, peer: Hello, peer_addr: SocketAddr) -> Self {
        Self { stream, peer, peer_addr }
    }

    /// For a worker's ring.
    pub fn into_fd(self) -> OwnedFd {
        self.stream.into()
    }

    /// For blocking threads: one that reads, one that writes, and a handle that ends both from outside.
    pub fn split(self) -> io::Result<(Reader, Writer, Closer)> {
        let reader = self.stream.try_clone()?;
        let closer = Closer(self.stream.try_clone()?);
        Ok((Box::new(reader), Box::new(self.stream), closer))
    }
}

/// What a connection's bytes are read from.
pub type Reader = Box<dyn Read + Send>;
/// What a connection's bytes are written to.
pub type Writer = Box<dyn Write + Send>;

/// Ends a connection that other threads are reading and writing: they get EOF or EPIPE at once.
#[derive(Debug)]
pub struct Closer(TcpStream);

impl Closer {
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    pub fn close(&self) {
        // ENOTCONN: it has ended already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Dials `addr` (`HOST:PORT`), says `hello`, and waits for the answer; all of it before `timeout` is over. Each address of
/// a name gets its share of that time, so that one which does not answer leaves some to the others.
///
/// # Errors
/// One line that names the address: name resolution, connect, handshake, or the listener's refusal.
pub fn dial(addr: &str, hello: &Hello, timeout: Duration) -> Result<Conn, DialError> {
    let deadline = Instant::now() + timeout;
    let found: Vec<_> = addr.to_socket_addrs().map_err(|e| DialError::new(format!("{addr}: {e}")))?.collect();
    if found.is_empty() {
        return Err(DialError::new(format!("{addr}: no address")));
    }
    dial_any(&found, hello, deadline)
}

/// The first of some addresses that answers well.
pub(super) fn dial_any(targets: &[SocketAddr], hello: &Hello, deadline: Instant) -> Result<Conn, DialError> {
    let mut last = DialError::new("no address".into());
    for (target, more) in targets.iter().copied().zip((0..targets.len()).rev()) {
        if !config::plaintext_allows(target) {
            last = DialError::new(format!("{target}: unencrypted links go to loopback and 192.168.10.0/24 only"));
            continue;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(more + 1).unwrap_or(u32::MAX);
        match dial_one(target, hello, Instant::now() + share) {
            Ok(conn) => return Ok(conn),
            // The right one, and not the time for another session.
            Err(e) if e.duplicate => return Err(e),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn dial_one(target: SocketAddr, hello: &Hello, deadline: Instant) -> Result<Conn, DialError> {
    let failed = |what: &str, e: io::Error| DialError::new(format!("{what} {target}: {e}"));
    let left = || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut stream = TcpStream::connect_timeout(&target, left()).map_err(|e| failed("connect to", e))?;
    tune(&stream, hello.role, hello.lane).map_err(|e| failed("socket options for", e))?;
    stream.set_write_timeout(Some(left())).map_err(|e| failed("timeout for", e))?;
    stream.write_all(&hello.encode()).map_err(|e| failed("handshake with", e))?;
    let mut got = Vec::with_capacity(HELLO_MAX);
    let peer = loop {
        match Hello::decode(&got) {
            Ok(Some(peer)) => break peer,
            Ok(None) => {}
            Err(e) => return Err(DialError::new(format!("{target}: {e}"))),
        }
        // Exactly the HELLO and not a byte more: what follows belongs to the worker.
        let want = match got.first_chunk::<HEADER_LEN>() {
            None => HEADER_LEN - got.len(),
            Some(head) => {
                let header = Header::decode(head).map_err(|e| DialError::new(format!("{target}: {e}")))?;
                (HEADER_LEN + header.len as usize - got.len()).min(HELLO_MAX)
            }
        };
        let at = got.len();
        got.resize(at + want, 0);
        stream.set_read_timeout(Some(left())).map_err(|e| failed("timeout for", e))?;
        let n = stream.read(&mut got[at..]).map_err(|e| failed("handshake with", e))?;
        if n == 0 {
            return Err(DialError::new(format!("{target} closed the connection during the handshake")));
        }
        got.truncate(at + n);
    };
    stream
        .set_read_timeout(None)
        .and_then(|()| stream.set_write_timeout(None))
        .map_err(|e| failed("timeout for", e))?;
    match peer.verdict {
        Verdict::Ok => Ok(Conn::new(stream, peer, target)),
        Verdict::Duplicate => {
            Err(DialError { text: format!("{target} has a session with this node already"), duplicate: true })
        }
        Verdict::Refused => Err(DialError::new(format!("{target} refused: {}", peer.reason))),
    }
}

/// Socket options of every link: no Nagle, a dead peer found in seconds, and on LAT little queued unsent.
pub fn tune(stream: &TcpStream, role: Role, lane: Lane) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(Duration::from_millis(TCP_USER_TIMEOUT_MS.into())))?;
    let every = Duration::from_millis(PING_AFTER_MS);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(every).with_interval(every).with_retries(3))?;
    if role != Role::Files && lane == Lane::Lat {
        socket.set_tcp_notsent_lowat(LAT_NOTSENT_LOWAT)?;
    }
    Ok(())
}
