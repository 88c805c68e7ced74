//! Starts a program that is held open, without a copy of this process's memory.
//!
//! fork(2) copies the page tables of the whole process, and a busy daemon has many. With vfork(2)'s flags the child borrows
//! this memory until it executes the program, and only the calling thread waits for that. So the child must change nothing
//! that the thread relies on: it makes a few system calls on a stack of its own, with every signal blocked, so that no
//! handler of this process runs in it.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::errno::{Errno, OsError, OsResult};

/// A program to be started, with an empty environment, every signal blocked and no fd but these.
pub(super) struct Launch<'a> {
    pub(super) program: &'a OwnedFd,
    /// Its argv[0].
    pub(super) name: &'a CStr,
    /// Fds of ours, none of them 0 to 2, and numbers from 0 to 2 that they get.
    pub(super) places: &'a [(RawFd, RawFd)],
    /// Fds that it gets by the numbers that they have here.
    pub(super) kept: &'a [RawFd],
}

/// What the child needs; it also writes here, because the memory is shared.
struct Shared<'a> {
    launch: &'a Launch<'a>,
    argv: [*const libc::c_char; 2],
    /// Of the call that failed; 0: the program has begun.
    errno: i32,
}

/// The child's stack, in 16-byte units: three system calls need a few hundred bytes of these 16 KiB.
type Stack = [MaybeUninit<u128>; 1024];

/// Gives the new process's pid, once the program has begun. What is not close-on-exec here and was inherited by this
/// process (its standard fds) the program gets too, and must close.
///
/// # Errors
/// EAGAIN, ENOMEM: no process to be had. Others: the program can't be run.
pub(super) fn start(launch: &Launch<'_>) -> OsResult<i32> {
    let mut shared = Shared { launch, argv: [launch.name.as_ptr(), std::ptr::null()], errno: 0 };
    let mut stack: Stack = [MaybeUninit::uninit(); 1024];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    let before = block_all();
    // SAFETY: the child runs `child` on a stack of its own, which grows down from its end, aligned to 16 bytes. CLONE_VFORK
    // keeps this thread here until the child has executed the program or ended, so both outlive its use of them.
    let pid = unsafe {
        let top = stack.as_mut_ptr().add(stack.len());
        libc::clone(child, top.cast(), flags, (&raw mut shared).cast())
    };
    let failed = Errno::last();
    set_mask(before);
    if pid == -1 {
        return Err(OsError::new("fork", failed));
    }
    // SAFETY: written by the child while this thread waited.
    match unsafe { (&raw const shared.errno).read_volatile() } {
        0 => Ok(pid),
        errno => {
            reap(pid);
            Err(OsError::new("execve", Errno::from_raw(errno)))
        }
    }
}

/// In the child, in this process's memory: system calls only, no allocation, no lock.
extern "C" fn child(shared: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `start` gives its own, and waits. fcntl, dup2 and execveat act on the child's copy of the fds.
    unsafe {
        let shared = &mut *shared.cast::<Shared<'_>>();
        let Launch { program, places, kept, .. } = *shared.launch;
        let placed = places.iter().all(|(from, to)| libc::dup2(*from, *to) != -1)
            && kept.iter().all(|fd| libc::fcntl(*fd, libc::F_SETFD, 0) != -1);
        if placed {
            let environment = [std::ptr::null::<libc::c_char>()];
            let (argv, env) = (shared.argv.as_ptr(), environment.as_ptr());
            libc::syscall(libc::SYS_execveat, program.as_raw_fd(), c"".as_ptr(), argv, env, libc::AT_EMPTY_PATH);
        }
        (&raw mut shared.errno).write_volatile(Errno::last_raw());
        libc::_exit(127)
    }
}

/// Also the two signals that libc keeps to itself; gives the mask of before.
fn block_all() -> u64 {
    let mut before = 0;
    // SAFETY: the kernel reads one mask of 8 bytes and writes another.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const ALL, &raw mut before, size_of::<u64>())
    };
    before
}

static ALL: u64 = u64::MAX;

fn set_mask(mask: u64) {
    let none = std::ptr::null_mut::<u64>();
    // SAFETY: the kernel reads one mask of 8 bytes.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, none, size_of::<u64>()) };
}

/// Waits until a child of ours has ended.
pub(super) fn reap(pid: i32) {
    loop {
        // SAFETY: a null status is allowed.
        let done = unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        if done != -1 || Errno::last() != Errno::EINTR {
            return;
        }
    }
}
