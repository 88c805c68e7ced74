//! A signal's way to what a command has left behind.

/// A signal for what the command has left behind: for every child, and for the children of those that end of it. Of a
/// daemon that forks twice the first child may outlive the command, and the daemon is its child until then.
pub(crate) struct Passing {
    signal: i32,
    /// CLOCK_MONOTONIC, in seconds.
    since: i64,
    /// Who has it already.
    told: [i32; PASSING_MAX],
    count: usize,
}

/// Above it somebody may get the signal twice.
const PASSING_MAX: usize = 64;
/// An orphan that comes later is nobody whom that signal was meant for.
const PASSING_S: i64 = 2;

impl Passing {
    pub(crate) const NONE: Self = Self { signal: 0, since: 0, told: [0; PASSING_MAX], count: 0 };

    pub(crate) unsafe fn begin(&mut self, signal: i32) {
        *self = Self { signal, since: seconds(), ..Self::NONE };
        // SAFETY: as this function's.
        unsafe { self.pass() };
    }

    pub(crate) unsafe fn on_orphans(&mut self) {
        if self.signal != 0 && seconds() - self.since <= PASSING_S {
            // SAFETY: as this function's.
            unsafe { self.pass() };
        }
    }

    unsafe fn pass(&mut self) {
        // SAFETY: the numbers are of our own unreaped children.
        unsafe {
            each_child(|pid| {
                if self.told.iter().take(self.count).any(|told| *told == pid) {
                    return;
                }
                libc::kill(pid, self.signal);
                if let Some(free) = self.told.get_mut(self.count) {
                    *free = pid;
                    self.count += 1;
                }
            });
        }
    }
}

fn seconds() -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec
}

/// Every child of this process, from /proc/thread-self/children, proc_pid_children(5). The list is read in pieces; a
/// number that is cut at a piece's end is read again with the next.
pub(crate) unsafe fn each_child(mut each: impl FnMut(i32)) {
    // SAFETY: system calls on memory of this frame; the numbers are of our own unreaped children.
    unsafe {
        let list = libc::open(c"/proc/thread-self/children".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if list == -1 {
            return;
        }
        let mut pid: i32 = 0;
        let mut buffer = [0_u8; 4096];
        loop {
            let n = libc::read(list, buffer.as_mut_ptr().cast(), buffer.len());
            let Ok(n @ 1..) = usize::try_from(n) else { break };
            for byte in buffer.iter().take(n) {
                if byte.is_ascii_digit() {
                    pid = pid.wrapping_mul(10).wrapping_add(i32::from(*byte - b'0'));
                } else {
                    if pid > 0 {
                        each(pid);
                    }
                    pid = 0;
                }
            }
        }
        if pid > 0 {
            each(pid);
        }
        libc::close(list);
    }
}
