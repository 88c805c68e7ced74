//! One TCP connection after its handshake, and how to get one by dialling. Blocking: never called on a worker.
//!
//! ```text
//!   connect ─▶ TLS: both keys proven ─▶ is theirs trusted? ─▶ HELLO ─▶ HELLO, the verdict ─▶ Conn
//! ```

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};

use super::access::{Access, Authority, Ends, Judged, Shown};
use super::sealed;
use crate::auth::{Established, Handshake, Progress, PublicKey};
use crate::limits::{HELLO_MAX, LAT_NOTSENT_LOWAT, PING_AFTER_MS, TCP_USER_TIMEOUT_MS};
use crate::link::worker::guard::Guard;
use crate::link::worker::peer::Known;
use crate::wire::hello::{Hello, Lane, Role, Verdict};

/// A connection whose two HELLOs have crossed. Nothing behind them has been read.
#[derive(Debug)]
pub struct Conn {
    stream: TcpStream,
    guard: Guard,
    /// Who the other end has proven to be.
    pub known: Known,
    /// What the other end said.
    pub peer: Hello,
    pub peer_addr: SocketAddr,
    first_came: FirstCame,
}

/// Told when the first request of a link has come: until then the link has a deadline.
#[derive(Debug, Clone, Default)]
pub struct FirstCame(Arc<AtomicBool>);

impl FirstCame {
    pub fn tell(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_told(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What kept a dialler from a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The listener knows of another session between the same two nodes.
    Duplicate,
    /// The listener has said no, in its own words.
    Refused,
    /// Its machine says that nobody listens (ECONNREFUSED).
    Nobody,
    Other,
}

/// Why there is no connection; one line for a person.
#[derive(Debug)]
pub struct DialError {
    pub text: String,
    pub failure: Failure,
    /// What the listener has proven, if it came to a HELLO.
    pub(super) key: Option<PublicKey>,
}

impl DialError {
    fn new(text: String) -> Self {
        Self { text, failure: Failure::Other, key: None }
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for DialError {}

impl Conn {
    pub(super) fn new(stream: TcpStream, guard: Guard, known: Known, peer: Hello, peer_addr: SocketAddr) -> Self {
        Self { stream, guard, known, peer, peer_addr, first_came: FirstCame::default() }
    }

    /// For a worker's ring.
    pub(super) fn into_parts(self) -> (OwnedFd, Guard) {
        (self.stream.into(), self.guard)
    }

    /// For whoever serves the link, to be told by it.
    pub fn first_came(&self) -> FirstCame {
        self.first_came.clone()
    }

    /// A handle that ends the connection from outside.
    pub fn closer(&self) -> io::Result<Closer> {
        self.stream.try_clone().map(Closer)
    }

    /// For blocking threads: one that reads, one that writes, and a handle that ends both from outside.
    pub fn split(self) -> io::Result<(Reader, Writer, Closer)> {
        let closer = self.closer()?;
        let reading = self.stream.try_clone()?;
        Ok(match self.guard {
            Guard::Tls { sealer, opener } => (
                Box::new(sealed::Reader::new(reading, opener)),
                Box::new(sealed::Writer::new(self.stream, sealer)),
                closer,
            ),
            #[cfg(any(test, feature = "plaintext"))]
            Guard::Plain => (Box::new(reading), Box::new(self.stream), closer),
        })
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

    /// Of any TCP connection, for tests of what needs one.
    #[cfg(test)]
    pub(crate) fn of(stream: TcpStream) -> Self {
        Self(stream)
    }
}

/// Dials `addr` (`HOST:PORT`), says `hello`, and waits for the answer; all of it before `timeout` is over. Each address of
/// a name gets its share of that time, so that one which does not answer leaves some to the others.
///
/// # Errors
/// One line that names the address: name resolution, connect, handshake, a key that is not trusted here, or the
/// listener's refusal.
pub fn dial(addr: &str, hello: &Hello, timeout: Duration, access: &Access) -> Result<Conn, DialError> {
    let deadline = Instant::now() + timeout;
    let found: Vec<_> = addr.to_socket_addrs().map_err(|e| DialError::new(format!("{addr}: {e}")))?.collect();
    if found.is_empty() {
        return Err(DialError::new(format!("{addr}: no address")));
    }
    dial_any(&found, hello, deadline, access)
}

/// The first of some addresses that answers well.
pub(super) fn dial_any(
    targets: &[SocketAddr],
    hello: &Hello,
    deadline: Instant,
    access: &Access,
) -> Result<Conn, DialError> {
    let mut last = DialError::new("no address".into());
    for (target, more) in targets.iter().copied().zip((0..targets.len()).rev()) {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(more + 1).unwrap_or(u32::MAX);
        match dial_one(target, hello, Instant::now() + share, access) {
            Ok(conn) => return Ok(conn),
            // The right one, and not the time for another session.
            Err(e) if e.failure == Failure::Duplicate => return Err(e),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// One connection as it is being made.
struct Dialling {
    stream: TcpStream,
    target: SocketAddr,
    deadline: Instant,
}

impl Dialling {
    fn failed(&self, what: &str, e: &dyn fmt::Display) -> DialError {
        DialError::new(format!("{what} {}: {e}", self.target))
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DialError> {
        self.stream.set_write_timeout(Some(self.left())).map_err(|e| self.failed("timeout for", &e))?;
        self.stream.write_all(bytes).map_err(|e| self.failed("handshake with", &e))
    }

    /// At least one byte.
    fn read(&mut self, into: &mut [u8]) -> Result<usize, DialError> {
        self.stream.set_read_timeout(Some(self.left())).map_err(|e| self.failed("timeout for", &e))?;
        match self.stream.read(into) {
            Ok(0) => Err(DialError::new(format!("{} closed the connection during the handshake", self.target))),
            Ok(count) => Ok(count),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(DialError::new(format!("{}: no answer in time to the handshake", self.target)))
            }
            Err(e) => Err(self.failed("handshake with", &e)),
        }
    }

    /// Both keys proven, and theirs trusted.
    fn shake(&mut self, authority: &dyn Authority) -> Result<(Guard, Known, Vec<u8>), DialError> {
        let no = |e: &dyn fmt::Display| DialError::new(format!("{}: {e}", self.target));
        let tls = authority.tls().map_err(DialError::new)?;
        let mut handshake = Handshake::dialler(&tls).map_err(|e| no(&e))?;
        let (mut buffer, mut got) = ([0; 4096], 0);
        let Established { peer: key, binding, sealer, opener, early, rest } = loop {
            let mut out = Vec::new();
            let step = handshake.on_bytes(&buffer[..got], &mut out);
            let said = if out.is_empty() { Ok(()) } else { self.write(&out) };
            match step.map_err(|e| DialError::new(format!("{}: {e}", self.target)))? {
                Progress::Done(established) => {
                    said?;
                    break established;
                }
                Progress::More(more) => handshake = more,
            }
            said?;
            got = self.read(&mut buffer)?;
        };
        if !early.is_empty() || !rest.is_empty() {
            return Err(DialError::new(format!("{}: it spoke before it was asked", self.target)));
        }
        let here = self.stream.local_addr().map_err(|e| self.failed("local address of", &e))?;
        let shown = Shown { key, ends: Ends { here, there: self.target }, binding, dialled: true, role: None };
        let Judged { name, voucher } =
            authority.judge(&shown).map_err(|stranger| DialError::new(format!("{}: {}", self.target, stranger.log)))?;
        Ok((Guard::Tls { sealer, opener }, Known { name, key: Some(key), bearer: None }, voucher))
    }

    /// Exactly the HELLO and not a byte more: what follows belongs to the worker.
    fn hear_hello(&mut self, guard: &mut Guard) -> Result<Hello, DialError> {
        let target = self.target;
        let no = move |e: &dyn fmt::Display| DialError::new(format!("{target}: {e}"));
        let mut hello = Vec::new();
        loop {
            if let Some(hello) = Hello::decode(&hello).map_err(|e| no(&e))? {
                return Ok(hello);
            }
            if hello.len() > HELLO_MAX {
                return Err(no(&"a HELLO that does not end"));
            }
            match guard {
                Guard::Tls { opener, .. } => {
                    let record = sealed::read_record(opener, |into| self.read(into))?;
                    hello.extend(record.map_err(|e| no(&e))?);
                }
                #[cfg(any(test, feature = "plaintext"))]
                Guard::Plain => {
                    let mut byte = [0];
                    self.read(&mut byte)?;
                    hello.push(byte[0]);
                }
            }
        }
    }
}

fn dial_one(target: SocketAddr, hello: &Hello, deadline: Instant, access: &Access) -> Result<Conn, DialError> {
    #[cfg(feature = "plaintext")]
    if let (Access::Plain, false) = (access, crate::config::plaintext_allows(target)) {
        return Err(DialError::new(format!("{target}: unencrypted links go to loopback and 192.168.10.0/24 only")));
    }
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let stream = TcpStream::connect_timeout(&target, left).map_err(|e| {
        let nobody = e.kind() == io::ErrorKind::ConnectionRefused;
        let failure = if nobody { Failure::Nobody } else { Failure::Other };
        DialError { failure, ..DialError::new(format!("connect to {target}: {e}")) }
    })?;
    let mut dialling = Dialling { stream, target, deadline };
    tune(&dialling.stream, hello.role, hello.lane).map_err(|e| dialling.failed("socket options for", &e))?;
    let (mut guard, mut known, voucher) = match access {
        Access::Keys(authority) => dialling.shake(authority.as_ref())?,
        #[cfg(feature = "plaintext")]
        Access::Plain => (Guard::Plain, Known::unproven(), Vec::new()),
    };
    let mut said = Vec::new();
    let hello = Hello { voucher, ..hello.clone() };
    guard.seal(&hello.encode(), &mut said).map_err(|e| dialling.failed("handshake with", &e))?;
    dialling.write(&said)?;
    let peer = dialling.hear_hello(&mut guard)?;
    let untimed = dialling.stream.set_read_timeout(None).and_then(|()| dialling.stream.set_write_timeout(None));
    untimed.map_err(|e| dialling.failed("timeout for", &e))?;
    match peer.verdict {
        Verdict::Ok => {
            match (access.authority(), &known.key) {
                (Some(authority), Some(key)) => authority.seen(&known.name, key, target.ip()),
                _ => known.name.clone_from(&peer.name),
            }
            Ok(Conn::new(dialling.stream, guard, known, peer, target))
        }
        Verdict::Duplicate => {
            let text = format!("{target} has a session with this node already");
            Err(DialError { failure: Failure::Duplicate, key: known.key, ..DialError::new(text) })
        }
        Verdict::Refused => {
            let text = format!("{target} refused: {}", peer.reason);
            Err(DialError { failure: Failure::Refused, ..DialError::new(text) })
        }
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
