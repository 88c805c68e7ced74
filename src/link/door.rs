//! The door: accepts TCP connections and answers their HELLOs, all on one thread that never waits for one of them.
//!
//! ```text
//!   accept ──▶ Pending ──whole HELLO──▶ Node::admit ──▶ answer ──▶ worker, or a file server's thread
//!                 └── deadline, garbage, wrong address ──▶ closed, one line
//! ```
//!
//! Before the HELLO is whole a stranger costs one fd and HELLO_MAX bytes; when too many wait, the oldest goes.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::conn::{self, Conn};
use super::node::{Admission, Node};
use crate::config;
use crate::errno::{Errno, OsError, OsResult, Step};
use crate::limits::{HELLO_DEADLINE_MS, HELLO_MAX, HELLO_PENDING_MAX};
use crate::wire::hello::{Hello, Verdict};

struct Pending {
    stream: TcpStream,
    addr: SocketAddr,
    got: Vec<u8>,
    deadline: Instant,
}

#[derive(Debug)]
pub struct Door {
    listeners: Vec<TcpListener>,
    node: Node,
}

impl Door {
    /// Binds `addr` (`ADDR:PORT`; a name may stand for several addresses). Those that can't be bound are left out with a
    /// line, as long as one can.
    ///
    /// # Errors
    /// EADDRINUSE and the like, with the address; EACCES for one that unencrypted links may not have.
    pub fn bind(addr: &str, node: Node) -> OsResult<Self> {
        let found = std::net::ToSocketAddrs::to_socket_addrs(addr).step_on("resolve", addr)?;
        Self::bind_any(found, node)?.ok_or(OsError::on("resolve", addr, Errno::EADDRNOTAVAIL))
    }

    /// `None`: there is no address to bind.
    pub(super) fn bind_any(targets: impl Iterator<Item = SocketAddr>, node: Node) -> OsResult<Option<Self>> {
        let (mut listeners, mut failed) = (Vec::new(), Vec::new());
        for target in targets {
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
        Ok(Some(Self { listeners, node }))
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
        let mut waiting: VecDeque<Pending> = VecDeque::new();
        while !self.node.is_leaving() {
            let ready = self.poll(&waiting);
            let (doors, guests) = ready.split_at(self.listeners.len());
            let mut index = 0;
            waiting.retain_mut(|guest| {
                index += 1;
                !guests[index - 1] || self.hear(guest)
            });
            let now = Instant::now();
            waiting.retain(|guest| {
                let late = guest.deadline <= now;
                if late {
                    tracing::info!(addr = %guest.addr, "closed: no whole HELLO within {HELLO_DEADLINE_MS} ms");
                }
                !late
            });
            for (listener, ready) in self.listeners.iter().zip(doors) {
                if *ready {
                    self.accept(listener, &mut waiting);
                }
            }
        }
    }

    /// Which listeners and guests have something; also wakes for deadlines and to see whether the node leaves.
    fn poll(&self, waiting: &VecDeque<Pending>) -> Vec<bool> {
        let listeners = self.listeners.iter().map(|l| PollFd::new(l.as_fd(), PollFlags::POLLIN));
        let guests = waiting.iter().map(|g| PollFd::new(g.stream.as_fd(), PollFlags::POLLIN));
        let mut fds: Vec<PollFd<'_>> = listeners.chain(guests).collect();
        if let Err(e) = poll(&mut fds, PollTimeout::from(WAKE_MS)) {
            tracing::debug!("poll: {e}");
        }
        fds.iter().map(|f| f.revents().is_some_and(|r| !r.is_empty())).collect()
    }

    fn accept(&self, listener: &TcpListener, waiting: &mut VecDeque<Pending>) {
        for _ in 0..ACCEPTS_A_TURN {
            let (stream, addr) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) => {
                    // EMFILE and the like: those who wait keep their places; a short pause instead of a busy loop.
                    tracing::warn!("accept: {e}");
                    std::thread::sleep(Duration::from_millis(20));
                    return;
                }
            };
            let ours = stream.local_addr().is_ok_and(config::plaintext_allows);
            if !config::plaintext_allows(addr) || !ours {
                tracing::warn!(%addr, "refused: unencrypted links are for loopback and 192.168.10.0/24 only");
                continue;
            }
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            if waiting.len() >= HELLO_PENDING_MAX {
                waiting.pop_front();
            }
            let deadline = Instant::now() + Duration::from_millis(HELLO_DEADLINE_MS);
            waiting.push_back(Pending { stream, addr, got: Vec::new(), deadline });
        }
    }

    /// Reads what has come. Returns whether the guest still waits.
    fn hear(&self, guest: &mut Pending) -> bool {
        let mut buffer = [0; HELLO_MAX];
        let room = HELLO_MAX - guest.got.len();
        match guest.stream.read(&mut buffer[..room]) {
            Ok(0) => return false,
            Ok(count) => guest.got.extend_from_slice(&buffer[..count]),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return true,
            Err(_) => return false,
        }
        match Hello::decode(&guest.got) {
            Ok(None) => true,
            Ok(Some(hello)) => {
                self.answer(guest, hello);
                false
            }
            Err(e) => {
                tracing::warn!(addr = %guest.addr, "closed: {e}");
                false
            }
        }
    }

    fn answer(&self, guest: &Pending, hello: Hello) {
        let mut answer = self.node.hello(hello.role, hello.lane, hello.session, hello.index);
        let admitted = self.node.admit(&hello, guest.addr);
        if let Err((verdict, reason)) = &admitted {
            answer.verdict = *verdict;
            answer.reason.clone_from(reason);
            if *verdict == Verdict::Refused {
                tracing::warn!(addr = %guest.addr, "refused: {reason}");
            }
        }
        // A HELLO's few bytes always fit an empty socket buffer.
        let said = (&guest.stream).write_all(&answer.encode());
        let Ok(stream) = guest.stream.try_clone() else { return };
        let tuned = stream.set_nonblocking(false).and_then(|()| conn::tune(&stream, hello.role, hello.lane));
        match (admitted, said.and(tuned)) {
            (Ok(Admission::Files), Ok(())) => self.serve_files(Conn::new(stream, hello, guest.addr)),
            // Even a connection that has just failed goes to its worker: the session must learn of its end there.
            (Ok(link @ Admission::Link { .. }), _) => self.node.hand_over(link, stream.into()),
            _ => {}
        }
    }

    fn serve_files(&self, conn: Conn) {
        let Some(files) = self.node.files() else { return };
        let files = Arc::clone(&files);
        let spawned = std::thread::Builder::new().name("files".into()).spawn(move || files.serve(conn));
        if let Err(e) = spawned {
            tracing::warn!("start a file server: {e}");
        }
    }
}

fn listen(target: SocketAddr) -> OsResult<TcpListener> {
    // On 0.0.0.0 and :: each connection is looked at by itself.
    if !target.ip().is_unspecified() && !config::plaintext_allows(target) {
        let on = format!("{target}: unencrypted links are for loopback and 192.168.10.0/24 only");
        return Err(OsError::on("listen on", on, Errno::EACCES));
    }
    // std sets SO_REUSEADDR, so that a restart need not wait for old connections' TIME_WAIT.
    let listener = TcpListener::bind(target).step_on("listen on", target)?;
    listener.set_nonblocking(true).step("O_NONBLOCK")?;
    Ok(listener)
}

/// How often the door looks up even when nothing happens.
const WAKE_MS: u8 = 200;
/// Accepted in one go; then the guests have their turn again.
const ACCEPTS_A_TURN: usize = 64;
