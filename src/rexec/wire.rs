//! What the two ends of a command say to each other on its control stream.
//!
//! ```text
//!   near ──▶ u32 length of the request, with the fds │ request │ Signal ...
//!   far  ──▶ Started │ Failed │ Exited │ (a daemon was left behind:) DaemonGone
//! ```
//!
//! Every message but the first is a u32 length and that many bytes. Signals cross by our own numbers.

use crate::auth::Bearer;
use crate::errno::Errno;
use crate::sys::inheritance::{Inheritance, LIMITS, Limit};
use crate::wire::codec::{Decoder, Encoder};
use crate::wire::{WireResult, bad};

/// argv and env together: the kernel's own bound is 6 MiB (three quarters of _STK_LIM, execve(2)).
pub(super) const REQUEST_MAX: usize = 8 << 20;
/// Any later message.
pub(super) const MESSAGE_MAX: usize = 8 << 10;
/// The variable that says whom passed sockets are for, sd_listen_fds(3).
pub(super) const LISTEN_PID: &str = "LISTEN_PID";
pub(super) const LISTEN_PID_NAME: &std::ffi::CStr = c"LISTEN_PID";
/// Begins the step of a `Failed` whose command's working directory could not be entered; the directory follows.
pub(super) const CHDIR: &str = "chdir ";
const STRINGS_MAX: usize = 1 << 20;
const STRING_MAX: usize = 4 << 20;
const GROUPS_MAX: usize = 65_536;
/// As many as a `cpu_set_t` holds.
const PROCESSORS_MAX: usize = 1024;

/// The five capability sets of a process, capabilities(7), as bit masks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Capabilities {
    pub inheritable: u64,
    pub permitted: u64,
    pub bounding: u64,
    pub ambient: u64,
}

/// Who the command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub capabilities: Capabilities,
    pub no_new_privs: bool,
}

/// What the caller's machine vouches for, whatever the caller says.
impl From<&Bearer> for Identity {
    fn from(b: &Bearer) -> Self {
        let Bearer { uid, gid, ref groups, inheritable, permitted, bounding, ambient, no_new_privs } = *b;
        let capabilities = Capabilities { inheritable, permitted, bounding, ambient };
        Self { uid, gid, groups: groups.clone(), capabilities, no_new_privs }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub argv: Vec<Vec<u8>>,
    /// `NAME=value`.
    pub env: Vec<Vec<u8>>,
    /// LISTEN_PID among them names the caller: passed sockets are for it, sd_listen_fds(3), and so for the command.
    pub listens: bool,
    pub cwd: Vec<u8>,
    pub umask: u32,
    pub inheritance: Inheritance,
    pub identity: Identity,
    /// The fd numbers of the fds that came along, in their order.
    pub fds: Vec<u32>,
    /// The command goes into the background by itself; somebody must stay behind for what it leaves.
    pub daemonizes: bool,
}

impl Request {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new();
        strings(&mut e, &self.argv);
        strings(&mut e, &self.env);
        e.u8(u8::from(self.listens));
        e.bytes(&self.cwd).u32(self.umask);
        inheritance(&mut e, &self.inheritance);
        let who = &self.identity;
        e.u32(who.uid).u32(who.gid);
        numbers(&mut e, &who.groups);
        let caps = who.capabilities;
        e.u64(caps.inheritable).u64(caps.permitted).u64(caps.bounding).u64(caps.ambient);
        e.u8(u8::from(who.no_new_privs));
        numbers(&mut e, &self.fds);
        e.u8(u8::from(self.daemonizes));
        e.finish()
    }

    /// # Errors
    /// Anything that cannot be: an empty argv, a NUL in a string, fd numbers twice or out of range.
    pub(super) fn decode(bytes: &[u8]) -> WireResult<Self> {
        let mut d = Decoder::new("exec request", bytes);
        let request = Self {
            argv: read_strings(&mut d)?,
            env: read_strings(&mut d)?,
            listens: d.u8()? != 0,
            cwd: no_nul(d.bytes(STRING_MAX)?)?,
            umask: d.u32()?,
            inheritance: read_inheritance(&mut d)?,
            identity: Identity {
                uid: d.u32()?,
                gid: d.u32()?,
                groups: read_numbers(&mut d, GROUPS_MAX)?,
                capabilities: Capabilities {
                    inheritable: d.u64()?,
                    permitted: d.u64()?,
                    bounding: d.u64()?,
                    ambient: d.u64()?,
                },
                no_new_privs: d.u8()? != 0,
            },
            fds: read_numbers(&mut d, crate::limits::FDS_MAX)?,
            daemonizes: d.u8()? != 0,
        };
        d.end()?;
        if request.argv.is_empty() {
            bad!("exec request without a command");
        }
        let mut seen = request.fds.clone();
        seen.sort_unstable();
        seen.dedup();
        if seen.len() != request.fds.len() || seen.last().is_some_and(|n| *n > FD_NUMBER_MAX) {
            bad!("exec request with fd numbers {:?}", request.fds);
        }
        Ok(request)
    }
}

/// The highest number an inherited fd may have: the usual hard limit of RLIMIT_NOFILE.
const FD_NUMBER_MAX: u32 = 1 << 20;

fn strings(e: &mut Encoder, all: &[Vec<u8>]) {
    e.u32(u32::try_from(all.len()).expect("bounded by the kernel"));
    for one in all {
        e.bytes(one);
    }
}

fn numbers(e: &mut Encoder, all: &[u32]) {
    e.u32(u32::try_from(all.len()).expect("bounded by the kernel"));
    for one in all {
        e.u32(*one);
    }
}

fn inheritance(e: &mut Encoder, all: &Inheritance) {
    let Inheritance { limits, nice, policy, priority, processors, ignored, blocked } = all;
    e.u8(u8::try_from(limits.len()).expect("a few"));
    for (number, Limit { soft, hard }) in limits {
        e.u8(*number).u64(*soft).u64(*hard);
    }
    e.u32(nice.cast_unsigned()).u32(policy.cast_unsigned()).u32(priority.cast_unsigned());
    numbers(e, processors);
    e.u64(*ignored).u64(*blocked);
}

fn read_inheritance(d: &mut Decoder) -> WireResult<Inheritance> {
    let count = d.u8()?;
    let mut limits = Vec::new();
    for _ in 0..count {
        let number = d.u8()?;
        if number >= LIMITS || limits.len() >= usize::from(LIMITS) {
            bad!("resource limit {number}, or more than {LIMITS}");
        }
        limits.push((number, Limit { soft: d.u64()?, hard: d.u64()? }));
    }
    let (nice, policy, priority) = (d.u32()?.cast_signed(), d.u32()?.cast_signed(), d.u32()?.cast_signed());
    let processors = read_numbers(d, PROCESSORS_MAX)?;
    Ok(Inheritance { limits, nice, policy, priority, processors, ignored: d.u64()?, blocked: d.u64()? })
}

fn read_strings(d: &mut Decoder) -> WireResult<Vec<Vec<u8>>> {
    let count = d.u32()? as usize;
    if count > STRINGS_MAX {
        bad!("{count} strings");
    }
    // Not `with_capacity(count)`: the peer says the count before it has sent a byte of them.
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(no_nul(d.bytes(STRING_MAX)?)?);
    }
    Ok(all)
}

fn read_numbers(d: &mut Decoder, max: usize) -> WireResult<Vec<u32>> {
    let count = d.u32()? as usize;
    if count > max {
        bad!("{count} numbers where {max} are the most");
    }
    (0..count).map(|_| d.u32()).collect()
}

fn no_nul(bytes: &[u8]) -> WireResult<Vec<u8>> {
    if bytes.contains(&0) {
        bad!("a string with a NUL");
    }
    Ok(bytes.to_vec())
}

/// Signals that cross: what a stand-in can be sent and a command can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Signal(pub i32);

/// Our numbers are the places in this list; it only ever grows at its end.
const SIGNALS: [i32; 14] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
    libc::SIGCONT,
    libc::SIGKILL,
    libc::SIGALRM,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
];

impl Signal {
    fn encode(self) -> WireResult<u8> {
        match SIGNALS.iter().position(|s| *s == self.0) {
            Some(at) => Ok(u8::try_from(at).expect("a short list")),
            None => bad!("signal {} does not cross", self.0),
        }
    }

    fn decode(number: u8) -> WireResult<Self> {
        match SIGNALS.get(usize::from(number)) {
            Some(signal) => Ok(Self(*signal)),
            None => bad!("signal number {number}"),
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Exited(u8),
    /// By a signal, as a number that wait(2) on Linux gives: 1 to 31 mean the same on x86-64 and aarch64, and a shell's
    /// 128+n is what it becomes.
    Killed(u8),
}

impl Status {
    /// As a shell would report it.
    pub(super) fn code(self) -> i32 {
        match self {
            Self::Exited(code) => i32::from(code),
            Self::Killed(signal) => 128 + i32::from(signal),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// near → far.
    Signal(Signal),
    /// far → near: it runs; its pid there.
    Started { pid: u32 },
    /// far → near: it does not run. Which step failed, and how.
    Failed { errno: Errno, step: String },
    /// far → near: all it has written is on its way. `left`: it has left a process behind.
    Exited { status: Status, left: bool },
    /// far → near: what a daemonizing command left behind has ended.
    DaemonGone,
}

impl Message {
    /// Length included.
    ///
    /// # Errors
    /// A signal that does not cross.
    pub(super) fn encode(&self) -> WireResult<Vec<u8>> {
        let mut e = Encoder::new();
        match self {
            Self::Signal(signal) => e.u8(1).u8(signal.encode()?),
            Self::Started { pid } => e.u8(2).u32(*pid),
            Self::Failed { errno, step } => e.u8(3).u32((*errno as i32).cast_unsigned()).bytes(cut(step)),
            Self::Exited { status, left } => {
                let (kind, value) = match status {
                    Status::Exited(code) => (0, *code),
                    Status::Killed(signal) => (1, *signal),
                };
                e.u8(4).u8(kind).u8(value).u8(u8::from(*left))
            }
            Self::DaemonGone => e.u8(5),
        };
        let body = e.finish();
        let mut framed = Encoder::new();
        framed.bytes(&body);
        Ok(framed.finish())
    }

    /// Without the length.
    ///
    /// # Errors
    /// A message that cannot be.
    pub(super) fn decode(bytes: &[u8]) -> WireResult<Self> {
        let mut d = Decoder::new("exec message", bytes);
        let message = match d.u8()? {
            1 => Self::Signal(Signal::decode(d.u8()?)?),
            2 => Self::Started { pid: d.u32()? },
            3 => Self::Failed { errno: Errno::from_raw(d.u32()?.cast_signed()), step: text(&mut d)? },
            4 => {
                let status = match (d.u8()?, d.u8()?) {
                    (0, code) => Status::Exited(code),
                    (1, signal) => Status::Killed(signal),
                    (kind, _) => bad!("exit of kind {kind}"),
                };
                Self::Exited { status, left: d.u8()? != 0 }
            }
            5 => Self::DaemonGone,
            n => bad!("exec message of kind {n}"),
        };
        d.end()?;
        Ok(message)
    }
}

/// What a person reads may hold a path or an argument of any length: its beginning will do.
fn cut(text: &str) -> &[u8] {
    &text.as_bytes()[..text.len().min(TEXT_MAX)]
}

const TEXT_MAX: usize = 4096;

fn text(d: &mut Decoder) -> WireResult<String> {
    Ok(String::from_utf8_lossy(d.bytes(TEXT_MAX)?).chars().filter(|c| !c.is_control()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            argv: vec![b"/bin/echo".to_vec(), b"".to_vec(), b"a b'\"\\$\n".to_vec()],
            env: vec![b"A=1".to_vec(), b"\xff=\xfe".to_vec()],
            listens: true,
            cwd: b"/".to_vec(),
            umask: 0o22,
            inheritance: Inheritance {
                limits: (0..LIMITS).map(|number| (number, Limit { soft: 1, hard: u64::MAX })).collect(),
                nice: -20,
                policy: libc::SCHED_FIFO,
                priority: 99,
                processors: vec![0, 63],
                ignored: 1,
                blocked: 1 << 63,
            },
            identity: Identity {
                uid: 64055,
                gid: 64055,
                groups: vec![107, 64055],
                capabilities: Capabilities { inheritable: 1, permitted: 2, bounding: 4, ambient: 8 },
                no_new_privs: true,
            },
            fds: vec![0, 1, 2, 30],
            daemonizes: true,
        }
    }

    #[test]
    fn a_request_survives_the_way_there_and_back_and_no_cut_of_it_does() {
        let bytes = request().encode();
        assert_eq!(Request::decode(&bytes), Ok(request()));
        for cut in 0..bytes.len() {
            assert!(Request::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn requests_that_cannot_be_are_refused() {
        let (none, no_limit) = (Inheritance::default, Limit { soft: u64::MAX, hard: u64::MAX });
        for wrong in [
            Request { argv: Vec::new(), ..request() },
            Request { fds: vec![1, 1], ..request() },
            Request { fds: vec![u32::MAX], ..request() },
            Request { cwd: b"/a\0b".to_vec(), ..request() },
            Request { inheritance: Inheritance { limits: vec![(0, no_limit); 17], ..none() }, ..request() },
            Request { inheritance: Inheritance { limits: vec![(LIMITS, no_limit)], ..none() }, ..request() },
            Request { inheritance: Inheritance { processors: vec![0; PROCESSORS_MAX + 1], ..none() }, ..request() },
        ] {
            assert!(Request::decode(&wrong.encode()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn messages_survive_the_way_there_and_back() {
        for message in [
            Message::Signal(Signal(libc::SIGTERM)),
            Message::Started { pid: 77 },
            Message::Failed { errno: Errno::ENOENT, step: "execve /x".into() },
            Message::Exited { status: Status::Killed(9), left: true },
            Message::DaemonGone,
        ] {
            let bytes = message.encode().unwrap();
            assert_eq!(Message::decode(&bytes[4..]), Ok(message));
        }
        assert!(Message::Signal(Signal(libc::SIGSEGV)).encode().is_err());
    }
}
