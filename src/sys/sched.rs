//! Whether the calling thread, when it wakes, takes the processor from whoever runs there: sched(7).
//!
//! Under SCHED_OTHER it may. Where many small messages come, it then wakes for each of them, and the program that sends
//! them is stopped each time; under SCHED_BATCH that program goes on, and several messages wait when the thread runs.

use std::sync::OnceLock;

use crate::errno::Errno;

/// The policy that the process began with: one that an administrator chose is left alone.
fn own() -> i32 {
    static OWN: OnceLock<i32> = OnceLock::new();
    // SAFETY: one number; 0 is the calling thread.
    *OWN.get_or_init(|| unsafe { libc::sched_getscheduler(0) })
}

fn set(policy: i32) -> Result<(), Errno> {
    // SAFETY: all zero is a value of it, and the only one for these policies.
    let param: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a local of the right type.
    Errno::result(unsafe { libc::sched_setscheduler(0, policy, &raw const param) }).map(drop)
}

/// The calling thread interrupts nobody from now on (SCHED_BATCH), or as usual.
pub fn defer(yes: bool) {
    if own() == libc::SCHED_OTHER
        && let Err(errno) = set(if yes { libc::SCHED_BATCH } else { libc::SCHED_OTHER })
    {
        // A seccomp filter's no costs some speed and nothing else.
        tracing::debug!(%errno, "sched_setscheduler");
    }
}

/// For a thread that a worker starts, first of all: policies are inherited, by threads and by the commands that those
/// start.
pub fn begin_as_usual() {
    // SAFETY: one number; 0 is the calling thread.
    if unsafe { libc::sched_getscheduler(0) } != own() {
        defer(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> i32 {
        // SAFETY: as above.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn a_thread_that_defers_starts_threads_that_do_not() {
        let before = own();
        std::thread::spawn(move || {
            defer(true);
            assert_eq!(policy(), if before == libc::SCHED_OTHER { libc::SCHED_BATCH } else { before });
            let started = std::thread::spawn(|| {
                begin_as_usual();
                policy()
            });
            assert_eq!(started.join().unwrap(), before);
            defer(false);
            assert_eq!(policy(), before);
        })
        .join()
        .unwrap();
    }
}
