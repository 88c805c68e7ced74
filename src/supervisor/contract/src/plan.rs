//! A plan as bytes: what is to run, and how.
//!
//! ```text
//!   0       4         8        16                FIXED_LEN
//!   ├ magic ┼ version ┼ length ┼ Fixed, counts   ┼ fds ┼ groups ┼ own pid ┼ cwd ┼ programs ┼ argv ┼ env ┤
//!                                                  8      4 each  strings, each with its NUL
//! ```
//!
//! Fds and groups are aligned in a page, so that the kernel can read the groups where they lie.

use core::ffi::CStr;

use crate::Malformed;
use crate::lists::{FD_LEN, Fds, Strings};

const MAGIC: [u8; 4] = *b"fssp";
const VERSION: u32 = 1;

/// RLIMIT_CPU (0) to RLIMIT_RTTIME (15) of getrlimit(2).
pub const LIMITS: usize = 16;
/// A set of 1024 processors, as `cpu_set_t`.
pub const PROCESSOR_WORDS: usize = 16;
const COUNTS: usize = 5;
/// Magic and version, length, flags, only, umask and gap, identity, inheritance, processors, limits, counts and gap.
const FIXED_LEN: usize =
    8 + 8 + 8 + 16 + 8 + (8 + 4 * 8) + (2 * 8 + 4 * 4) + PROCESSOR_WORDS * 8 + LIMITS * 16 + (COUNTS + 1) * 4;
const _: () = assert!(FIXED_LEN.is_multiple_of(8), "groups must be aligned");

mod flags {
    pub(super) const ONLY: u64 = 1;
    pub(super) const IDENTITY: u64 = 2;
    pub(super) const NO_NEW_PRIVS: u64 = 4;
    pub(super) const ALL: u64 = 7;
}

/// Capability sets, capabilities(7), as bit masks. execve(2) computes the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    pub inheritable: u64,
    pub permitted: u64,
    pub bounding: u64,
    pub ambient: u64,
}

/// Whom the command runs as; its groups are a list of the plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub capabilities: Capabilities,
}

/// What has the same size in every plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fixed {
    /// Device and inode of the only file that may be run, whatever the one candidate leads to by then; no script.
    pub only: Option<(u64, u64)>,
    /// `None`: the command runs as the supervisor does.
    pub identity: Option<Identity>,
    pub no_new_privs: bool,
    pub umask: u32,
    /// 0: as the supervisor's.
    pub nice: i32,
    /// SCHED_OTHER: as the supervisor's.
    pub policy: i32,
    pub priority: i32,
    /// Processor N is bit N % 64 of word N / 64. All zero: as the supervisor's.
    pub processors: [u64; PROCESSOR_WORDS],
    /// Signal N is bit N-1.
    pub ignored: u64,
    pub blocked: u64,
    /// Soft and hard, by their numbers.
    pub limits: [(u64, u64); LIMITS],
}

/// The rest of a plan, for its writer.
#[derive(Debug, Clone, Copy)]
pub struct Lists<'a, S> {
    /// As `Plan::fds`.
    pub fds: &'a [(i32, i32)],
    pub groups: &'a [u32],
    /// A variable whose value is to be the command's own pid; an empty name: none.
    pub own_pid: &'a CStr,
    pub cwd: &'a CStr,
    pub programs: &'a [S],
    pub argv: &'a [S],
    pub env: &'a [S],
}

/// A plan as its reader has it: lists stay where they lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan<'a> {
    pub fixed: Fixed,
    pub fds: Fds<'a>,
    /// `gid_t` numbers; aligned as such, if the plan itself is.
    pub groups: &'a [u8],
    pub own_pid: &'a CStr,
    pub cwd: &'a CStr,
    /// Candidates for the program, tried in order.
    pub programs: Strings<'a>,
    pub argv: Strings<'a>,
    pub env: Strings<'a>,
}

impl<'a> Plan<'a> {
    /// Appends a whole plan to `out`.
    ///
    /// # Errors
    /// A list of more than 2^32 entries.
    pub fn encode<S: AsRef<CStr>>(
        fixed: &Fixed,
        lists: &Lists<'_, S>,
        out: &mut impl Extend<u8>,
    ) -> Result<(), Malformed> {
        let Lists { fds, groups, own_pid, cwd, programs, argv, env } = lists;
        let all = || [*own_pid, *cwd].into_iter().chain([*programs, *argv, *env].into_iter().flatten().map(S::as_ref));
        let strings: usize = all().map(|s| s.count_bytes() + 1).sum();
        let length = FIXED_LEN + fds.len() * FD_LEN + groups.len() * 4 + strings;
        let mut counts = [0; COUNTS];
        let lens = [fds.len(), groups.len(), programs.len(), argv.len(), env.len()];
        for (count, len) in counts.iter_mut().zip(lens) {
            *count = u32::try_from(len).map_err(|_| Malformed)?;
        }
        let mut put = |bytes: &[u8]| out.extend(bytes.iter().copied());
        put(&MAGIC);
        put(&VERSION.to_ne_bytes());
        put(&(length as u64).to_ne_bytes());
        fixed.put(&mut put);
        counts.into_iter().chain([0]).for_each(|n| put(&n.to_ne_bytes()));
        for (from, to) in *fds {
            put(&from.to_ne_bytes());
            put(&to.to_ne_bytes());
        }
        groups.iter().for_each(|group| put(&group.to_ne_bytes()));
        all().for_each(|string| put(string.to_bytes_with_nul()));
        Ok(())
    }

    /// Reads exactly one plan: no byte may be missing, none may follow.
    #[inline]
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut r = Reader(bytes);
        if r.array::<4>()? != MAGIC || r.u32()? != VERSION || r.u64()? != bytes.len() as u64 {
            return Err(Malformed);
        }
        let fixed = Fixed::read(&mut r)?;
        let mut counts = [0_usize; COUNTS];
        for count in &mut counts {
            *count = usize::try_from(r.u32()?).map_err(|_| Malformed)?;
        }
        if r.u32()? != 0 {
            return Err(Malformed);
        }
        let [fds, groups, programs, argv, env] = counts;
        let fds = Fds::checked(r.take(fds.checked_mul(FD_LEN).ok_or(Malformed)?)?)?;
        let groups = r.take(groups.checked_mul(4).ok_or(Malformed)?)?;
        let (own_pid, cwd) = (r.string()?, r.string()?);
        let (programs, argv, env) = (r.strings(programs)?, r.strings(argv)?, r.strings(env)?);
        if !r.0.is_empty() || programs.is_empty() || argv.is_empty() {
            return Err(Malformed);
        }
        Ok(Self { fixed, fds, groups, own_pid, cwd, programs, argv, env })
    }
}

impl Fixed {
    fn put(&self, put: &mut impl FnMut(&[u8])) {
        let Self { only, identity, no_new_privs, umask, nice, policy, priority, processors, ignored, blocked, limits } =
            self;
        let flag = |on: bool, flag: u64| if on { flag } else { 0 };
        let flags = flag(only.is_some(), flags::ONLY)
            | flag(identity.is_some(), flags::IDENTITY)
            | flag(*no_new_privs, flags::NO_NEW_PRIVS);
        let (dev, ino) = only.unwrap_or_default();
        [flags, dev, ino].iter().for_each(|n| put(&n.to_ne_bytes()));
        let Identity { uid, gid, capabilities } = identity.unwrap_or_default();
        [*umask, 0, uid, gid].iter().for_each(|n| put(&n.to_ne_bytes()));
        let Capabilities { inheritable, permitted, bounding, ambient } = capabilities;
        [inheritable, permitted, bounding, ambient, *ignored, *blocked].iter().for_each(|n| put(&n.to_ne_bytes()));
        [*nice, *policy, *priority, 0].iter().for_each(|n| put(&n.to_ne_bytes()));
        processors.iter().for_each(|n| put(&n.to_ne_bytes()));
        limits.iter().flat_map(|(soft, hard)| [soft, hard]).for_each(|n| put(&n.to_ne_bytes()));
    }

    #[inline]
    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (flags, dev, ino) = (r.u64()?, r.u64()?, r.u64()?);
        let (umask, gap, uid, gid) = (r.u32()?, r.u32()?, r.u32()?, r.u32()?);
        let capabilities =
            Capabilities { inheritable: r.u64()?, permitted: r.u64()?, bounding: r.u64()?, ambient: r.u64()? };
        let (ignored, blocked) = (r.u64()?, r.u64()?);
        let (nice, policy, priority, other_gap) = (r.i32()?, r.i32()?, r.i32()?, r.i32()?);
        if flags & !flags::ALL != 0 || gap != 0 || other_gap != 0 {
            return Err(Malformed);
        }
        let mut processors = [0; PROCESSOR_WORDS];
        for word in &mut processors {
            *word = r.u64()?;
        }
        let mut limits = [(0, 0); LIMITS];
        for limit in &mut limits {
            *limit = (r.u64()?, r.u64()?);
        }
        Ok(Self {
            only: (flags & flags::ONLY != 0).then_some((dev, ino)),
            identity: (flags & flags::IDENTITY != 0).then_some(Identity { uid, gid, capabilities }),
            no_new_privs: flags & flags::NO_NEW_PRIVS != 0,
            umask,
            nice,
            policy,
            priority,
            processors,
            ignored,
            blocked,
            limits,
        })
    }
}

/// What has not been read yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    #[inline]
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    #[inline]
    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_ne_bytes)
    }

    #[inline]
    fn i32(&mut self) -> Result<i32, Malformed> {
        self.array().map(i32::from_ne_bytes)
    }

    #[inline]
    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_ne_bytes)
    }

    #[inline]
    fn string(&mut self) -> Result<&'a CStr, Malformed> {
        let (string, rest) = crate::lists::split_string(self.0).ok_or(Malformed)?;
        self.0 = rest;
        Ok(string)
    }

    #[inline]
    fn strings(&mut self, count: usize) -> Result<Strings<'a>, Malformed> {
        let (strings, rest) = Strings::split(self.0, count)?;
        self.0 = rest;
        Ok(strings)
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
