//! Getting a thread out of a system call that blocks: a signal whose handler does nothing.

use std::sync::Once;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Ignored by default, so a late one does no harm anywhere.
const KICK: Signal = Signal::SIGURG;

extern "C" fn nothing(_: libc::c_int) {}

/// A thread that may be kicked, by its number: a thread that has ended is not found, and no harm done.
#[derive(Debug, Clone, Copy)]
pub struct Kickable(libc::pid_t);

impl Kickable {
    pub fn this_thread() -> Self {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(|| {
            // No SA_RESTART: the point is that the call ends.
            let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
            // SAFETY: the handler does nothing at all, which is async-signal-safe.
            unsafe { sigaction(KICK, &action) }.expect("SIGURG may be handled");
        });
        Self(nix::unistd::gettid().as_raw())
    }

    /// The thread's blocking call, if it is in one, ends with EINTR.
    pub fn kick(self) {
        // SAFETY: three integers; only a thread of this process can be meant. ESRCH: it has ended.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.0, KICK as libc::c_int) };
    }
}
