//! The command before its exec: from a copy of the supervisor to what its plan wants.
//!
//! The order matters: fds first, while there is room for them; the user before limits and priority, so that only what
//! that user may have is taken; the directory last, as that user.

use core::ffi::CStr;
use core::ptr;

use farside_supervisor_contract::{PID_DIGITS, Plan, Report, Step, write_pid};

use crate::kernel::{errno, set_errno, write_report};
use crate::memory::words;
use crate::{caps, inherit};

/// As execvp(3) has it.
const SHELL: &CStr = c"/bin/sh";

type Pointer = *const libc::c_char;

/// Becomes the command, or tells by `pipe` why not.
///
/// # Safety
/// In a forked child only, whose every fd but the plan's and the pipe is close-on-exec: never returns.
pub(crate) unsafe fn run(plan: &Plan<'_>, pipe: i32) -> ! {
    // SAFETY: as this function's; every failure ends in `stop`.
    unsafe {
        let above = plan.fds.iter().map(|(_, to)| to).max().unwrap_or(2).max(2) + 1;
        let moved = libc::fcntl(pipe, libc::F_DUPFD_CLOEXEC, above);
        if moved == -1 {
            stop(pipe, Step::Fds);
        }
        let pipe = moved;
        let Some(mut vectors) = Vectors::new(plan) else {
            set_errno(libc::ENOMEM);
            stop(pipe, Step::Fork)
        };
        if !place_fds(plan, above, vectors.moved) {
            stop(pipe, Step::Fds);
        }
        libc::umask(plan.fixed.umask & 0o777);
        inherit::apply(&plan.fixed);
        if let Err(step) = take_identity(plan) {
            stop(pipe, step);
        }
        if plan.fixed.no_new_privs {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        }
        // Before there is a limit of fds that may leave none for it.
        let only = plan.fixed.only.map(|only| open_only(plan, only));
        inherit::apply_limits(&plan.fixed);
        // As the caller: what it may not do it does without, and a directory that it may not enter stays closed.
        if !inherit::take_priority(&plan.fixed) {
            write_report(pipe, Report::Started { pid: 0, no_priority: true });
        }
        // Never somewhere else instead: its relative paths would then name other files, and `rm -rf lib` would remove
        // them.
        if libc::chdir(plan.cwd.as_ptr()) == -1 {
            stop(pipe, Step::Directory);
        }
        match only {
            Some(Ok(fd)) => {
                let (argv, env) = (vectors.argv.as_ptr(), vectors.env.as_ptr());
                libc::syscall(libc::SYS_execveat, fd, c"".as_ptr(), argv, env, libc::AT_EMPTY_PATH);
            }
            Some(Err(errno)) => set_errno(errno),
            None => exec(plan, &mut vectors),
        }
        stop(pipe, Step::Exec)
    }
}

/// Tells what has failed, with the errno of now, and ends the process.
fn stop(pipe: i32, step: Step) -> ! {
    write_report(pipe, Report::Failed { step, errno: errno() });
    // SAFETY: ends the process.
    unsafe { libc::_exit(127) }
}

/// The arrays that execve(2) wants, in one mapping of this process's own.
struct Vectors {
    argv: &'static mut [Pointer],
    env: &'static mut [Pointer],
    /// What runs a script that does not say so itself: the shell, the script, its arguments.
    script: &'static mut [Pointer],
    /// Room for the fds' temporary numbers.
    moved: &'static mut [i32],
}

impl Vectors {
    /// `None`: there is no memory.
    fn new(plan: &Plan<'_>) -> Option<Self> {
        let (args, variables, fds) = (plan.argv.len(), plan.env.len(), plan.fds.len());
        let name = plan.own_pid.count_bytes();
        // Name, '=', digits and a NUL, in whole words.
        let own_pid = if name == 0 { 0 } else { (name + 1 + PID_DIGITS + 1).div_ceil(size_of::<usize>()) };
        // argv + NULL, env + own pid + NULL, shell + argv + NULL, an i32 for each fd, the own pid's text.
        let room = words((args + 1) + (variables + 2) + (args + 2) + fds + own_pid)?;
        let (argv, room) = room.split_at_mut_checked(args + 1)?;
        let (env, room) = room.split_at_mut_checked(variables + 2)?;
        let (script, room) = room.split_at_mut_checked(args + 2)?;
        let (moved, own_pid) = room.split_at_mut_checked(fds)?;
        let all = Self { argv: pointers(argv), env: pointers(env), script: pointers(script), moved: numbers(moved) };
        fill(all.argv, plan.argv.map(CStr::as_ptr));
        let variable = (name > 0).then(|| pid_variable(plan.own_pid, own_pid));
        fill(all.env, plan.env.map(CStr::as_ptr).chain(variable));
        // The script's own name comes when it is known.
        fill(all.script, [SHELL.as_ptr(), ptr::null()].into_iter().chain(plan.argv.skip(1).map(CStr::as_ptr)));
        Some(all)
    }
}

fn pointers(words: &'static mut [usize]) -> &'static mut [Pointer] {
    // SAFETY: a pointer has the size and the alignment of a word, and all zero is null.
    unsafe { core::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len()) }
}

fn numbers(words: &'static mut [usize]) -> &'static mut [i32] {
    // SAFETY: a word has room for an i32, is aligned for it, and all zero is one.
    unsafe { core::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len()) }
}

/// What is behind the last one stays null.
fn fill(out: &mut [Pointer], from: impl Iterator<Item = Pointer>) {
    for (to, pointer) in out.iter_mut().zip(from) {
        *to = pointer;
    }
}

/// `NAME=PID` of this process, in `room`.
fn pid_variable(name: &CStr, room: &'static mut [usize]) -> Pointer {
    // SAFETY: the bytes of these words; any is a value.
    let text: &mut [u8] =
        unsafe { core::slice::from_raw_parts_mut(room.as_mut_ptr().cast(), size_of_val::<[usize]>(room)) };
    for (to, from) in text.iter_mut().zip(name.to_bytes().iter().chain(b"=")) {
        *to = *from;
    }
    if let Some(digits) = text.get_mut(name.count_bytes() + 1..).and_then(|rest| rest.first_chunk_mut()) {
        // SAFETY: takes nothing, and cannot fail.
        write_pid(unsafe { libc::getpid() }.cast_unsigned(), digits);
    }
    text.as_ptr().cast()
}

/// Gives the fds their numbers. All else is close-on-exec.
unsafe fn place_fds(plan: &Plan<'_>, above: i32, moved: &mut [i32]) -> bool {
    // SAFETY: fcntl and dup2 on this process's own fds.
    unsafe {
        for ((from, _), away) in plan.fds.iter().zip(moved.iter_mut()) {
            // First out of the way of every number that is to be given.
            *away = libc::fcntl(from, libc::F_DUPFD_CLOEXEC, above);
            if *away == -1 {
                return false;
            }
        }
        plan.fds.iter().zip(moved).all(|((_, to), away)| libc::dup2(*away, to) != -1)
    }
}

unsafe fn take_identity(plan: &Plan<'_>) -> Result<(), Step> {
    let Some(identity) = plan.fixed.identity else { return Ok(()) };
    // SAFETY: system calls on this process; the groups lie in the plan, aligned, and are so many.
    unsafe {
        if !caps::prepare(&identity.capabilities) {
            return Err(Step::Capabilities);
        }
        let groups: *const libc::gid_t = plan.groups.as_ptr().cast();
        if libc::setgroups(plan.groups.len() / size_of::<libc::gid_t>(), groups) == -1
            || libc::setresgid(identity.gid, identity.gid, identity.gid) == -1
            || libc::setresuid(identity.uid, identity.uid, identity.uid) == -1
        {
            return Err(Step::Identity);
        }
        if caps::apply(&identity.capabilities) { Ok(()) } else { Err(Step::Capabilities) }
    }
}

/// Opened as the command's own user: what that may not reach it may not run. EACCES: another file is there by now.
unsafe fn open_only(plan: &Plan<'_>, (dev, ino): (u64, u64)) -> Result<i32, i32> {
    let Some(program) = { plan.programs }.next() else { return Err(libc::ENOENT) };
    // SAFETY: system calls on a string of the plan, and on a stat buffer of this function.
    unsafe {
        let fd = libc::open(program.as_ptr(), libc::O_PATH | libc::O_CLOEXEC);
        let mut found: libc::stat = core::mem::zeroed();
        if fd == -1 || libc::fstat(fd, &raw mut found) == -1 {
            return Err(errno());
        }
        if (found.st_dev, found.st_ino) == (dev, ino) { Ok(fd) } else { Err(libc::EACCES) }
    }
}

/// As execvp(3): the first candidate that can be run; EACCES is remembered while others are only missing, and a script
/// without a `#!` line is the shell's.
unsafe fn exec(plan: &Plan<'_>, vectors: &mut Vectors) {
    let mut denied = false;
    for program in plan.programs {
        // SAFETY: NUL-terminated strings and null-terminated arrays of this process.
        unsafe { libc::execve(program.as_ptr(), vectors.argv.as_ptr(), vectors.env.as_ptr()) };
        match errno() {
            libc::EACCES => denied = true,
            libc::ENOENT | libc::ENOTDIR => {}
            libc::ENOEXEC => {
                if let Some(name) = vectors.script.get_mut(1) {
                    *name = program.as_ptr();
                }
                // SAFETY: as above.
                unsafe { libc::execve(SHELL.as_ptr(), vectors.script.as_ptr(), vectors.env.as_ptr()) };
                return;
            }
            _ => return,
        }
    }
    if denied {
        set_errno(libc::EACCES);
    }
}
