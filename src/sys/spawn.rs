//! A command and its supervisor: a small program between this daemon and the command.
//!
//! ```text
//!   daemon ──vfork, exec──▶ rexec-supervisor ──fork──▶ command ──fork──▶ its children ...
//!     ── Plan (sealed memfd) ──▶
//!     ◀── Report ── socket ── Order ──▶
//! ```
//!
//! The supervisor (`src/supervisor`) starts the command and stays with whatever it leaves behind. It is a program of its
//! own and not a fork, because a fork keeps this daemon's memory, with the machine's key in it, for as long as the command
//! runs. The daemon opens the program when it starts, so that an upgrade that replaces the file changes nothing for it.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use farside_supervisor_contract as contract;
use farside_supervisor_contract::{Fixed, Lists, PLAN_FD, PROGRAM, RECORD_LEN, SOCKET_FD};
pub use farside_supervisor_contract::{Order, Report, Step};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};

use crate::errno::{Errno, OsError, OsResult, Step as _};
use crate::sys::caps;
use crate::sys::inheritance::{Inheritance, Lowered};
use crate::sys::sealed;
use crate::sys::vfork::{self, Launch};

/// What is to run.
#[derive(Debug)]
pub struct Plan {
    /// Candidates for the program, tried in order: one, or one for each directory of PATH.
    pub programs: Vec<CString>,
    /// Device and inode of the only file that may be run, whatever the one candidate leads to by then; no script.
    pub only: Option<(u64, u64)>,
    pub argv: Vec<CString>,
    pub env: Vec<CString>,
    /// One more variable, whose value is the command's own pid.
    pub own_pid: Option<&'static CStr>,
    pub cwd: CString,
    pub umask: u32,
    pub inheritance: Inheritance,
    /// Change user, groups and capabilities; `None` where the server may not and the command runs as the server.
    pub identity: Option<Identity>,
    pub no_new_privs: bool,
    /// The command's fds: ours, and the number it gets.
    pub fds: Vec<(OwnedFd, RawFd)>,
}

#[derive(Debug)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub capabilities: caps::Sets,
}

/// What a user reads of the step where a start has failed.
pub fn step_name(step: Step) -> &'static str {
    match step {
        Step::Fork => "fork",
        Step::Fds => "hand over fds",
        Step::Identity => "become the caller's user",
        Step::Capabilities => "take the caller's capabilities",
        Step::Exec => "execve",
        Step::Directory => "chdir",
        Step::Plan => "read the plan (is rexec-supervisor of another version than its server?) of",
    }
}

/// The supervisor's program, held open: what is started is what was there when it was opened.
#[derive(Debug)]
pub struct Program {
    fd: OwnedFd,
    path: PathBuf,
}

impl Program {
    /// The one in the directory of the running program.
    ///
    /// # Errors
    /// It is not there, or is no program.
    pub fn beside_this_one() -> OsResult<Self> {
        let own = std::env::current_exe().step_on("read", "/proc/self/exe")?;
        Self::open(&own.with_file_name(PROGRAM))
    }

    /// # Errors
    /// It is not there, or is no program.
    pub fn open(path: &Path) -> OsResult<Self> {
        let advice = || format!("{} (install it beside this program, from the same build)", path.display());
        let fd = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|e| OsError::on("open", advice(), e))?;
        let mode = fstat(&fd).step_on("fstat", path.display())?.st_mode;
        if mode & libc::S_IFMT != libc::S_IFREG || mode & 0o111 == 0 {
            return Err(OsError::on("run", advice(), Errno::EACCES));
        }
        Ok(Self { fd, path: path.into() })
    }
}

/// The daemon's handle on a supervisor. Dropping it kills what is left of the command, unless it was released.
#[derive(Debug)]
pub struct Supervisor {
    socket: OwnedFd,
    pid: i32,
}

impl Supervisor {
    /// Starts a supervisor, which starts the command. The command's start is its first report.
    ///
    /// # Errors
    /// EAGAIN, ENOMEM: no process to be had. Others: the program can't be run.
    pub fn start(program: &Program, plan: &Plan) -> OsResult<Self> {
        let (ours, theirs) = socket_pair()?;
        let plan_fd = sealed::memfd(c"rexec-plan", &encode(plan)?)?;
        let kept: Vec<RawFd> = plan.fds.iter().map(|(fd, _)| fd.as_raw_fd()).collect();
        let places = [(theirs.as_raw_fd(), SOCKET_FD), (plan_fd.as_raw_fd(), PLAN_FD)];
        let launch = Launch { program: &program.fd, name: c"rexec-supervisor", places: &places, kept: &kept };
        let pid = vfork::start(&launch).map_err(|e| OsError { on: program.path.display().to_string(), ..e })?;
        Ok(Self { socket: ours, pid })
    }

    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// The next report; `None` when the supervisor itself has gone.
    pub fn report(&self) -> Option<Report> {
        let mut record = [0; RECORD_LEN];
        loop {
            // SAFETY: `record` is writable and of that length.
            let n = unsafe { libc::recv(self.socket.as_raw_fd(), record.as_mut_ptr().cast(), RECORD_LEN, 0) };
            if n == -1 && Errno::last() == Errno::EINTR {
                continue;
            }
            return Report::decode(record.get(..usize::try_from(n).ok()?)?).ok();
        }
    }

    pub fn order(&self, order: Order) {
        let record = order.encode();
        // SAFETY: `record` is readable and of that length. An error means that the supervisor has gone, which `report`
        // says too.
        unsafe { libc::send(self.socket.as_raw_fd(), record.as_ptr().cast(), RECORD_LEN, libc::MSG_NOSIGNAL) };
    }

    /// Reaps the supervisor; to be called when `report` has given `None` or `Empty`.
    pub fn wait(self) {
        let pid = self.pid;
        drop(self.socket);
        vfork::reap(pid);
    }
}

fn socket_pair() -> OsResult<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: socketpair writes two fds into the array.
    if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) } == -1 {
        return Err(OsError::last("socketpair"));
    }
    // SAFETY: both are new and ours.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// The plan as the supervisor reads it.
fn encode(plan: &Plan) -> OsResult<Vec<u8>> {
    let (limits, lowered) = plan.inheritance.limits_here()?;
    for Lowered { name, asked, got } in lowered {
        tracing::info!("RLIMIT_{name}: {asked} asked for, {got} is the most that this server has to give");
    }
    let Inheritance { nice, policy, priority, ignored, blocked, .. } = plan.inheritance;
    let fixed = Fixed {
        only: plan.only,
        identity: plan.identity.as_ref().map(identity),
        no_new_privs: plan.no_new_privs,
        umask: plan.umask,
        nice,
        policy,
        priority,
        processors: plan.inheritance.processor_set(),
        ignored,
        blocked,
        limits,
    };
    let mut fds: Vec<(RawFd, RawFd)> = plan.fds.iter().map(|(fd, to)| (fd.as_raw_fd(), *to)).collect();
    fds.sort_unstable();
    let lists = Lists {
        fds: &fds,
        groups: plan.identity.as_ref().map_or(&[][..], |who| &who.groups),
        own_pid: plan.own_pid.unwrap_or_default(),
        cwd: &plan.cwd,
        programs: &plan.programs,
        argv: &plan.argv,
        env: &plan.env,
    };
    let mut bytes = Vec::new();
    let encoded = contract::Plan::encode(&fixed, &lists, &mut bytes);
    encoded.map_err(|_| OsError::on("write a plan", "of too many entries", Errno::E2BIG))?;
    Ok(bytes)
}

fn identity(who: &Identity) -> contract::Identity {
    let caps::Sets { inheritable, permitted, bounding, ambient } = who.capabilities;
    let capabilities = contract::Capabilities { inheritable, permitted, bounding, ambient };
    contract::Identity { uid: who.uid, gid: who.gid, capabilities }
}
