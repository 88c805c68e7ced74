//! Signals that are taken by a signalfd instead of a handler.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask as set_umask};

use crate::errno::{OsResult, Step};

/// What a stand-in passes on: everything that a user or libvirt sends to a process to make it do something.
const FORWARDED: [Signal; 9] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGALRM,
    Signal::SIGCONT,
];

/// What a server listens to.
const SERVER: [Signal; 3] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM];

/// Blocks the forwarded signals for this thread and those it will start, and returns where they can be read.
pub fn take_forwarded() -> OsResult<SignalFd> {
    // What whoever started us told us to ignore (nohup) is ignored, not passed on.
    let wanted: Vec<Signal> = FORWARDED.into_iter().filter(|s| !is_ignored(*s as i32)).collect();
    take(&wanted)
}

/// As the kernel has it: libc hides two signals of its own, which are inherited all the same.
#[repr(C)]
#[derive(Clone, Copy)]
struct Action {
    handler: usize,
    flags: libc::c_ulong,
    restorer: usize,
    mask: u64,
}

impl Action {
    const fn of(handler: usize) -> Self {
        Self { handler, flags: 0, restorer: 0, mask: 0 }
    }
}

const ALL: std::ops::RangeInclusive<i32> = 1..=64;

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

fn is_ignored(signal: i32) -> bool {
    let mut old = Action::of(libc::SIG_DFL);
    let none = std::ptr::null::<Action>();
    // SAFETY: with a null action the kernel only writes the current one, whose mask has 8 bytes.
    let done = unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, none, &raw mut old, size_of::<u64>()) };
    done == 0 && old.handler == libc::SIG_IGN
}

/// Signal N is bit N-1, as in /proc/PID/status.
pub fn bits(signals: &[i32]) -> u64 {
    signals.iter().copied().map(bit).sum()
}

/// What this process was told to ignore, as `bits`. Of SIGPIPE that can't be told: Rust's runtime has changed it.
pub fn ignored() -> u64 {
    ALL.filter(|n| *n != libc::SIGPIPE && is_ignored(*n)).map(bit).sum()
}

/// What the calling thread does not take, likewise.
pub fn blocked() -> u64 {
    let mut old = 0_u64;
    let none = std::ptr::null::<u64>();
    // SAFETY: with a null set the kernel only writes the mask, of 8 bytes. Then there is no error.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, none, &raw mut old, size_of::<u64>()) };
    old
}

/// A file of this process's own that would pass RLIMIT_FSIZE is EFBIG from now on, and not its end: the limit is for the
/// program that it stands in for.
pub fn outlive_file_sizes() {
    dispose(libc::SIGXFSZ, libc::SIG_IGN);
}

/// SIG_IGN or SIG_DFL. SIGKILL and SIGSTOP stay as they are.
fn dispose(signal: i32, handler: usize) {
    let action = Action::of(handler);
    let none = std::ptr::null_mut::<Action>();
    // SAFETY: the kernel reads one action, which names no function.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &raw const action, none, size_of::<u64>()) };
}

/// As `take_forwarded`, for a server's own signals.
pub fn take_server() -> OsResult<SignalFd> {
    take(&SERVER)
}

fn take(signals: &[Signal]) -> OsResult<SignalFd> {
    let set: SigSet = signals.iter().copied().collect();
    set.thread_block().step("block signals")?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC).step("signalfd")
}

/// This process's umask. Reading it sets it for a moment; call it while there is one thread.
pub fn umask() -> u32 {
    let old = set_umask(Mode::from_bits_truncate(0o77));
    set_umask(old);
    old.bits()
}
