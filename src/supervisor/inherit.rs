//! What the command gets besides its fds, its user and its environment: limits, priority, processors, signals. execve(2)
//! keeps all of it.

use core::ptr;

use farside_supervisor_contract::Fixed;

/// Processors and signals, which need nobody's leave.
pub(crate) fn apply(fixed: &Fixed) {
    if fixed.processors.iter().any(|word| *word != 0) {
        let (set, len) = (fixed.processors.as_ptr(), size_of_val(&fixed.processors));
        // SAFETY: the kernel reads a set of that many bytes. EINVAL: this machine has none of them, and the command runs
        // on any.
        unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, len, set) };
    }
    signals(fixed.ignored, fixed.blocked);
}

/// As the kernel has it: libc hides two signals of its own, which are inherited all the same.
#[repr(C)]
struct Action {
    handler: usize,
    flags: libc::c_ulong,
    restorer: usize,
    mask: u64,
}

/// These are ignored and these are blocked, and the others are as a process begins with them.
fn signals(ignored: u64, blocked: u64) {
    for signal in 1..=64_i32 {
        let handler = if ignored & (1 << (signal - 1)) != 0 { libc::SIG_IGN } else { libc::SIG_DFL };
        let action = Action { handler, flags: 0, restorer: 0, mask: 0 };
        let none = ptr::null_mut::<Action>();
        // SAFETY: the kernel reads one action, which names no function. SIGKILL and SIGSTOP stay as they are.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &raw const action, none, size_of::<u64>()) };
    }
    let none = ptr::null_mut::<u64>();
    // SAFETY: the kernel reads a mask of 8 bytes.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const blocked, none, size_of::<u64>()) };
}

/// Behind the last setuid(2): execve(2) refuses a user that has become one while its processes were too many already.
pub(crate) fn apply_limits(fixed: &Fixed) {
    let none = ptr::null_mut::<libc::rlimit>();
    for (number, (soft, hard)) in fixed.limits.iter().enumerate() {
        let limit = libc::rlimit { rlim_cur: *soft, rlim_max: *hard };
        // SAFETY: the kernel reads one rlimit. It is not above what the process has: no error.
        unsafe { libc::syscall(libc::SYS_prlimit64, 0, number, &raw const limit, none) };
    }
}

/// As whoever the process has become: it may lower its priority, and raise it if its user may. `false`: it may not.
pub(crate) fn take_priority(fixed: &Fixed) -> bool {
    let mut taken = true;
    if fixed.nice != 0 {
        // SAFETY: three numbers.
        taken &= unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, fixed.nice) } == 0;
    }
    if fixed.policy != libc::SCHED_OTHER {
        // SAFETY: all zero is a value of it.
        let mut param: libc::sched_param = unsafe { core::mem::zeroed() };
        param.sched_priority = fixed.priority;
        // SAFETY: the kernel reads one sched_param.
        taken &= unsafe { libc::sched_setscheduler(0, fixed.policy, &raw const param) } == 0;
    }
    taken
}
