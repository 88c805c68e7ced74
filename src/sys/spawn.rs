//! A command and its keeper: fork, exec, and a parent that stays with whatever the command leaves behind.
//!
//! ```text
//!   server ──fork──▶ keeper (child subreaper) ──fork──▶ command ──fork──▶ its children ...
//!     ◀── Report ──── socket ── Order ──▶                 orphans come back to the keeper
//! ```
//!
//! Each command has a keeper of its own, so every process below it is known to be this command's, daemons included, and
//! a signal never meets a process that merely has the same number. The keeper holds no fd but its socket. If the server
//! dies, the keeper kills the tree: a command whose stand-in cannot be told anything must not run on unseen.
//!
//! Between fork and exec, and in the keeper for its whole life, only system calls are made: no allocation, no lock.

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::errno::{Errno, OsError, OsResult};
use crate::sys::caps;
use crate::sys::inheritance::{Inheritance, Lowered};
use crate::sys::own_pid::OwnPid;
use crate::sys::passing::{self, Passing};

/// What is to run, ready to be handed to the kernel.
#[derive(Debug)]
pub struct Plan {
    /// Candidates for the program, tried in order: one, or one for each directory of PATH.
    pub programs: Vec<CString>,
    /// Device and inode of the only file that may be run, whatever the one candidate leads to by then; no script.
    pub only: Option<(u64, u64)>,
    pub argv: Vec<CString>,
    pub env: Vec<CString>,
    /// One more variable, whose value is the command's own pid.
    pub own_pid: Option<&'static str>,
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

/// Where a start can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Step {
    Fork = 1,
    Fds,
    Identity,
    Capabilities,
    Exec,
    Directory,
}

impl Step {
    pub fn name(self) -> &'static str {
        match self {
            Self::Fork => "fork",
            Self::Fds => "hand over fds",
            Self::Identity => "become the caller's user",
            Self::Capabilities => "take the caller's capabilities",
            Self::Exec => "execve",
            Self::Directory => "chdir",
        }
    }

    fn from_number(n: i32) -> Self {
        match n {
            2 => Self::Fds,
            3 => Self::Identity,
            4 => Self::Capabilities,
            5 => Self::Exec,
            6 => Self::Directory,
            _ => Self::Fork,
        }
    }
}

/// What a keeper says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// `no_priority`: it may not have its caller's.
    Started {
        pid: i32,
        no_priority: bool,
    },
    Failed {
        step: Step,
        errno: Errno,
    },
    /// The command itself has ended, with this wait status; others of its processes may be `left`.
    Ended {
        wait_status: i32,
        left: bool,
    },
    /// Nothing is left.
    Empty,
}

/// What a keeper is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// To the command; when it has ended, to what it left behind.
    Signal(i32),
    /// SIGKILL to every process of the command.
    KillAll,
    /// What is left may live on without a keeper.
    Release,
}

const RECORD: usize = 12;

fn pack(kind: i32, a: i32, b: i32) -> [u8; RECORD] {
    let mut out = [0; RECORD];
    out[0..4].copy_from_slice(&kind.to_ne_bytes());
    out[4..8].copy_from_slice(&a.to_ne_bytes());
    out[8..12].copy_from_slice(&b.to_ne_bytes());
    out
}

fn unpack(b: &[u8; RECORD]) -> (i32, i32, i32) {
    let word = |at: usize| i32::from_ne_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    (word(0), word(4), word(8))
}

/// The server's handle on a keeper. Dropping it kills what is left of the command, unless it was released.
#[derive(Debug)]
pub struct Keeper {
    socket: OwnedFd,
    pid: i32,
}

impl Keeper {
    /// Forks the keeper and the command. The command's start is its first report.
    ///
    /// # Errors
    /// EAGAIN, ENOMEM: no process to be had.
    pub fn start(plan: Plan) -> OsResult<Self> {
        let (ours, theirs) = socket_pair()?;
        let mut prepared = Prepared::new(&plan, theirs.as_raw_fd())?;
        // SAFETY: the child makes system calls only, on memory that was prepared before, and never returns.
        let pid = unsafe { libc::fork() };
        match pid {
            -1 => Err(OsError::last("fork")),
            0 => keeper_main(&mut prepared, theirs.as_raw_fd()),
            _ => Ok(Self { socket: ours, pid }),
        }
    }

    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// The next report; `None` when the keeper itself has gone.
    pub fn report(&self) -> Option<Report> {
        let mut record = [0; RECORD];
        loop {
            // SAFETY: `record` is writable and of that length.
            let n = unsafe { libc::recv(self.socket.as_raw_fd(), record.as_mut_ptr().cast(), RECORD, 0) };
            match n {
                -1 if Errno::last() == Errno::EINTR => {}
                n if usize::try_from(n) == Ok(RECORD) => break,
                _ => return None,
            }
        }
        Some(match unpack(&record) {
            (1, pid, no_priority) => Report::Started { pid, no_priority: no_priority != 0 },
            (2, step, errno) => Report::Failed { step: Step::from_number(step), errno: Errno::from_raw(errno) },
            (3, wait_status, left) => Report::Ended { wait_status, left: left != 0 },
            _ => Report::Empty,
        })
    }

    pub fn order(&self, order: Order) {
        let record = match order {
            Order::Signal(signal) => pack(1, signal, 0),
            Order::KillAll => pack(2, 0, 0),
            Order::Release => pack(3, 0, 0),
        };
        send(self.socket.as_raw_fd(), &record);
    }

    /// Reaps the keeper; to be called when `report` has given `None` or `Empty`.
    pub fn wait(self) {
        let pid = self.pid;
        drop(self.socket);
        loop {
            // SAFETY: a null status is allowed.
            let done = unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            if done != -1 || Errno::last() != Errno::EINTR {
                return;
            }
        }
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

fn send(socket: RawFd, record: &[u8; RECORD]) {
    // SAFETY: `record` is readable and of that length. An error means that nobody listens, which the reader sees too.
    unsafe { libc::send(socket, record.as_ptr().cast(), RECORD, libc::MSG_NOSIGNAL) };
}

/// As execvp(3) has it.
const SHELL: &std::ffi::CStr = c"/bin/sh";

/// A plan with its pointer arrays, so that nothing is allocated after fork.
struct Prepared<'a> {
    plan: &'a Plan,
    argv: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
    /// What runs a script that does not say so itself: the shell, the script, its arguments.
    script: Vec<*const libc::c_char>,
    own_pid: Option<OwnPid>,
    /// Room for the fds' temporary numbers.
    moved: Vec<(RawFd, RawFd)>,
    /// Above every number that the command gets.
    above: RawFd,
    /// The fds that the command and its keeper need, in order; all others are the server's and none of their business.
    keep: Vec<RawFd>,
    /// By their numbers.
    limits: Vec<libc::rlimit>,
}

impl<'a> Prepared<'a> {
    fn new(plan: &'a Plan, socket: RawFd) -> OsResult<Self> {
        let (limits, lowered) = plan.inheritance.limits_here()?;
        for Lowered { name, asked, got } in lowered {
            tracing::info!("RLIMIT_{name}: {asked} asked for, {got} is the most that this server has to give");
        }
        let mut keep: Vec<RawFd> = plan.fds.iter().map(|(fd, _)| fd.as_raw_fd()).chain([socket]).collect();
        keep.sort_unstable();
        let own_pid = plan.own_pid.map(OwnPid::new);
        let pointers = |all: &[CString], more: Option<*const libc::c_char>| {
            all.iter().map(|s| s.as_ptr()).chain(more).chain([std::ptr::null()]).collect()
        };
        let above = plan.fds.iter().map(|(_, to)| *to).max().unwrap_or(2).max(2) + 1;
        let moved = Vec::with_capacity(plan.fds.len());
        let arguments = plan.argv.iter().skip(1).map(|s| s.as_ptr());
        let script =
            [SHELL.as_ptr(), std::ptr::null()].into_iter().chain(arguments).chain([std::ptr::null()]).collect();
        Ok(Self {
            plan,
            script,
            argv: pointers(&plan.argv, None),
            env: pointers(&plan.env, own_pid.as_ref().map(OwnPid::variable)),
            own_pid,
            moved,
            above,
            keep,
            limits,
        })
    }
}

// ---- the keeper's own life: system calls only --------------------------------------------------------------------

/// Never returns.
fn keeper_main(prepared: &mut Prepared<'_>, socket: RawFd) -> ! {
    // SAFETY: system calls on numbers and on memory prepared before the fork; see the module page.
    unsafe {
        // Own session: signals to the server's terminal or group are not for the command.
        libc::setsid();
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_NAME, c"rexec-keeper".as_ptr());
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        // At once: another command's pipe or a link must not stay open because this one's start takes long.
        close_all_but(&prepared.keep);
        let mut pipe = [-1; 2];
        if libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) == -1 {
            fail(socket, Step::Fork);
        }
        let child = libc::fork();
        if child == -1 {
            fail(socket, Step::Fork);
        }
        if child == 0 {
            command_main(prepared, pipe[1]);
        }
        libc::close(pipe[1]);
        let started = await_exec(pipe[0], child, socket);
        let mut chld: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut chld);
        libc::sigaddset(&raw mut chld, libc::SIGCHLD);
        close_all_but(&[socket]);
        // After the others are closed, so that there is room for it.
        let signals = libc::signalfd(-1, &raw const chld, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        libc::chdir(c"/".as_ptr());
        if !started {
            libc::waitpid(child, std::ptr::null_mut(), 0);
            libc::_exit(0);
        }
        watch(child, socket, signals);
    }
}

/// # Safety
/// In a forked child only: ends the process.
unsafe fn fail(socket: RawFd, step: Step) -> ! {
    send(socket, &pack(2, step as i32, Errno::last_raw()));
    // SAFETY: ends the process without running anything of the parent's.
    unsafe { libc::_exit(1) }
}

/// Waits until the command's exec has closed the pipe, or has told why it failed.
unsafe fn await_exec(pipe: RawFd, child: i32, socket: RawFd) -> bool {
    let mut no_priority = 0;
    loop {
        let mut record = [0; RECORD];
        // SAFETY: `record` is writable and of that length.
        let n = unsafe { libc::read(pipe, record.as_mut_ptr().cast(), RECORD) };
        match n {
            -1 if Errno::last_raw() == libc::EINTR => {}
            n if usize::try_from(n) == Ok(RECORD) => match unpack(&record) {
                (NOTE_NO_PRIORITY, ..) => no_priority = 1,
                (step, errno, _) => {
                    send(socket, &pack(2, step, errno));
                    return false;
                }
            },
            _ => {
                send(socket, &pack(1, child, no_priority));
                return true;
            }
        }
    }
}

/// The command does without its caller's priority. No step has this number.
const NOTE_NO_PRIORITY: i32 = 1 << 8;

/// `keep` in order.
unsafe fn close_all_but(keep: &[RawFd]) {
    let mut from = 0;
    for fd in keep.iter().copied().chain([RawFd::MAX]) {
        if from < fd {
            // SAFETY: nothing else in this process uses these fds any more.
            unsafe { libc::syscall(libc::SYS_close_range, from, fd - 1, 0) };
        }
        from = fd.saturating_add(1);
    }
}

/// Reaps, reports and obeys until nothing is left.
unsafe fn watch(command: i32, socket: RawFd, signals: RawFd) -> ! {
    let mut ended = false;
    let mut passing = Passing::NONE;
    loop {
        // SAFETY: waitpid and poll on memory of this frame.
        unsafe {
            let mut command_status = None;
            let mut reaped = false;
            loop {
                let mut status = 0;
                let pid = libc::waitpid(-1, &raw mut status, libc::WNOHANG);
                if pid == command {
                    command_status = Some(status);
                }
                if pid == 0 {
                    break;
                }
                reaped |= pid > 0;
                if pid == -1 {
                    if let Some(status) = command_status {
                        send(socket, &pack(3, status, 0));
                    }
                    send(socket, &pack(4, 0, 0));
                    libc::_exit(0);
                }
            }
            if let Some(status) = command_status {
                ended = true;
                send(socket, &pack(3, status, 1));
            }
            if reaped {
                passing.on_orphans();
            }
            let mut fds = [
                libc::pollfd { fd: socket, events: libc::POLLIN, revents: 0 },
                libc::pollfd { fd: signals, events: libc::POLLIN, revents: 0 },
            ];
            libc::poll(fds.as_mut_ptr(), 2, -1);
            if fds[1].revents != 0 {
                let mut info: libc::signalfd_siginfo = std::mem::zeroed();
                libc::read(signals, (&raw mut info).cast(), size_of::<libc::signalfd_siginfo>());
            }
            if fds[0].revents != 0 {
                obey(command, ended, socket, &mut passing);
            }
        }
    }
}

unsafe fn obey(command: i32, ended: bool, socket: RawFd, passing: &mut Passing) {
    let mut record = [0; RECORD];
    // SAFETY: `record` is writable and of that length.
    let n = unsafe { libc::recv(socket, record.as_mut_ptr().cast(), RECORD, libc::MSG_DONTWAIT) };
    if n == -1 && matches!(Errno::last_raw(), libc::EAGAIN | libc::EINTR) {
        return;
    }
    // The server has gone: as an order to kill.
    let order = if usize::try_from(n) == Ok(RECORD) { unpack(&record) } else { (2, 0, 0) };
    // SAFETY: the numbers are of our own unreaped children: nobody else can have them.
    unsafe {
        match order {
            (1, signal, _) if !ended => {
                libc::kill(command, signal);
            }
            (1, signal, _) => passing.begin(signal),
            (3, ..) => libc::_exit(0),
            _ => kill_all(if ended { 0 } else { command }),
        }
    }
}

/// SIGKILL until no child is left. Grandchildren become our children as their parents die.
unsafe fn kill_all(command: i32) -> ! {
    // SAFETY: as above.
    unsafe {
        if command > 0 {
            // By its number, for where /proc is not to be read.
            libc::kill(command, libc::SIGKILL);
        }
        loop {
            passing::each_child(|pid| {
                libc::kill(pid, libc::SIGKILL);
            });
            if libc::waitpid(-1, std::ptr::null_mut(), 0) == -1 && Errno::last_raw() == libc::ECHILD {
                libc::_exit(0);
            }
        }
    }
}

// ---- the command, before its exec --------------------------------------------------------------------------------

unsafe fn command_main(prepared: &mut Prepared<'_>, pipe: RawFd) -> ! {
    let plan = prepared.plan;
    // SAFETY: system calls only, on memory prepared before the fork; every failure ends in `_exit`.
    unsafe {
        let moved = libc::fcntl(pipe, libc::F_DUPFD_CLOEXEC, prepared.above);
        let pipe = if moved == -1 { pipe } else { moved };
        let stop = |step: Step| -> ! {
            let record = pack(step as i32, Errno::last_raw(), 0);
            libc::write(pipe, record.as_ptr().cast(), RECORD);
            libc::_exit(127);
        };
        if moved == -1 || !place_fds(prepared) {
            stop(Step::Fds);
        }
        if let Some(own_pid) = &prepared.own_pid {
            own_pid.write(libc::getpid().cast_unsigned());
        }
        libc::umask(plan.umask & 0o777);
        plan.inheritance.apply();
        if let Some(identity) = &plan.identity {
            if !caps::prepare(&identity.capabilities) {
                stop(Step::Capabilities);
            }
            let groups = identity.groups.as_ptr();
            if libc::setgroups(identity.groups.len(), groups) == -1
                || libc::setresgid(identity.gid, identity.gid, identity.gid) == -1
                || libc::setresuid(identity.uid, identity.uid, identity.uid) == -1
            {
                stop(Step::Identity);
            }
            if !caps::apply(&identity.capabilities) {
                stop(Step::Capabilities);
            }
        }
        if plan.no_new_privs {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        }
        // Before there is a limit of fds that may leave none for it.
        let only = plan.only.map(|only| open_only(prepared, only));
        Inheritance::apply_limits(&prepared.limits);
        // As the caller: what it may not do it does without, and a directory that it may not enter stays closed.
        if !plan.inheritance.take_priority() {
            let record = pack(NOTE_NO_PRIORITY, 0, 0);
            libc::write(pipe, record.as_ptr().cast(), RECORD);
        }
        // Never somewhere else instead: its relative paths would then name other files, and `rm -rf lib` would remove them.
        if libc::chdir(plan.cwd.as_ptr()) == -1 {
            stop(Step::Directory);
        }
        match only {
            Some(Ok(fd)) => {
                let (argv, env) = (prepared.argv.as_ptr(), prepared.env.as_ptr());
                libc::syscall(libc::SYS_execveat, fd, c"".as_ptr(), argv, env, libc::AT_EMPTY_PATH);
            }
            Some(Err(errno)) => Errno::set_raw(errno),
            None => exec(prepared),
        }
        stop(Step::Exec)
    }
}

/// Gives the fds their numbers. All else is close-on-exec.
unsafe fn place_fds(prepared: &mut Prepared<'_>) -> bool {
    // SAFETY: fcntl, dup2 and close_range on this process's own fds. `moved` has its capacity already.
    unsafe {
        libc::syscall(libc::SYS_close_range, 0, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        for (fd, to) in &prepared.plan.fds {
            // First out of the way of every number that is to be given.
            let away = libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, prepared.above);
            if away == -1 {
                return false;
            }
            prepared.moved.push((away, *to));
        }
        prepared.moved.iter().all(|(from, to)| libc::dup2(*from, *to) != -1)
    }
}

/// Opened as the command's own user: what that may not reach it may not run. EACCES: another file is there by now.
unsafe fn open_only(prepared: &Prepared<'_>, (dev, ino): (u64, u64)) -> Result<RawFd, i32> {
    let Some(program) = prepared.plan.programs.first() else { return Err(libc::ENOENT) };
    // SAFETY: system calls on a string prepared before the fork, and on a stat buffer of this function.
    unsafe {
        let fd = libc::open(program.as_ptr(), libc::O_PATH | libc::O_CLOEXEC);
        let mut found: libc::stat = std::mem::zeroed();
        if fd == -1 || libc::fstat(fd, &raw mut found) == -1 {
            return Err(Errno::last_raw());
        }
        if (found.st_dev, found.st_ino) == (dev, ino) { Ok(fd) } else { Err(libc::EACCES) }
    }
}

/// As execvp(3): the first candidate that can be run; EACCES is remembered while others are only missing, and a script
/// without a `#!` line is the shell's.
unsafe fn exec(prepared: &mut Prepared<'_>) {
    let mut denied = false;
    for program in &prepared.plan.programs {
        // SAFETY: NUL-terminated strings and null-terminated arrays, prepared before the fork.
        unsafe { libc::execve(program.as_ptr(), prepared.argv.as_ptr(), prepared.env.as_ptr()) };
        match Errno::last_raw() {
            libc::EACCES => denied = true,
            libc::ENOENT | libc::ENOTDIR => {}
            libc::ENOEXEC => {
                prepared.script[1] = program.as_ptr();
                // SAFETY: as above; the place in `script` was kept for the program's name.
                unsafe { libc::execve(SHELL.as_ptr(), prepared.script.as_ptr(), prepared.env.as_ptr()) };
                return;
            }
            _ => return,
        }
    }
    if denied {
        Errno::set_raw(libc::EACCES);
    }
}
