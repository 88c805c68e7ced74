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
    let wanted: Vec<Signal> = FORWARDED.into_iter().filter(|s| !is_ignored(*s)).collect();
    take(&wanted)
}

fn is_ignored(signal: Signal) -> bool {
    // SAFETY: sigaction with a null action only reads the current one into `old`, which is plain data.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal as i32, std::ptr::null(), &raw mut old) == 0 && old.sa_sigaction == libc::SIG_IGN
    }
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
