//! The calling thread as somebody else: effective uid and gid, groups, and no capability that was not theirs.
//!
//! libc's setuid family changes every thread of the process; the raw system calls used here change this one alone. The
//! real and saved ids stay, so that the way back is open and the caller can't signal the thread. SO_PEERCRED of whatever
//! this thread connects to, or listens on, shows the effective ids and the groups.

use std::marker::PhantomData;

use crate::errno::Errno;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// A thread that knows how to return to what it was when this was made. Stays on its thread.
#[derive(Debug)]
pub struct ThreadIdentity {
    own: Identity,
    own_caps: Caps,
    _this_thread: PhantomData<*const ()>,
}

/// What became of the work and of the thread.
#[derive(Debug)]
pub struct Outcome<T> {
    /// The errno: the identity could not be assumed, and the work was not done.
    pub result: Result<T, Errno>,
    /// `false`: the thread is not itself any more, and must end without serving anybody else.
    pub restored: bool,
}

impl ThreadIdentity {
    pub fn of_this_thread() -> Result<Self, Errno> {
        Ok(Self { own: current()?, own_caps: caps()?, _this_thread: PhantomData })
    }

    /// Does `work` as `who`, or not at all.
    ///
    /// An identity that the thread has already needs no privilege. Anything but uid 0 works without any effective
    /// capability, so that files are opened with the permissions of the caller and nothing else.
    pub fn act_as<T>(&self, who: &Identity, work: impl FnOnce() -> T) -> Outcome<T> {
        if self.is_as_it_is(who) {
            return Outcome { result: Ok(work()), restored: true };
        }
        let result = self.assume(who).map(|()| work());
        Outcome { result, restored: self.restore().is_ok() }
    }

    /// Root for root, as a rule: there is nothing to assume, and so nothing to restore.
    fn is_as_it_is(&self, who: &Identity) -> bool {
        let Identity { uid, gid, groups } = &self.own;
        (*uid, who.uid) == (0, 0) && *gid == who.gid && same_groups(groups, &who.groups)
    }

    fn assume(&self, who: &Identity) -> Result<(), Errno> {
        // The list's order means nothing to the kernel, which sorts it.
        if !same_groups(&self.own.groups, &who.groups) {
            set_groups(&who.groups)?;
        }
        if who.gid != self.own.gid {
            set_gid(who.gid)?;
        }
        if who.uid != self.own.uid {
            set_uid(who.uid)?;
        }
        if who.uid != 0 {
            // Leaving uid 0 has emptied the effective set already, unless securebits say otherwise or we never had uid 0.
            let now = caps()?;
            if now.effective != [0; 2] {
                set_caps(Caps { effective: [0; 2], ..now })?;
            }
        }
        let now = current()?;
        let proven = now.uid == who.uid && now.gid == who.gid && same_groups(&now.groups, &who.groups);
        if proven { Ok(()) } else { Err(Errno::EPERM) }
    }

    fn restore(&self) -> Result<(), Errno> {
        // The uid first: it gives uid 0 its effective capabilities back, which the rest needs.
        set_uid(self.own.uid)?;
        if caps()? != self.own_caps {
            set_caps(self.own_caps)?;
        }
        set_gid(self.own.gid)?;
        let now = current()?;
        if !same_groups(&now.groups, &self.own.groups) {
            set_groups(&self.own.groups)?;
        }
        if current()? == self.own && caps()? == self.own_caps { Ok(()) } else { Err(Errno::EPERM) }
    }
}

fn same_groups(a: &[u32], b: &[u32]) -> bool {
    if a == b {
        return true;
    }
    let sorted = |list: &[u32]| {
        let mut list = list.to_vec();
        list.sort_unstable();
        list
    };
    a.len() == b.len() && sorted(a) == sorted(b)
}

fn result(got: libc::c_long) -> Result<usize, Errno> {
    Errno::result(got).map(|n| usize::try_from(n).expect("a result that is not an error"))
}

fn current() -> Result<Identity, Errno> {
    // SAFETY: a null list of length 0 only asks for the number.
    let count = result(unsafe { libc::syscall(libc::SYS_getgroups, 0, std::ptr::null_mut::<u32>()) })?;
    let mut groups = vec![0u32; count];
    if count > 0 {
        // SAFETY: the kernel writes at most `count` ids, or says EINVAL.
        let got = result(unsafe { libc::syscall(libc::SYS_getgroups, count, groups.as_mut_ptr()) })?;
        groups.truncate(got);
    }
    // SAFETY: neither takes anything nor fails; both read this thread's own credentials.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    Ok(Identity { uid, gid, groups })
}

fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: the kernel reads `len` ids.
    result(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

const UNCHANGED: u32 = u32::MAX;

fn set_gid(gid: u32) -> Result<(), Errno> {
    // -1 would mean "leave it", which is not an identity.
    if gid == UNCHANGED {
        return Err(Errno::EINVAL);
    }
    // SAFETY: three integers.
    result(unsafe { libc::syscall(libc::SYS_setresgid, UNCHANGED, gid, UNCHANGED) }).map(drop)
}

fn set_uid(uid: u32) -> Result<(), Errno> {
    if uid == UNCHANGED {
        return Err(Errno::EINVAL);
    }
    // SAFETY: three integers.
    result(unsafe { libc::syscall(libc::SYS_setresuid, UNCHANGED, uid, UNCHANGED) }).map(drop)
}

/// The three sets of capget(2), version 3: two words each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Caps {
    effective: [u32; 2],
    permitted: [u32; 2],
    inheritable: [u32; 2],
}

/// `_LINUX_CAPABILITY_VERSION_3`, and 0 for this thread.
const CAP_HEADER: [u32; 2] = [0x2008_0522, 0];

fn caps() -> Result<Caps, Errno> {
    let mut header = CAP_HEADER;
    let mut data = [0u32; 6];
    // SAFETY: version 3 writes two elements of three words.
    result(unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr()) })?;
    let [e0, p0, i0, e1, p1, i1] = data;
    Ok(Caps { effective: [e0, e1], permitted: [p0, p1], inheritable: [i0, i1] })
}

fn set_caps(caps: Caps) -> Result<(), Errno> {
    let mut header = CAP_HEADER;
    let [[e0, e1], [p0, p1], [i0, i1]] = [caps.effective, caps.permitted, caps.inheritable];
    let data = [e0, p0, i0, e1, p1, i1];
    // SAFETY: version 3 reads two elements of three words.
    result(unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), data.as_ptr()) }).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn status(line: &str) -> String {
        let all = fs::read_to_string("/proc/thread-self/status").unwrap();
        all.lines().find_map(|l| l.strip_prefix(line)).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn another_identity_has_no_capability_and_the_way_back_restores_all() {
        let me = ThreadIdentity::of_this_thread().unwrap();
        if me.own.uid != 0 {
            crate::skip::skip("needs root to become somebody else");
            return;
        }
        let before = (status("Uid:"), status("Gid:"), status("Groups:"), status("CapEff:"));
        let who = Identity { uid: 65_534, gid: 65_533, groups: vec![12, 11, 70_000] };
        let seen = me.act_as(&who, || (status("Uid:"), status("Gid:"), status("Groups:"), status("CapEff:")));
        assert!(seen.restored);
        let expected = ("0 65534 0 65534", "0 65533 0 65533", "11 12 70000", "0000000000000000");
        let (uid, gid, groups, caps) = seen.result.unwrap();
        assert_eq!((uid.as_str(), gid.as_str(), groups.as_str(), caps.as_str()), expected);
        assert_eq!(before, (status("Uid:"), status("Gid:"), status("Groups:"), status("CapEff:")));
    }

    #[test]
    fn files_are_opened_with_the_callers_permissions() {
        let me = ThreadIdentity::of_this_thread().unwrap();
        if me.own.uid != 0 {
            crate::skip::skip("needs root to become somebody else");
            return;
        }
        let path = std::env::temp_dir().join(format!("uds-identity-{}", std::process::id()));
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let who = Identity { uid: 65_534, gid: 65_534, groups: vec![] };
        let denied = me.act_as(&who, || fs::read(&path).map_err(|e| e.kind()));
        assert_eq!(denied.result, Ok(Err(std::io::ErrorKind::PermissionDenied)));
        assert!(fs::read(&path).is_ok());
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn no_identity_is_made_of_minus_one() {
        let me = ThreadIdentity::of_this_thread().unwrap();
        let who = Identity { uid: u32::MAX, gid: me.own.gid, groups: me.own.groups.clone() };
        let outcome = me.act_as(&who, || ());
        assert_eq!((outcome.result, outcome.restored), (Err(Errno::EINVAL), true));
    }

    #[test]
    fn a_thread_without_privilege_is_itself_and_nobody_else() {
        std::thread::spawn(|| {
            if current().unwrap().uid == 0 {
                // SAFETY: three integers; this thread alone gives root up, for good.
                result(unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) }).unwrap();
            }
            let me = ThreadIdentity::of_this_thread().unwrap();
            let root = Identity { uid: 0, gid: 0, groups: vec![] };
            let mut done = false;
            let outcome = me.act_as(&root, || done = true);
            assert_eq!((outcome.result, outcome.restored, done), (Err(Errno::EPERM), true, false));
            let as_self = me.act_as(&me.own.clone(), || ());
            assert_eq!((as_self.result, as_self.restored), (Ok(()), true));
        })
        .join()
        .unwrap();
    }
}
