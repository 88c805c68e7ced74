//! The supervisor's life while the command and what it left behind are there: reap, report, obey.

use farside_supervisor_contract::{Order, Report, SOCKET_FD};

use crate::kernel::{errno, receive, send};
use crate::passing::{self, Passing};

/// # Safety
/// Only in a process with one thread, whose children are the command and its orphans. Ends the process.
pub(crate) unsafe fn until_nothing_is_left(command: i32, started: bool) -> ! {
    // SAFETY: system calls on memory of this frame.
    unsafe {
        let mut chld: libc::sigset_t = core::mem::zeroed();
        libc::sigemptyset(&raw mut chld);
        libc::sigaddset(&raw mut chld, libc::SIGCHLD);
        let signals = libc::signalfd(-1, &raw const chld, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        // So that no file system is kept busy by this process.
        libc::chdir(c"/".as_ptr());
        if !started {
            libc::waitpid(command, core::ptr::null_mut(), 0);
            libc::_exit(0);
        }
        watch(command, signals)
    }
}

/// Reaps, reports and obeys until nothing is left.
unsafe fn watch(command: i32, signals: i32) -> ! {
    let mut ended = false;
    let mut passing = Passing::NONE;
    loop {
        // SAFETY: system calls on memory of this frame.
        unsafe {
            let Reaped { status, any, none_left } = reap(command);
            ended |= status.is_some();
            if let Some(wait_status) = status {
                send(Report::Ended { wait_status, left: !none_left });
            }
            if none_left {
                send(Report::Empty);
                libc::_exit(0);
            }
            if any {
                passing.on_orphans();
            }
            let mut fds = [SOCKET_FD, signals].map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
            libc::poll(fds.as_mut_ptr(), 2, -1);
            let [socket, signalled] = fds.map(|fd| fd.revents != 0);
            if signalled {
                let mut info: libc::signalfd_siginfo = core::mem::zeroed();
                libc::read(signals, (&raw mut info).cast(), size_of::<libc::signalfd_siginfo>());
            }
            if socket && let Some(order) = receive() {
                obey(command, ended, order, &mut passing);
            }
        }
    }
}

/// What was reaped.
struct Reaped {
    /// The command's own, if it was among them.
    status: Option<i32>,
    any: bool,
    none_left: bool,
}

/// Every child that has ended by now.
unsafe fn reap(command: i32) -> Reaped {
    let mut reaped = Reaped { status: None, any: false, none_left: false };
    loop {
        let mut status = 0;
        // SAFETY: `status` is writable.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if pid <= 0 {
            reaped.none_left = pid == -1;
            return reaped;
        }
        reaped.any = true;
        if pid == command {
            reaped.status = Some(status);
        }
    }
}

unsafe fn obey(command: i32, ended: bool, order: Order, passing: &mut Passing) {
    // SAFETY: the numbers are of our own unreaped children: nobody else can have them.
    unsafe {
        match order {
            Order::Signal(signal) if !ended => {
                libc::kill(command, signal);
            }
            Order::Signal(signal) => passing.begin(signal),
            Order::Release => libc::_exit(0),
            Order::KillAll => kill_all(if ended { 0 } else { command }),
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
            if libc::waitpid(-1, core::ptr::null_mut(), 0) == -1 && errno() == libc::ECHILD {
                libc::_exit(0);
            }
        }
    }
}
