//! The door: accepts TCP connections, proves who is there, and answers HELLOs, all on one thread that never waits for one
//! of them.
//!
//! ```text
//!   accept ──▶ Guest ──TLS──▶ Authority::judge_now ──HELLO──▶ answer.rs ──▶ worker, or a file server's thread
//!                └── deadline, garbage, a stranger ──▶ one line, closed
//! ```
//!
//! It waits for no file either: whoever is a stranger by what is known waits until another thread has looked again.
//! Before it is known a guest costs one fd and HANDSHAKE_MAX bytes; see `guests.rs` for who makes room.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::access::{Access, Ends, Shown, Stranger};
use super::guests::{Failed, Greeting, Guest, Guests, Stage};
use super::node::Node;
use crate::auth::{Bearer, Established, Handshake, Opened, Progress};
use crate::errno::{Errno, OsError, OsResult, Step, errno_of};
use crate::limits::{HELLO_DEADLINE_MS, HELLO_MAX, TRUST_AWAIT_MS};
use crate::link::worker::guard::Guard;
use crate::link::worker::peer::Known;
use crate::lograte::Condition;
use crate::sys::nofile;
use crate::wire::hello::Hello;

#[derive(Debug)]
pub struct Door {
    listeners: Vec<TcpListener>,
    pub(super) node: Node,
    starved: Condition,
}

impl Door {
    /// Binds `addr` (`ADDR:PORT`; a name may stand for several addresses). Those that can't be bound are left out with a
    /// line, as long as one can.
    ///
    /// # Errors
    /// EADDRINUSE and the like, with the address.
    pub fn bind(addr: &str, node: Node) -> OsResult<Self> {
        let found = std::net::ToSocketAddrs::to_socket_addrs(addr).step_on("resolve", addr)?;
        Self::bind_any(found, node)?.ok_or(OsError::on("resolve", addr, Errno::EADDRNOTAVAIL))
    }

    /// `None`: there is no address to bind.
    pub(super) fn bind_any(targets: impl Iterator<Item = SocketAddr>, node: Node) -> OsResult<Option<Self>> {
        let (mut listeners, mut failed) = (Vec::new(), Vec::new());
        for target in targets {
            #[cfg(feature = "plaintext")]
            check_plaintext(&node, target)?;
            match listen(target) {
                Ok(listener) => listeners.push(listener),
                Err(e) => failed.push(e),
            }
        }
        if listeners.is_empty() {
            return failed.pop().map_or(Ok(None), Err);
        }
        for e in failed {
            tracing::warn!("left out: {e}");
        }
        Ok(Some(Self { listeners, node, starved: Condition::default() }))
    }

    /// The addresses that are really listened on (a port 0 was chosen by the kernel).
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|l| l.local_addr().ok()).collect()
    }

    /// Serves on a thread of its own until the node leaves.
    pub fn open(self) -> OsResult<()> {
        let run = move || self.run();
        std::thread::Builder::new().name("door".into()).spawn(run).step("start the door")?;
        Ok(())
    }

    fn run(self) {
        let mut guests = Guests::default();
        let mut failed = Failed::default();
        let mut version = 0;
        while !self.node.is_leaving() {
            let ready = self.poll(&guests);
            let now = self.node.access().authority().map_or(0, |authority| authority.version());
            if std::mem::replace(&mut version, now) != now {
                self.node.recheck();
            }
            self.node.file_links().end_late(Instant::now());
            let (doors, ready) = ready.split_at(self.listeners.len());
            guests.hear(ready, &mut failed, Instant::now(), |guest, failed| self.hear(guest, failed));
            for guest in guests.late(Instant::now()) {
                self.send_off(guest, &mut failed);
            }
            for (listener, ready) in self.listeners.iter().zip(doors) {
                if *ready {
                    self.accept(listener, &mut guests, &mut failed);
                }
            }
        }
    }

    /// Which listeners and guests have something; also wakes for deadlines and to see whether the node leaves.
    fn poll(&self, guests: &Guests<TcpStream>) -> Vec<bool> {
        let awaits = guests.iter().any(|g| matches!(g.stage, Stage::Awaiting(_)));
        let wake_ms = if awaits { TRUST_AWAIT_MS } else { WAKE_MS };
        let listeners = self.listeners.iter().map(|l| PollFd::new(l.as_fd(), PollFlags::POLLIN));
        let streams = guests.iter().map(|g| PollFd::new(g.stream.as_fd(), PollFlags::POLLIN));
        let mut fds: Vec<PollFd<'_>> = listeners.chain(streams).collect();
        if let Err(e) = poll(&mut fds, PollTimeout::from(wake_ms)) {
            tracing::debug!("poll: {e}");
        }
        let mut ready: Vec<bool> = fds.iter().map(|f| f.revents().is_some_and(|r| !r.is_empty())).collect();
        for (ready, guest) in ready[self.listeners.len()..].iter_mut().zip(guests.iter()) {
            *ready |= self.can_answer(guest);
        }
        ready
    }

    fn accept(&self, listener: &TcpListener, guests: &mut Guests<TcpStream>, failed: &mut Failed) {
        for _ in 0..ACCEPTS_A_TURN {
            let (stream, there) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) => {
                    // EMFILE and the like: those who wait keep their places; a short pause instead of a busy loop.
                    if self.starved.begins(Instant::now()) {
                        tracing::warn!("peers wait: they cannot be accepted: {}", nofile::explained(errno_of(&e)));
                    }
                    std::thread::sleep(Duration::from_millis(20));
                    return;
                }
            };
            if self.starved.ends(Instant::now()) {
                tracing::info!("peers are accepted again");
            }
            let (Ok(here), Ok(())) = (stream.local_addr(), stream.set_nonblocking(true)) else { continue };
            let ends = Ends { here, there };
            let stage = match self.first_stage(ends) {
                Ok(stage) => stage,
                Err(e) => {
                    complain(failed, ends, &e);
                    continue;
                }
            };
            if let Some(gone) = guests.enter(stream, ends, stage, Instant::now()) {
                complain(failed, gone, "too many wait, and it had said nothing");
            }
        }
    }

    #[cfg_attr(not(feature = "plaintext"), allow(unused_variables, reason = "keys don't go by address"))]
    fn first_stage(&self, ends: Ends) -> Result<Stage, String> {
        match self.node.access() {
            Access::Keys(authority) => {
                let tls = authority.tls()?;
                let handshake = Handshake::listener(&tls).map_err(|e| e.to_string())?;
                Ok(Stage::Shaking(Box::new(handshake)))
            }
            #[cfg(feature = "plaintext")]
            Access::Plain => {
                let allowed = [ends.here, ends.there].into_iter().all(crate::config::plaintext_allows);
                let (guard, judged, raw, plain) = (Guard::Plain, Instant::now(), Vec::new(), Vec::new());
                let (binding, key, who) = ([0; 32], None, Ok(Known::unproven()));
                let greeting = Greeting { guard, binding, key, who, judged, raw, plain };
                allowed
                    .then(|| Stage::Greeting(Box::new(greeting)))
                    .ok_or("unencrypted links are for loopback and 192.168.10.0/24 only".into())
            }
        }
    }

    /// Reads what has come. Returns whether the guest still waits.
    fn hear(&self, guest: &mut Guest<TcpStream>, failed: &mut Failed) -> bool {
        if self.can_answer(guest) {
            return self.stays(guest, failed, |guest| self.answer_at_last(guest));
        }
        let mut buffer = [0; 4096];
        let bytes = match guest.stream.read(&mut buffer) {
            Ok(0) => {
                match &guest.stage {
                    Stage::Leaving => {}
                    // Neither side knows the other: this line is the one that helps.
                    Stage::Greeting(greeting) if greeting.who.is_err() => {
                        complain(failed, guest.ends, &stranger_of(greeting).log);
                    }
                    _ => complain(failed, guest.ends, "it went away during the handshake"),
                }
                return false;
            }
            Ok(count) => &buffer[..count],
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return true,
            Err(_) => return false,
        };
        self.stays(guest, failed, |guest| self.on_bytes(guest, bytes))
    }

    /// Whether a guest still waits after that step; says why not.
    fn stays(
        &self,
        guest: &mut Guest<TcpStream>,
        failed: &mut Failed,
        step: impl FnOnce(&mut Guest<TcpStream>) -> Result<bool, String>,
    ) -> bool {
        step(guest).unwrap_or_else(|e| {
            complain(failed, guest.ends, &e);
            matches!(guest.stage, Stage::Leaving)
        })
    }

    /// One whose time is over.
    fn send_off(&self, mut guest: Guest<TcpStream>, failed: &mut Failed) {
        match &guest.stage {
            Stage::Leaving => {}
            Stage::Awaiting(_) => drop(self.stays(&mut guest, failed, |guest| self.answer_at_last(guest))),
            _ => complain(failed, guest.ends, &format!("no whole HELLO within {HELLO_DEADLINE_MS} ms")),
        }
    }

    /// # Errors
    /// One line for the log; with `Stage::Leaving` the guest has been told.
    fn on_bytes(&self, guest: &mut Guest<TcpStream>, bytes: &[u8]) -> Result<bool, String> {
        match std::mem::replace(&mut guest.stage, Stage::Nothing) {
            Stage::Leaving => {
                guest.stage = Stage::Leaving;
                Ok(true)
            }
            Stage::Awaiting(_) => Err("bytes behind the HELLO".into()),
            Stage::Nothing => Ok(false),
            Stage::Shaking(handshake) => {
                let mut out = Vec::new();
                let step = handshake.on_bytes(bytes, &mut out);
                // A flight always fits an empty socket buffer; who has filled it before does not mean well.
                let said = (&guest.stream).write_all(&out);
                match step.map_err(|e| e.to_string())? {
                    Progress::More(handshake) => {
                        guest.stage = Stage::Shaking(Box::new(handshake));
                        Ok(said.is_ok())
                    }
                    Progress::Done(established) => self.on_proven(guest, established),
                }
            }
            Stage::Greeting(mut greeting) => {
                greeting.raw.extend_from_slice(bytes);
                self.on_greeting(guest, greeting)
            }
        }
    }

    /// Both keys are proven: is this one trusted?
    fn on_proven(&self, guest: &mut Guest<TcpStream>, established: Established) -> Result<bool, String> {
        let Established { peer: key, binding, sealer, opener, early, rest } = established;
        let shown = Shown { key, ends: guest.ends, binding, dialled: false, role: None };
        let (judged, who) = (Instant::now(), self.judge(shown, None));
        let (guard, key) = (Guard::Tls { sealer, opener }, Some(key));
        self.on_greeting(guest, Box::new(Greeting { guard, binding, key, who, judged, raw: rest, plain: early }))
    }

    pub(super) fn judge(&self, shown: Shown, bearer: Option<Bearer>) -> Result<Known, Stranger> {
        let authority = self.node.access().authority().expect("nobody shakes hands in plaintext");
        let judged = authority.judge_now(&shown)?;
        Ok(Known { name: judged.name, key: Some(shown.key), bearer })
    }

    fn on_greeting(&self, guest: &mut Guest<TcpStream>, mut greeting: Box<Greeting>) -> Result<bool, String> {
        let Greeting { guard, raw, plain, .. } = &mut *greeting;
        match guard {
            Guard::Tls { opener, .. } => {
                while let Opened::Record { used, plain: range } = opener.open(raw).map_err(|e| e.0)? {
                    plain.extend_from_slice(&raw[range]);
                    raw.drain(..used);
                }
            }
            #[cfg(any(test, feature = "plaintext"))]
            Guard::Plain => plain.append(raw),
        }
        if plain.len() > HELLO_MAX || raw.len() > 2 * HELLO_MAX {
            return Err(format!("a HELLO of more than {HELLO_MAX} bytes"));
        }
        match Hello::decode(plain).map_err(|e| e.0)? {
            None => {
                guest.stage = Stage::Greeting(greeting);
                Ok(true)
            }
            Some(_) if !raw.is_empty() => Err("bytes behind the HELLO".into()),
            Some(hello) => self.answer(guest, *greeting, hello),
        }
    }
}

#[cfg(feature = "plaintext")]
fn check_plaintext(node: &Node, target: SocketAddr) -> OsResult<()> {
    // On 0.0.0.0 and :: each connection is looked at by itself.
    let allowed = target.ip().is_unspecified() || crate::config::plaintext_allows(target);
    if allowed || matches!(node.access(), Access::Keys(_)) {
        return Ok(());
    }
    let on = format!("{target}: unencrypted links are for loopback and 192.168.10.0/24 only");
    Err(OsError::on("listen on", on, Errno::EACCES))
}

fn stranger_of(greeting: &Greeting) -> &Stranger {
    greeting.who.as_ref().expect_err("asked only where it is one")
}

/// Counts a failed handshake, and says so unless its address has been said a moment ago.
fn complain(failed: &mut Failed, ends: Ends, why: &str) {
    let Some(untold) = failed.count(ends.there.ip(), Instant::now()) else { return };
    if untold > 0 {
        tracing::warn!(addr = %ends.there, untold, total = failed.total, "closed: {why} (and {untold} more that were not said)");
    } else {
        tracing::warn!(addr = %ends.there, "closed: {why}");
    }
}

fn listen(target: SocketAddr) -> OsResult<TcpListener> {
    // std sets SO_REUSEADDR, so that a restart need not wait for old connections' TIME_WAIT.
    let listener = TcpListener::bind(target).step_on("listen on", target)?;
    listener.set_nonblocking(true).step("O_NONBLOCK")?;
    Ok(listener)
}

/// How often the door looks up even when nothing happens.
const WAKE_MS: u16 = 200;
/// Accepted in one go; then the guests have their turn again.
const ACCEPTS_A_TURN: usize = 64;
