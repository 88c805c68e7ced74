//! What a process leaves to the programs that it starts, besides its fds, its user and its environment: limits, priority,
//! processors, and what becomes of signals. execve(2) keeps all of it.

use std::ops::Range;

use farside_supervisor_contract::PROCESSOR_WORDS;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::errno::{Errno, OsResult, Step};
use crate::sys::{nofile, signals};

/// RLIMIT_CPU (0) to RLIMIT_RTTIME (15) of getrlimit(2), which have these numbers on x86-64 and aarch64.
pub const LIMITS: u8 = 16;
const LIMIT_NAMES: [&str; LIMITS as usize] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

/// As many fds as every program expects to get, select(2).
const FD_SETSIZE: u64 = 1024;

/// The soft limit and the hard one; u64::MAX is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    pub soft: u64,
    pub hard: u64,
}

/// As a process has it. Nothing of it is more than its kernel has let it have, but for what an unfair peer says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inheritance {
    /// By number; the others are as whoever runs the program has them.
    pub limits: Vec<(u8, Limit)>,
    /// -20 to 19; 0 leaves it to whoever runs the program.
    pub nice: i32,
    /// Of sched(7), SCHED_RESET_ON_FORK included; SCHED_OTHER leaves it to whoever runs the program.
    pub policy: i32,
    /// 1 to 99 with SCHED_FIFO and SCHED_RR.
    pub priority: i32,
    /// The processors that it may run on; none: nobody has said.
    pub processors: Vec<u32>,
    /// Signal N is bit N-1, as in /proc/PID/status.
    pub ignored: u64,
    pub blocked: u64,
}

/// Every limit, soft and hard, by its number.
pub type AllLimits = [(u64, u64); LIMITS as usize];

/// A limit that is lower here than there.
#[derive(Debug, PartialEq, Eq)]
pub struct Lowered {
    pub name: &'static str,
    pub asked: u64,
    pub got: u64,
}

impl Inheritance {
    /// This process's own. To be asked while it has one thread, and has not blocked any signal for itself.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of_self() -> OsResult<Self> {
        let limits = (0..LIMITS).map(|n| Ok((n, limit(n)?))).collect::<OsResult<_>>()?;
        // SAFETY: two numbers; 0 is the calling process.
        let above = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, 0) };
        // The call itself, unlike libc's function, gives 20 less the niceness: 1 to 40, and never what an error is.
        let nice = 20 - i32::try_from(Errno::result(above).step("getpriority")?).expect("40 at most");
        // SAFETY: one number; 0 is the calling thread.
        let policy = Errno::result(unsafe { libc::sched_getscheduler(0) }).step("sched_getscheduler")?;
        // SAFETY: all zero is a value of it.
        let mut param: libc::sched_param = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one sched_param.
        Errno::result(unsafe { libc::sched_getparam(0, &raw mut param) }).step("sched_getparam")?;
        Ok(Self {
            limits,
            nice,
            policy,
            priority: param.sched_priority,
            processors: restricted_to().unwrap_or_default(),
            ignored: signals::ignored(),
            blocked: signals::blocked(),
        })
    }

    /// Leaves what can't lead a program astray that was meant for its caller's purpose alone. A file cut off at a size, or a
    /// child's end that is not told, can.
    pub fn narrow(&mut self) {
        self.limits.retain(|(number, limit)| match u32::from(*number) {
            libc::RLIMIT_CORE | libc::RLIMIT_NPROC | libc::RLIMIT_MEMLOCK => true,
            libc::RLIMIT_NOFILE => limit.soft >= FD_SETSIZE,
            _ => false,
        });
        self.ignored &= signals::bits(&[libc::SIGHUP, libc::SIGINT, libc::SIGQUIT]);
        self.blocked = 0;
    }

    /// The limits for a child of this process: no hard limit is above its own. Also what is lower for it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn limits_here(&self) -> OsResult<(AllLimits, Vec<Lowered>)> {
        let (mut limits, mut lowered): (AllLimits, _) = ([(0, 0); LIMITS as usize], Vec::new());
        for ((number, name), here) in (0..LIMITS).zip(LIMIT_NAMES).zip(&mut limits) {
            let own = limit(number)?;
            let asked = self.limits.iter().find(|(n, _)| *n == number).map_or(own, |(_, limit)| *limit);
            // Whoever raises it for a running program (libvirt, for a VM that gets a device) does so by the stand-in's pid:
            // it must be high enough from the start.
            let least = if u32::from(number) == libc::RLIMIT_MEMLOCK { own.soft } else { 0 };
            let hard = asked.hard.min(own.hard).max(least);
            let soft = asked.soft.min(hard).max(least);
            // A hard limit that nobody has reached is no news.
            if soft < asked.soft {
                lowered.push(Lowered { name, asked: asked.soft, got: soft });
            }
            *here = (soft, hard);
        }
        Ok((limits, lowered))
    }

    /// The processors, as the supervisor takes them. All zero: nobody has said.
    pub(super) fn processor_set(&self) -> [u64; PROCESSOR_WORDS] {
        let mut set = [0; PROCESSOR_WORDS];
        for number in self.processors.iter().map(|number| *number as usize) {
            // Numbers that are beyond a set are left out.
            if let Some(word) = set.get_mut(number / 64) {
                *word |= 1 << (number % 64);
            }
        }
        set
    }
}

/// As this process was given it: a soft limit of fds that it has raised for itself is not what it leaves.
fn limit(number: u8) -> OsResult<Limit> {
    let mut own = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let none = std::ptr::null::<libc::rlimit>();
    // SAFETY: the kernel writes one rlimit.
    Errno::result(unsafe { libc::syscall(libc::SYS_prlimit64, 0, usize::from(number), none, &raw mut own) })
        .step("getrlimit")?;
    if u32::from(number) == libc::RLIMIT_NOFILE
        && let Some(given) = nofile::given()
    {
        own = *given;
    }
    Ok(Limit { soft: own.rlim_cur, hard: own.rlim_max })
}

/// The calling thread.
const SELF: Pid = Pid::from_raw(0);

/// The processors that this process was told to run on. `None`: nobody has told it, or nobody but those who confine
/// everything here, whose numbers mean nothing on another machine; or there are more than a set holds.
fn restricted_to() -> Option<Vec<u32>> {
    let own = sched_getaffinity(SELF).ok()?;
    // What the first process may use, none of its descendants was kept from.
    if sched_getaffinity(Pid::from_raw(1)).is_ok_and(|first| numbers(&first).all(|n| holds(&own, n))) {
        return None;
    }
    // A cpuset(7) confines it: to ask for more changes nothing. If it does, it is taken back.
    let widened = sched_setaffinity(SELF, &set_of(&ALL.collect::<Vec<_>>()));
    let widest = sched_getaffinity(SELF).ok()?;
    if widened.is_ok() && widest != own {
        sched_setaffinity(SELF, &own).ok()?;
    }
    (widest != own).then(|| numbers(&own).collect())
}

/// Every number that a set holds.
const ALL: Range<u32> = 0..libc::CPU_SETSIZE.cast_unsigned();

fn numbers(set: &CpuSet) -> impl Iterator<Item = u32> {
    ALL.filter(|n| holds(set, *n))
}

fn holds(set: &CpuSet, number: u32) -> bool {
    set.is_set(number as usize).unwrap_or(false)
}

/// Numbers that are beyond a set are left out.
fn set_of(processors: &[u32]) -> CpuSet {
    let mut set = CpuSet::new();
    for number in processors {
        let _ = set.set(*number as usize);
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_go_down_to_what_this_process_may_have_and_never_up() {
        let mut asked = Inheritance::of_self().unwrap();
        let (same, lowered) = asked.limits_here().unwrap();
        assert_eq!(lowered, []);
        assert!(same.iter().zip(&asked.limits).all(|(got, (_, asked))| got.0 == asked.soft));
        let nofile = libc::RLIMIT_NOFILE as usize;
        let own = asked.limits[nofile].1.hard;
        asked.limits[nofile].1 = Limit { soft: own + 1, hard: u64::MAX };
        let (limits, lowered) = asked.limits_here().unwrap();
        assert_eq!(limits[nofile], (own, own));
        assert_eq!(lowered, [Lowered { name: "NOFILE", asked: own + 1, got: own }]);
        asked.limits[nofile].1 = Limit { soft: 7, hard: 9 };
        let (limits, lowered) = asked.limits_here().unwrap();
        assert_eq!((limits[nofile], lowered), ((7, 9), vec![]));
        // What nobody said is as it is here, and so is locked memory at least.
        let memlock = libc::RLIMIT_MEMLOCK as usize;
        let none = Limit { soft: 0, hard: 0 };
        asked.limits = [libc::RLIMIT_MEMLOCK, libc::RLIMIT_CORE].map(|n| (u8::try_from(n).unwrap(), none)).to_vec();
        let (limits, _) = asked.limits_here().unwrap();
        assert_eq!((limits[libc::RLIMIT_CORE as usize], limits[nofile].1), ((0, 0), own));
        assert_eq!(limits[memlock].0, same[memlock].0);
    }

    #[test]
    fn a_set_of_processors_has_a_bit_for_each() {
        let of = |processors: &[u32]| {
            let asked = Inheritance { processors: processors.to_vec(), ..Inheritance::default() };
            asked.processor_set()
        };
        assert_eq!(of(&[]), [0; PROCESSOR_WORDS]);
        let set = of(&[0, 65, 1023, 1024, u32::MAX]);
        assert_eq!((set[0], set[1], set[15]), (1, 2, 1 << 63));
        assert_eq!(set[2..15], [0; 13]);
    }

    #[test]
    fn what_could_lead_a_program_astray_is_left_out() {
        let limit = |number: u32, soft| (u8::try_from(number).unwrap(), Limit { soft, hard: soft });
        let signals = [libc::SIGHUP, libc::SIGINT, libc::SIGCHLD, libc::SIGALRM];
        let mut asked = Inheritance {
            limits: vec![
                limit(libc::RLIMIT_FSIZE, 1),
                limit(libc::RLIMIT_CORE, 0),
                limit(libc::RLIMIT_NOFILE, 3),
                limit(libc::RLIMIT_MEMLOCK, 5),
            ],
            nice: 5,
            ignored: signals::bits(&signals),
            blocked: signals::bits(&signals),
            ..Inheritance::default()
        };
        asked.narrow();
        assert_eq!(asked.limits, [limit(libc::RLIMIT_CORE, 0), limit(libc::RLIMIT_MEMLOCK, 5)]);
        assert_eq!((asked.nice, asked.ignored, asked.blocked), (5, signals::bits(&signals[..2]), 0));
    }

    #[test]
    fn who_was_told_nothing_is_restricted_to_nothing() {
        std::thread::spawn(|| {
            let affinity = || numbers(&sched_getaffinity(SELF).unwrap()).collect::<Vec<_>>();
            let own = affinity();
            if let Some(told) = restricted_to() {
                assert_eq!(told, own, "this test was told where to run");
                return;
            }
            let Some((first, rest)) = own.split_first().filter(|(_, rest)| !rest.is_empty()) else {
                crate::skip::skip("one processor can't be divided");
                return;
            };
            // This thread ends soon.
            sched_setaffinity(SELF, &set_of(&[*first])).unwrap();
            assert_eq!((restricted_to(), affinity()), (Some(vec![*first]), vec![*first]), "and not to {rest:?}");
        })
        .join()
        .unwrap();
    }
}
