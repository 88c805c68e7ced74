//! The far side of rexec: runs what the peer asks for, and tells how it ended.
//!
//! ```text
//!   OPEN(EXEC) ─▶ thread ─ request + fds ─▶ Supervisor::start ─▶ Started │ Failed
//!                   │ Signal ─▶ supervisor                        Ended ─▶ finish_children ─▶ Exited
//!                   └ control stream ends first: the stand-in is gone ─▶ KillAll
//! ```
//!
//! A blocking thread for each command: it waits in poll(2) for either the peer or the supervisor. The streams of the
//! command's stdio are pumped by the worker and never come by here.

use std::ffi::CString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::judge::{Judged, judge};
use super::wire::{CHDIR, LISTEN_PID, LISTEN_PID_NAME, Message, REQUEST_MAX, Request, Signal, Status};
use crate::audit;
use crate::auth::{Bearer, PublicKey};
use crate::errno::{Errno, OsError, OsResult, Step as _};
use crate::fdpass::Pump;
use crate::limits::{COMMANDS_A_KEY, COMMANDS_MAX, EXEC_REQUEST_DEADLINE_MS};
use crate::link::{Attached, Incoming, Peer};
use crate::stream::Kind;
use crate::sys::quota::{Limits, Quota};
use crate::sys::seldom::Seldom;
use crate::sys::spawn::{Identity, Order, Plan, Program, Report, Step, Supervisor, step_name};
use crate::sys::{caps, frames, sched, scm};
use crate::trust::Standing;
use crate::wire::{WireResult, bad};

/// The exec service of a node.
pub struct Server {
    /// What each command gets for a supervisor.
    program: Arc<Program>,
    running: Quota<Option<PublicKey>>,
    /// Whose refusals have been logged.
    refused: Seldom<Option<PublicKey>>,
}

impl Server {
    /// # Errors
    /// The program that supervises commands is not beside this one.
    pub fn new() -> OsResult<Self> {
        let program = Arc::new(Program::beside_this_one()?);
        let running = Quota::new(Limits { each: COMMANDS_A_KEY, all: COMMANDS_MAX });
        Ok(Self { program, running, refused: Seldom::default() })
    }

    /// Called on a worker for each OPEN of the service by a peer that may run some command.
    pub fn on_open(&self, incoming: Incoming, standing: Standing) {
        let Incoming { peer, stream, request, .. } = incoming;
        let place = match self.running.take(peer.known.key) {
            Ok(place) => place,
            Err(full) => {
                if let Some(unsaid) = self.refused.due(peer.known.key, Instant::now()) {
                    tracing::warn!(%peer, unsaid, "exec refused: it has too many commands: {full}");
                }
                return stream.refuse(Errno::EAGAIN);
            }
        };
        let bearer = match bearer(&peer, &request) {
            Ok(bearer) => bearer,
            Err(e) => {
                tracing::error!(%peer, "exec: {e}");
                return stream.refuse(Errno::EPROTO);
            }
        };
        let (ours, theirs) = match UnixStream::pair() {
            Ok(pair) => pair,
            Err(e) => return stream.refuse(crate::errno::errno_of(&e)),
        };
        let attached = stream.attach(Pump::new(theirs.into(), Kind::Socket));
        let program = Arc::clone(&self.program);
        let run = move || {
            sched::begin_as_usual();
            let command = Command { program, peer, bearer, control: ours, attached, standing };
            if let Err(e) = command.run() {
                tracing::warn!(peer = %command.peer, "exec: {e}");
            }
            drop(place);
        };
        let stack = 256 << 10;
        if let Err(e) = std::thread::Builder::new().name("command".into()).stack_size(stack).spawn(run) {
            tracing::warn!("start a command's thread: {e}");
        }
    }
}

/// For whom the peer's machine vouches: on this connection, or for this command that its daemon carries. `None`: it is the
/// machine itself that asks, for whom it says in the request.
fn bearer(peer: &Peer, request: &[u8]) -> WireResult<Option<Bearer>> {
    match (&peer.known.bearer, request) {
        (bearer, []) => Ok(bearer.clone()),
        (None, bearer) => Bearer::decode(bearer).map(Some),
        (Some(_), _) => bad!("a program that is vouched for itself vouches for another"),
    }
}

/// Reads until a moment, however often a byte comes.
struct Until<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(into)
    }
}

struct Command {
    program: Arc<Program>,
    peer: Arc<Peer>,
    bearer: Option<Bearer>,
    control: UnixStream,
    attached: Attached,
    standing: Standing,
}

impl Command {
    fn run(&self) -> OsResult<()> {
        let (mut request, fds) = self.receive()?;
        if let Some(bearer) = &self.bearer {
            request.identity = bearer.into();
        }
        let (line, uid) = (show(&request.argv), request.identity.uid);
        let candidates = candidates(&request.argv[0], &request.env);
        let judged = judge(&self.standing, &request, &candidates);
        let judged = judged.and_then(|leave| {
            leave.narrow(&mut request);
            Ok((plan(&request, fds, candidates, leave.program.as_ref())?, leave))
        });
        let (plan, leave) = match judged {
            Ok(judged) => judged,
            Err(e) => {
                tracing::warn!(peer = %self.peer, uid, "exec {line}: refused: {}", e.on);
                self.note(uid, &line, &format!("refused: {}", e.on));
                return self.say(&Message::Failed { errno: e.errno, step: told(&e) });
            }
        };
        // `leave` holds the judged file open until the command has begun.
        tracing::debug!(peer = %self.peer, uid, "exec {line}: {}", leave.by);
        self.note(uid, &line, &leave.by);
        let started = Supervisor::start(&self.program, &plan);
        // The command has them now: a pipe of which this process held an end would not end with the command.
        drop(plan);
        let supervisor = match started {
            Ok(supervisor) => supervisor,
            Err(e) => {
                tracing::error!(peer = %self.peer, "start a supervisor: {e}");
                return self.say(&Message::Failed { errno: e.errno, step: e.op.into() });
            }
        };
        let result = self.attend(&supervisor, &request);
        if result.is_err() {
            supervisor.order(Order::KillAll);
        }
        supervisor.wait();
        result
    }

    /// For the audit log.
    fn note(&self, uid: u32, line: &str, verdict: &str) {
        audit::note(|| format!("peer={} uid={uid} exec {line}: {verdict}", self.peer.known.name));
    }

    /// The request's length comes with the fds, the request behind it.
    fn receive(&self) -> OsResult<(Request, Vec<OwnedFd>)> {
        let patience = Duration::from_millis(EXEC_REQUEST_DEADLINE_MS);
        let until = Until { stream: &self.control, deadline: Instant::now() + patience };
        self.control.set_read_timeout(Some(patience)).step("SO_RCVTIMEO")?;
        let mut length = [0; 4];
        let first = scm::receive_waiting(self.control.as_fd(), &mut length).and_then(scm::Record::whole);
        let first = first.step("read the request")?;
        if first.len != length.len() || first.truncated {
            return Err(OsError::new("read the request", Errno::ECONNRESET));
        }
        let bytes = frames::body(until, u32::from_le_bytes(length) as usize, REQUEST_MAX)?;
        self.control.set_read_timeout(None).step("SO_RCVTIMEO")?;
        let request = Request::decode(&bytes).map_err(|e| OsError::on("exec request", e, Errno::EPROTO))?;
        if request.fds.len() != first.fds.len() {
            return Err(OsError::on("exec request", "another number of fds than came", Errno::EPROTO));
        }
        Ok((request, first.fds))
    }

    fn say(&self, message: &Message) -> OsResult<()> {
        let bytes = message.encode().map_err(|e| OsError::on("exec message", e, Errno::EPROTO))?;
        (&self.control).write_all(&bytes).step("tell the peer")
    }

    /// Between the peer and the supervisor until the command is over and the peer has gone.
    fn attend(&self, supervisor: &Supervisor, request: &Request) -> OsResult<()> {
        let mut ended = false;
        let mut left_behind = false;
        loop {
            let (peer_ready, supervisor_ready) = self.wait(supervisor)?;
            if supervisor_ready {
                match supervisor.report() {
                    Some(Report::Started { pid, no_priority }) => {
                        if no_priority {
                            tracing::info!(peer = %self.peer, pid, "it runs without its caller's priority: not permitted");
                        }
                        self.say(&Message::Started { pid: pid.cast_unsigned() })?;
                    }
                    Some(Report::Failed { step, errno }) => {
                        let (step, errno) = (shown(step, request), Errno::from_raw(errno));
                        self.attached.finish_children();
                        return self.say(&Message::Failed { errno, step });
                    }
                    Some(Report::Ended { wait_status, left }) => {
                        ended = true;
                        left_behind = left && request.daemonizes;
                        // What is in its pipes goes out first; the peer waits for their ends before it believes this.
                        self.attached.finish_children();
                        self.say(&Message::Exited { status: status(wait_status), left: left_behind })?;
                        if !left_behind {
                            // As after a local command: what it left in the background lives on.
                            supervisor.order(Order::Release);
                        }
                    }
                    Some(Report::Empty) | None if left_behind => {
                        self.say(&Message::DaemonGone)?;
                        return Ok(());
                    }
                    Some(Report::Empty) | None if ended => return Ok(()),
                    Some(Report::Empty) | None => {
                        return Err(OsError::new("watch the command", Errno::ECHILD));
                    }
                }
            }
            if peer_ready && !ended | left_behind {
                let Some(bytes) = frames::read(&self.control, super::wire::MESSAGE_MAX)? else {
                    tracing::info!(peer = %self.peer, "the stand-in of {} is gone: killed", show(&request.argv));
                    return Err(OsError::new("attend the command", Errno::ECONNRESET));
                };
                match Message::decode(&bytes) {
                    Ok(Message::Signal(Signal(signal))) => {
                        tracing::debug!(peer = %self.peer, signal, left_behind, "a signal for the command");
                        supervisor.order(Order::Signal(signal));
                    }
                    other => return Err(OsError::on("exec message", format!("{other:?}"), Errno::EPROTO)),
                }
            }
        }
    }

    fn wait(&self, supervisor: &Supervisor) -> OsResult<(bool, bool)> {
        let mut fds = [
            PollFd::new(self.control.as_fd(), PollFlags::POLLIN),
            PollFd::new(supervisor.socket().as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(OsError::new("poll", e)),
        }
        let ready = |at: usize| fds[at].revents().is_some_and(|r| !r.is_empty());
        Ok((ready(0), ready(1)))
    }
}

/// The step that failed, and what it failed on.
fn shown(step: Step, request: &Request) -> String {
    match step {
        Step::Directory => format!("{CHDIR}{}", String::from_utf8_lossy(&request.cwd)),
        _ => format!("{} {}", step_name(step), String::from_utf8_lossy(&request.argv[0])),
    }
}

fn status(wait_status: i32) -> Status {
    let byte = |n: i32| u8::try_from(n & 0xff).expect("masked");
    if libc::WIFSIGNALED(wait_status) {
        Status::Killed(byte(libc::WTERMSIG(wait_status)))
    } else {
        Status::Exited(byte(libc::WEXITSTATUS(wait_status)))
    }
}

/// A request as the kernel wants it.
///
/// # Errors
/// EPERM: this server is not root and cannot become the caller's user.
fn plan(request: &Request, fds: Vec<OwnedFd>, candidates: Vec<CString>, judged: Option<&Judged>) -> OsResult<Plan> {
    let who = &request.identity;
    let own = nix::unistd::geteuid();
    let identity = if own.is_root() {
        let c = who.capabilities;
        let capabilities =
            caps::Sets { inheritable: c.inheritable, permitted: c.permitted, bounding: c.bounding, ambient: c.ambient };
        Some(Identity { uid: who.uid, gid: who.gid, groups: who.groups.clone(), capabilities })
    } else if own.as_raw() == who.uid {
        None
    } else {
        return Err(OsError::on("run as", format!("uid {} (the server is uid {own})", who.uid), Errno::EPERM));
    };
    let (listen_pid, env): (Vec<&Vec<u8>>, Vec<_>) = request.env.iter().partition(|variable| {
        request.listens && variable.strip_prefix(LISTEN_PID.as_bytes()).is_some_and(|rest| rest.starts_with(b"="))
    });
    let numbers = request.fds.iter().map(|n| i32::try_from(*n).expect("checked when it was decoded"));
    Ok(Plan {
        programs: judged.map_or(candidates, |judged| vec![judged.path.clone()]),
        only: judged.and_then(|judged| judged.only),
        argv: strings(&request.argv),
        env: env.into_iter().map(|variable| string(variable)).collect(),
        own_pid: (!listen_pid.is_empty()).then_some(LISTEN_PID_NAME),
        cwd: string(&request.cwd),
        umask: request.umask,
        inheritance: request.inheritance.clone(),
        identity,
        no_new_privs: who.no_new_privs,
        fds: fds.into_iter().zip(numbers).collect(),
    })
}

/// What the peer hears of a no: that it is one, and not which rules there are.
fn told(e: &OsError) -> String {
    if e.op == "judge" { "not allowed there".into() } else { format!("{} {}", e.op, e.on) }
}

fn string(bytes: &[u8]) -> CString {
    CString::new(bytes).expect("checked when it was decoded")
}

fn strings(all: &[Vec<u8>]) -> Vec<CString> {
    all.iter().map(|s| string(s)).collect()
}

/// As execvp(3): a name with a slash is a path; any other is looked for in the PATH of the command's environment.
fn candidates(name: &[u8], env: &[Vec<u8>]) -> Vec<CString> {
    // Nothing is called nothing: execve(2) says so.
    if name.contains(&b'/') || name.is_empty() {
        return vec![string(name)];
    }
    let path = env.iter().find_map(|v| v.strip_prefix(b"PATH=")).unwrap_or(b"/bin:/usr/bin");
    let one = |dir: &[u8]| {
        let dir = if dir.is_empty() { b"." } else { dir };
        string(&[dir, b"/", name].concat())
    };
    path.split(|b| *b == b':').map(one).collect()
}

/// For a log line: short, printable.
fn show(argv: &[Vec<u8>]) -> String {
    let mut out = String::new();
    for arg in argv {
        let text = String::from_utf8_lossy(arg);
        if !out.is_empty() {
            out.push(' ');
        }
        if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control() || "'\"\\$".contains(c)) {
            out.push_str(&format!("{text:?}"));
        } else {
            out.push_str(&text);
        }
        if out.len() > 400 {
            let cut = (0..=400).rev().find(|i| out.is_char_boundary(*i)).unwrap_or(0);
            out.truncate(cut);
            out.push_str(" ...");
            break;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_for_in_the_commands_own_path() {
        let env = [b"PATH=/a::/b".to_vec()];
        let all: Vec<_> = candidates(b"ls", &env).into_iter().map(|c| c.into_string().unwrap()).collect();
        assert_eq!(all, ["/a/ls", "./ls", "/b/ls"]);
        assert_eq!(candidates(b"./ls", &env).len(), 1);
    }

    #[test]
    fn a_log_line_is_short_and_printable() {
        let said = show(&[b"ls".to_vec(), b"a b\n\x1b".to_vec(), vec![b'x'; 1000]]);
        assert!(said.starts_with("ls \"a b\\n\\u{1b}\" xxx") && said.len() < 410, "{said}");
    }
}
