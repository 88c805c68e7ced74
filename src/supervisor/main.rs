#![no_std]
#![no_main]
//! rexec-supervisor: the parent of one command, which stays with whatever the command leaves behind.
//!
//! ```text
//!   daemon ──vfork, exec──▶ rexec-supervisor (child subreaper) ──fork──▶ command ──fork──▶ its children ...
//!     ◀── Report ──── fd 0 ──── Order ──▶                      orphans come back to the supervisor
//! ```
//!
//! Each command has a supervisor of its own, so every process below it is known to be this command's, daemons included,
//! and a signal never meets a process that merely has the same number. If the daemon dies, the supervisor kills the tree:
//! a command whose stand-in cannot be told anything must not run on unseen.
//!
//! It is a program of its own, and not a fork of the daemon, so that no key and none of the daemon's memory is in it. It
//! must stay small, because a host runs hundreds: no std, no allocation, no lock; system calls only. It trusts no byte of
//! its plan before that is decoded, and it has no fd but its socket while the command runs.

mod caps;
mod command;
mod inherit;
mod kernel;
mod memory;
// Where the shim has it.
#[path = "../../ldpreload/src/no_unwind.rs"]
mod no_unwind;
mod passing;
mod watch;

use farside_supervisor_contract::{FIRST_FD, PLAN_FD, Plan, Report, SOCKET_FD, Step};

use kernel::{close_all_but, errno, send};

// The prebuilt std of other programs names the C library; here nobody else does.
#[link(name = "c")]
unsafe extern "C" {}

const BY_HAND: &[u8] =
    b"rexec-supervisor: is started by rexec_server and farside host, for each command; not by hand\n";

/// # Safety
/// Called by the C library alone, once.
#[unsafe(no_mangle)]
unsafe extern "C" fn main() -> libc::c_int {
    if !kernel::is_seqpacket(SOCKET_FD) {
        // SAFETY: the text is readable and of that length.
        unsafe { libc::write(2, BY_HAND.as_ptr().cast(), BY_HAND.len()) };
        return 2;
    }
    be_alone();
    let Some(map) = memory::Map::of_sealed(PLAN_FD) else { fail(Step::Plan, libc::EBADF) };
    match Plan::decode(map.bytes()) {
        Ok(plan) => {
            // SAFETY: this process has one thread, and uses no fd but these from here on.
            let (command, started) = unsafe { start(&plan) };
            // The plan is of no use any more; the command has a copy of its own.
            drop(map);
            // SAFETY: as above.
            unsafe { watch::until_nothing_is_left(command, started) }
        }
        Err(_) => fail(Step::Plan, libc::EPROTO),
    }
}

/// What keeps others from this process, and this process from others.
fn be_alone() {
    // SAFETY: system calls on numbers and on memory of this frame.
    unsafe {
        // Own session: signals to the daemon's terminal or group are not for the command.
        libc::setsid();
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        // Cut to 15 letters by the kernel.
        libc::prctl(libc::PR_SET_NAME, c"rexec-supervisor".as_ptr());
        // A daemon that is not root runs commands of its own user: they may not trace what watches them.
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        // Blocked by the daemon before this program began, but for the two that libc keeps to itself.
        let mut all: libc::sigset_t = core::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, core::ptr::null_mut());
    }
}

/// Forks the command, and waits until it has begun or has failed to: its pid, and which of the two.
///
/// # Safety
/// Only in a process with one thread, once: closes all fds but the plan's.
unsafe fn start(plan: &Plan<'_>) -> (i32, bool) {
    // SAFETY: as this function's.
    unsafe {
        // At once: another command's pipe or a link must not stay open because this one's start takes long.
        close_all_but(core::iter::once(SOCKET_FD).chain(plan.fds.iter().map(|(from, _)| from)));
        for fd in core::iter::once(SOCKET_FD).chain(plan.fds.iter().map(|(from, _)| from)) {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        }
        let mut pipe = [-1; 2];
        if libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) == -1 {
            fail(Step::Fork, errno());
        }
        let child = libc::fork();
        if child == -1 {
            fail(Step::Fork, errno());
        }
        if child == 0 {
            command::run(plan, pipe[1]);
        }
        libc::close(pipe[1]);
        let started = await_exec(pipe[0], child);
        close_all_but(core::iter::once(SOCKET_FD));
        (child, started)
    }
}

fn fail(step: Step, errno: i32) -> ! {
    send(Report::Failed { step, errno });
    // SAFETY: ends the process.
    unsafe { libc::_exit(1) }
}

/// Waits until the command's exec has closed the pipe, or until the command has written there why it failed.
fn await_exec(pipe: i32, child: i32) -> bool {
    let mut no_priority = false;
    loop {
        match kernel::read_report(pipe) {
            // The command's note that it does without its caller's priority.
            Some(Report::Started { no_priority: note, .. }) => no_priority |= note,
            Some(failed) => {
                send(failed);
                return false;
            }
            None => {
                send(Report::Started { pid: child, no_priority });
                return true;
            }
        }
    }
}

const _: () = assert!(SOCKET_FD < PLAN_FD && PLAN_FD < FIRST_FD, "close_all_but wants them in order");
