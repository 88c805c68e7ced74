//! The near side of rexec: the stand-in of a command that runs on the other machine.
//!
//! ```text
//!   argv, env, cwd, fds ──▶ OPEN(EXEC) ──▶ Started ── signals ──▶ ... Exited, stdout and stderr drained ──▶ exit
//! ```
//!
//! Its pid is the command's pid to whoever started it: it lives as long as the command, takes the signals meant for it,
//! and ends as it ended. It needs no privilege.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use super::daemon::Background;
use super::wire::{CHDIR, Capabilities, Identity, LISTEN_PID, MESSAGE_MAX, Message, Request, Signal};
use crate::config::PLAINTEXT_ENV;
use crate::errno::{Errno, OsError, OsResult, Step};
use crate::fdpass::{Maker, Mode, OnRefusal, Pump};
use crate::limits::{FDS_MAX, OPEN_DEADLINE_MS};
use crate::link::{Access, Attached, First, Handler, Incoming, LaterDial, Node, NodeOptions, dial_client};
use crate::ring::Wish;
use crate::stream::Kind;
use crate::sys::inheritance::Inheritance;
use crate::sys::{caps, frames, inherited, signals};
use crate::wire::service;

/// The transport failed, or rexec itself could not do its part.
pub(super) const FAILED: i32 = 255;
const CANNOT_RUN: i32 = 126;
const NOT_FOUND: i32 = 127;

/// The peer opens nothing towards a command's stand-in.
struct Nothing;

impl Handler for Nothing {
    fn on_open(&self, incoming: Incoming) {
        incoming.stream.refuse(Errno::EOPNOTSUPP);
    }
}

/// Runs `argv` on the node at `addr` and returns the exit status for this process.
pub fn run(addr: &str, argv: Vec<Vec<u8>>, engine: Wish, ways: &dyn Ways) -> i32 {
    match Background::begin(&argv) {
        Ok(background) => attempt(addr, argv, background, engine, ways),
        Err(e) => complain(&e),
    }
}

fn complain(what: &dyn std::fmt::Display) -> i32 {
    say(what);
    FAILED
}

fn say(what: &dyn std::fmt::Display) {
    // Where stderr is closed there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "rexec: {what}");
}

fn attempt(addr: &str, argv: Vec<Vec<u8>>, mut background: Background, engine: Wish, ways: &dyn Ways) -> i32 {
    // Before this process changes any of it.
    let inheritance = match Inheritance::of_self() {
        Ok(inheritance) => inheritance,
        Err(e) => return complain(&e),
    };
    signals::outlive_file_sizes();
    // Before any thread is there: they all inherit the mask, so that only the signalfd sees these.
    let taken = match signals::take_forwarded() {
        Ok(taken) => taken,
        Err(e) => return complain(&e),
    };
    let name = String::from_utf8_lossy(&argv[0]).into_owned();
    let stand_in = match StandIn::start(addr, (argv, inheritance), background.is_wanted(), engine, ways) {
        Ok(stand_in) => stand_in,
        Err(Trouble { text, code }) => {
            say(&text);
            background.report(code);
            return code;
        }
    };
    match stand_in.attend(&taken, &name, &mut background) {
        Ok(code) => {
            background.report(code);
            code
        }
        Err(e) => complain(&e),
    }
}

struct StandIn {
    control: UnixStream,
    way: Way,
}

/// How the command's stream goes.
enum Way {
    /// On a connection of this process.
    Own {
        attached: Attached,
        _bulk: LaterDial,
        /// Keeps the workers' handle.
        _node: Node,
    },
    /// Over the session of a daemon of this machine, which tells when all has been written here.
    Carried { ended: OwnedFd },
}

/// What a daemon of this machine gives for a command that it carries.
#[derive(Debug)]
pub struct Carried {
    /// The command's stream.
    pub control: UnixStream,
    /// A byte when all that the command wrote has been written here; its end before that: the session is lost.
    pub ended: OwnedFd,
}

/// How this process reaches the other machine.
pub trait Ways {
    /// By a daemon of this machine that has a session there: what the command's stream begins with, and the fds that go
    /// along. `None`: there is none, or it does not do that; nothing has begun.
    fn carry(&self, first: &[u8], fds: &[(BorrowedFd<'_>, Mode)]) -> Option<Carried>;

    /// By a connection of its own.
    ///
    /// # Errors
    /// One line: it has neither a key nor a daemon's word.
    fn access(&self) -> Result<Access, String>;
}

/// Why a command did not start: one line, and this process's exit status.
struct Trouble {
    text: String,
    code: i32,
}

impl Trouble {
    fn failed(text: String) -> Self {
        Self { text, code: FAILED }
    }
}

impl From<OsError> for Trouble {
    fn from(e: OsError) -> Self {
        Self::failed(e.to_string())
    }
}

impl StandIn {
    fn start(
        addr: &str,
        (argv, inheritance): (Vec<Vec<u8>>, Inheritance),
        daemonizes: bool,
        engine: Wish,
        ways: &dyn Ways,
    ) -> Result<Self, Trouble> {
        let cwd = working_directory()?;
        let carried = carried_fds()?;
        let request = Request {
            argv,
            env: environment(),
            listens: std::env::var(LISTEN_PID).is_ok_and(|pid| pid == std::process::id().to_string()),
            cwd,
            umask: signals::umask(),
            inheritance,
            identity: identity()?,
            fds: carried.iter().map(|(number, ..)| *number).collect(),
            daemonizes,
        };
        let bytes = request.encode();
        let length = u32::try_from(bytes.len()).expect("bounded by the kernel's own limit on argv and env");
        let first = length.to_le_bytes();
        let lent: Vec<_> = carried.iter().map(|(_, fd, mode)| (fd.as_fd(), *mode)).collect();
        let (control, way) = match ways.carry(&first, &lent) {
            Some(Carried { control, ended }) => (control, Way::Carried { ended }),
            None => {
                let fds = carried.into_iter().map(|(_, fd, mode)| (fd, mode)).collect();
                Way::own(addr, engine, ways.access().map_err(Trouble::failed)?, fds, first.to_vec())?
            }
        };
        frames::write(&control, &bytes)?;
        // The pumps have their own copies now, and close each at its stream's end: nobody here must keep a pipe open.
        // stderr stays for what there may be to say.
        for number in request.fds.iter().copied().filter(|n| *n != 2) {
            inherited::release(number)?;
        }
        Ok(Self { control, way })
    }

    /// Until the command has ended. Returns this process's exit status.
    fn attend(&self, taken: &SignalFd, name: &str, background: &mut Background) -> OsResult<i32> {
        loop {
            let (peer_ready, signal_ready) = wait(self.control.as_fd(), taken)?;
            if signal_ready {
                self.forward(taken)?;
            }
            if !peer_ready {
                continue;
            }
            let bytes = match frames::read(&self.control, MESSAGE_MAX) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return Err(lost()),
                Err(e) if e.errno == Errno::ECONNRESET => return Err(lost()),
                Err(e) => return Err(e),
            };
            let message = Message::decode(&bytes).map_err(|e| OsError::on("exec message", e, Errno::EPROTO))?;
            match message {
                Message::Started { .. } => {}
                Message::Failed { errno, step } => return Ok(not_run(name, &step, errno)),
                Message::Exited { status, left } => {
                    if let Some(signal) = self.drain(taken)? {
                        return Ok(128 + signal);
                    }
                    // One that failed has left no daemon, only a child that is still on its way out.
                    if !left || status.code() != 0 {
                        return Ok(status.code());
                    }
                    // The daemon's parent has ended; from here on this process is the daemon, as far as anybody here
                    // can tell.
                    background.stay(status.code())?;
                }
                Message::DaemonGone => return Ok(0),
                Message::Signal(_) => return Err(OsError::new("exec message", Errno::EPROTO)),
            }
        }
    }

    fn forward(&self, taken: &SignalFd) -> OsResult<()> {
        let Some(info) = taken.read_signal().step("read a signal")? else { return Ok(()) };
        let signal = Signal(info.ssi_signo.cast_signed());
        let Ok(bytes) = Message::Signal(signal).encode() else { return Ok(()) };
        match frames::write(&self.control, &bytes) {
            // It is over already; the reason is waiting to be read.
            Err(e) if e.errno == Errno::EPIPE => Ok(()),
            other => other,
        }
    }

    /// Until all that the command wrote has been written here. A signal that would end the command, were it still there,
    /// ends the waiting for a reader that does not read: it is returned.
    fn drain(&self, taken: &SignalFd) -> OsResult<Option<i32>> {
        let ended = self.way.end()?;
        loop {
            let (told, signal_ready) = wait(ended.as_fd(), taken)?;
            if told {
                // Without its byte: the session ended before the last one came.
                let came = nix::unistd::read(&ended, &mut [0]).step("read")?;
                return if came == 1 { Ok(None) } else { Err(lost()) };
            }
            if signal_ready
                && let Some(info) = taken.read_signal().step("read a signal")?
                && let signal = info.ssi_signo.cast_signed()
                && matches!(signal, libc::SIGTERM | libc::SIGINT | libc::SIGHUP | libc::SIGQUIT)
            {
                return Ok(Some(signal));
            }
        }
    }
}

impl Way {
    fn own(
        addr: &str,
        engine: Wish,
        access: Access,
        fds: Vec<(OwnedFd, Mode)>,
        first: Vec<u8>,
    ) -> Result<(UnixStream, Self), Trouble> {
        let fds = Maker::default().describe(fds, OnRefusal::Fail)?;
        let handler = Arc::new(Nothing);
        let node =
            // The command ends with this process, and the server can't tell its end from a link's: no grace.
            Node::start(NodeOptions {
                workers: 1,
                engine,
                access,
                handler,
                files: None,
                grace: Duration::ZERO,
                fds: Maker::default(),
            })?;
        let bulk = dial_client(&node, addr).map_err(|e| Trouble::failed(e.to_string()))?;
        let deadline = Instant::now() + Duration::from_millis(OPEN_DEADLINE_MS);
        let stream = node.open(service::EXEC, Vec::new(), deadline).map_err(|errno| refused(addr, errno))?;
        let (control, theirs) = UnixStream::pair().step("socketpair")?;
        let pump = Pump::new(theirs.into(), Kind::Socket);
        let attached = stream.attach_sending(pump, First { bytes: first, fds });
        Ok((control, Self::Own { attached, _bulk: bulk, _node: node }))
    }

    /// Gives a byte when all that the command wrote has been written here, and its end if that never will be.
    fn end(&self) -> OsResult<OwnedFd> {
        match self {
            Self::Own { attached, .. } => {
                let (told, tell) = std::io::pipe().step("pipe")?;
                attached.tell_children_done(tell);
                Ok(told.into())
            }
            Self::Carried { ended } => ended.try_clone().step("dup"),
        }
    }
}

/// A node that does not even listen to what the command is.
fn refused(addr: &str, errno: Errno) -> Trouble {
    match errno {
        Errno::EACCES => {
            let text = format!("not allowed there: {addr} runs no commands for this machine; the log there says why");
            Trouble { text, code: CANNOT_RUN }
        }
        Errno::EAGAIN => Trouble::failed(format!("{addr} runs too many commands for this machine; try again later")),
        errno => Trouble::failed(format!("{addr} runs no commands for this machine: {}", errno.desc())),
    }
}

/// Which of them has something to read, or its end.
fn wait(other: BorrowedFd<'_>, taken: &SignalFd) -> OsResult<(bool, bool)> {
    let mut fds = [PollFd::new(other, PollFlags::POLLIN), PollFd::new(taken.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(e) => return Err(OsError::new("poll", e)),
    }
    let ready = |at: usize| fds[at].revents().is_some_and(|r| !r.is_empty());
    Ok((ready(0), ready(1)))
}

fn lost() -> OsError {
    OsError::on("the connection to the other machine", "ended before the command did", Errno::ECONNRESET)
}

fn not_run(name: &str, step: &str, errno: Errno) -> i32 {
    if let Some(directory) = step.strip_prefix(CHDIR) {
        let hint = "the command did not run; create the directory on the other machine, or start rexec in another one";
        say(&format_args!("{directory}: {} there; {hint}", errno.desc()));
        return CANNOT_RUN;
    }
    let missing = matches!(errno, Errno::ENOENT | Errno::ENOTDIR);
    let text = if missing && step.starts_with("execve") { "command not found there" } else { step };
    let _ = writeln!(std::io::stderr(), "rexec: {name}: {text}: {}", errno.desc());
    if missing { NOT_FOUND } else { CANNOT_RUN }
}

/// The path of this process's working directory.
///
/// A command is never run anywhere else: its relative paths would name other files.
fn working_directory() -> Result<Vec<u8>, Trouble> {
    let deleted = |e: std::io::Error| {
        let errno = crate::errno::errno_of(&e).desc();
        let text = format!("working directory: {errno}; the command did not run; change to a directory that exists");
        Trouble { text, code: CANNOT_RUN }
    };
    Ok(std::env::current_dir().map_err(deleted)?.into_os_string().into_vec())
}

/// Every inherited fd that goes along: its number, the fd itself, and what it is for.
fn carried_fds() -> Result<Vec<(u32, OwnedFd, Mode)>, Trouble> {
    let mut all = Vec::new();
    for number in inherited::numbers()? {
        if inherited::is_locked(number) {
            // Whoever started us holds a lock by this very file (a pid file): it stays here, and open.
            continue;
        }
        let mode = match number {
            0 => Mode::Stdin,
            1 | 2 => Mode::Output,
            _ => Mode::Inherited,
        };
        all.push((number, inherited::duplicate(number)?, mode));
    }
    if all.len() > FDS_MAX {
        return Err(Trouble::failed(format!("{} inherited fds where {FDS_MAX} are the most", all.len())));
    }
    Ok(all)
}

/// The environment, less what is meant for this machine alone.
fn environment() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for (name, value) in std::env::vars_os() {
        if name == PLAINTEXT_ENV {
            continue;
        }
        let mut value = value.into_vec();
        if name == "LD_PRELOAD" {
            // The shim is this side's; over there it would redirect what is local.
            let ours = |part: &&[u8]| !part.ends_with(b"libudsproxy.so") && !part.is_empty();
            value = value.split(|b| matches!(b, b':' | b' ')).filter(ours).collect::<Vec<_>>().join(&b':');
            if value.is_empty() {
                continue;
            }
        }
        all.push([name.as_bytes(), b"=", &value].concat());
    }
    all
}

fn identity() -> OsResult<Identity> {
    let (sets, no_new_privs) = caps::of_self()?;
    let caps::Sets { inheritable, permitted, bounding, ambient } = sets;
    Ok(Identity {
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        groups: nix::unistd::getgroups().step("getgroups")?.into_iter().map(nix::unistd::Gid::as_raw).collect(),
        capabilities: Capabilities { inheritable, permitted, bounding, ambient },
        no_new_privs,
    })
}
