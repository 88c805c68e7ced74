//! Which engine: found out by doing, not from a version, and said in one line.
//!
//! ```text
//!   Auto ──▶ a ring as on 6.1 ─EINVAL─▶ a ring as on 5.10 (and what else works) ─no ring─▶ epoll
//!                       └───────── one fd passed: does it arrive, and nothing else? ─────────┘
//! ```

use std::rc::Rc;
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use socket2::SockRef;

use super::buf::{Chunk, Filling};
use super::epoll::EpollEngine;
use super::op::{Done, Engine, Fd, Message, Op};
use super::uring::{Features, Uring};
use crate::errno::{Errno, OsError, OsResult, Step};
use crate::limits::ENGINE_PROBE;
use crate::mux::Payload;
use crate::sys::readable;

/// The environment variable that every program takes its wish from.
pub const WISH_ENV: &str = "FARSIDE_ENGINE";

/// What was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wish {
    /// The best that works here.
    #[default]
    Auto,
    /// A ring, or an error that says why there is none.
    IoUring,
    /// A ring that does only what Linux 5.10 has, for a kernel whose newer parts make trouble.
    IoUringBasic,
    /// No ring.
    Epoll,
}

impl FromStr for Wish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "io_uring" => Ok(Self::IoUring),
            "io_uring-basic" => Ok(Self::IoUringBasic),
            "epoll" => Ok(Self::Epoll),
            _ => Err("write auto, io_uring, io_uring-basic or epoll".into()),
        }
    }
}

impl Wish {
    /// What `FARSIDE_ENGINE` says.
    ///
    /// # Errors
    /// One line, naming the variable.
    pub fn from_env() -> Result<Self, String> {
        match std::env::var(WISH_ENV) {
            Ok(text) => text.parse().map_err(|e| format!("{WISH_ENV}={text}: {e}")),
            Err(std::env::VarError::NotPresent) => Ok(Self::Auto),
            Err(e) => Err(format!("{WISH_ENV}: {e}")),
        }
    }
}

/// An engine, and what it is.
pub struct Opened {
    pub engine: Box<dyn Engine>,
    /// For people, without a program's name in front.
    pub line: String,
}

/// An engine for the calling thread, which alone may use it.
///
/// # Errors
/// No ring, where one was asked for: the line says what to do. With `Auto` only what epoll_create1(2) may say.
pub fn open(wish: Wish) -> OsResult<Opened> {
    let ring = match wish {
        Wish::Auto | Wish::IoUring => uring(),
        Wish::IoUringBasic => Uring::new(Features::BASIC),
        Wish::Epoll => return epoll("epoll".into()),
    };
    match ring {
        Ok(ring) => Ok(Opened { line: line(ring.features()), engine: Box::new(ring) }),
        Err(e) if wish == Wish::Auto => epoll(format!("epoll (io_uring: {})", reason(e.errno))),
        Err(e) => Err(OsError::on("io_uring:", advice(e.errno), e.errno)),
    }
}

fn epoll(line: String) -> OsResult<Opened> {
    Ok(Opened { engine: Box::new(EpollEngine::new()?), line })
}

/// The best ring that can be had.
fn uring() -> OsResult<Uring> {
    let older = [Features { deferred: false, ..Features::MODERN }, Features { control: true, ..Features::BASIC }];
    let mut ring = Uring::new(Features::MODERN);
    for features in older {
        match ring {
            Err(OsError { errno: Errno::EINVAL, .. }) => ring = Uring::new(features),
            _ => break,
        }
    }
    let mut ring = ring?;
    if !passes_fds(&mut ring)? {
        ring.without_control();
    }
    if !tells_short_sends(&mut ring)? {
        ring.without_quiet();
    }
    Ok(ring)
}

/// Whether a quiet send that finds too little room says how much was sent, as all of them must that did not send all.
fn tells_short_sends(ring: &mut Uring) -> OsResult<bool> {
    let (a, b) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).step("socketpair")?;
    SockRef::from(&a).set_send_buffer_size(1).map_err(|e| OsError::new("setsockopt", crate::errno::errno_of(&e)))?;
    let chunk = Chunk::from_vec(vec![0; SHORT_SEND]);
    let mut done: Vec<Done> = Vec::new();
    ring.submit_quietly(Op::SendChunk { fd: Rc::new(a), chunk }, 0);
    next(ring, &mut done)?;
    let sent = done.first().map_or(Err(Errno::EIO), |d| d.result);
    Ok(sent.is_ok_and(|sent| (1..SHORT_SEND).contains(&(sent as usize)) && sent as usize == readable::bytes(&b)))
}

/// More than a unix socket with the smallest buffer takes (4.5 KiB, socket(7)), by far.
const SHORT_SEND: usize = 256 << 10;

/// Whether a message with an fd arrives by the ring, and brings that fd alone. The receiver has to wait for it: that is
/// when some kernels add what nobody asked for.
fn passes_fds(ring: &mut Uring) -> OsResult<bool> {
    let (a, b) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).step("socketpair")?;
    let passed = a.try_clone().step("dup")?;
    let (a, b): (Fd, Fd) = (Rc::new(a), Rc::new(b));
    let mut done: Vec<Done> = Vec::new();
    let recv = ring.submit(Op::Recv { fd: b, into: Filling::of_its_own(1), max: 1, fds: true, dry: false }, 0);
    ring.wait(Some(Duration::ZERO), &mut done)?;
    let mut message = Box::new(Message::from(vec![Chunk::from_vec(vec![0])]));
    message.fds.push(passed);
    let send = ring.submit(Op::Send { fd: a, message }, 1);
    while done.len() < 2 {
        // One half was refused, so the other one waits for nothing.
        if !next(ring, &mut done)? || done.iter().any(|d| d.result != Ok(1)) {
            ring.cancel(recv);
            ring.cancel(send);
        }
    }
    let arrived = done.iter().any(|d| d.fds.len() == 1);
    Ok(arrived && done.iter().all(|d| d.result == Ok(1)) && ring.control_seen == ONE_FD)
}

/// Whether something ended before the time was over. A wait may end sooner with nothing.
fn next(ring: &mut Uring, done: &mut Vec<Done>) -> OsResult<bool> {
    let (before, begun) = (done.len(), Instant::now());
    while done.len() == before {
        let Some(left) = ENGINE_PROBE.checked_sub(begun.elapsed()) else { return Ok(false) };
        ring.wait(Some(left), done)?;
    }
    Ok(true)
}

/// CMSG_SPACE of one fd: a header of 16, and 4 rounded up to 8.
const ONE_FD: usize = 24;

fn line(features: Features) -> String {
    let Features { deferred, timed_wait, control, .. } = features;
    let base = if deferred { "single issuer, deferred task work" } else { "5.10 operations" };
    let waits = if timed_wait && !deferred { ", timed waits" } else { "" };
    let fds = match (deferred, control) {
        (true, false) => ", fds by recvmsg",
        (false, true) => ", fds on the ring",
        _ => "",
    };
    format!("io_uring ({base}{waits}{fds})")
}

/// Why there is no ring, for whoever does without.
fn reason(errno: Errno) -> String {
    match errno {
        Errno::EPERM | Errno::EACCES => "not permitted: kernel.io_uring_disabled or a seccomp filter".into(),
        Errno::ENOSYS | Errno::EINVAL => "not in this kernel, or hidden by a seccomp filter".into(),
        Errno::ENOMEM => "not enough memory that may be locked".into(),
        other => other.desc().into(),
    }
}

/// Why there is no ring and what to do, for whoever wants one.
fn advice(errno: Errno) -> String {
    let otherwise = "or say --engine auto to do without";
    match errno {
        Errno::EPERM | Errno::EACCES => match disabled() {
            Some(level) => format!("kernel.io_uring_disabled is {level}: set it to 0 by sysctl, {otherwise}"),
            None => format!("a seccomp filter (a container's?) refuses it: let io_uring_setup pass, {otherwise}"),
        },
        Errno::ENOSYS | Errno::EINVAL => {
            format!("not in this kernel (5.10 is needed), or hidden by a seccomp filter: change that, {otherwise}")
        }
        Errno::ENOMEM => {
            format!("the limit on locked memory is too low: raise it (ulimit -l, LimitMEMLOCK=), {otherwise}")
        }
        _ => format!("cannot be set up: see the errno, {otherwise}"),
    }
}

/// The sysctl, where it forbids something.
fn disabled() -> Option<String> {
    let level = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().to_owned();
    (level != "0").then_some(level)
}
