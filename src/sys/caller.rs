//! One thread acting for a remote caller: whose files it makes, with which umask.
//!
//! Only the ids that own new files change. The capabilities stay (SECBIT_NO_SETUID_FIXUP), because the machine that
//! knows the caller's groups and capabilities has checked permission already. All of this is per thread.

use std::cell::Cell;
use std::marker::PhantomData;

use nix::errno::Errno;

const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
const CAP_FSETID: u32 = 4;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

thread_local! {
    static READY: Cell<bool> = const { Cell::new(false) };
}

/// Gives this thread a umask of its own and ids that change without its capabilities. Needs root.
pub fn prepare_thread() -> nix::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
    // SAFETY: PR_SET_SECUREBITS takes one integer.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) })?;
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    READY.set(true);
    Ok(())
}

/// While it lives, files made by this thread belong to the caller.
#[derive(Debug)]
pub struct ActingFor {
    own: (u32, u32),
    /// The ids are the thread's.
    _not_send: PhantomData<*const ()>,
}

impl ActingFor {
    pub fn enter(uid: u32, gid: u32, umask: u32) -> nix::Result<Self> {
        assert!(READY.get(), "prepare_thread comes first");
        let acting = Self { own: (set_fsuid(u32::MAX), set_fsgid(u32::MAX)), _not_send: PhantomData };
        set_fsgid(gid);
        set_fsuid(uid);
        // Both answer the old id whether or not they did it; only a second call tells.
        if set_fsuid(u32::MAX) != uid || set_fsgid(u32::MAX) != gid {
            return Err(Errno::EPERM);
        }
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask & 0o777));
        Ok(acting)
    }
}

impl Drop for ActingFor {
    fn drop(&mut self) {
        nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        set_fsuid(self.own.0);
        set_fsgid(self.own.1);
        assert_eq!((set_fsuid(u32::MAX), set_fsgid(u32::MAX)), self.own, "a thread gets its own ids back");
    }
}

/// The old id; an id of all ones changes nothing.
fn set_fsuid(uid: u32) -> u32 {
    // SAFETY: no memory is passed.
    unsafe { libc::setfsuid(uid) }.cast_unsigned()
}

fn set_fsgid(gid: u32) -> u32 {
    // SAFETY: no memory is passed.
    unsafe { libc::setfsgid(gid) }.cast_unsigned()
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapSets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// While it lives, this thread lacks CAP_FSETID, so that a write clears set-user-id bits as for an ordinary caller.
#[derive(Debug)]
pub struct WithoutFsetid {
    had: bool,
    _not_send: PhantomData<*const ()>,
}

impl WithoutFsetid {
    pub fn enter() -> nix::Result<Self> {
        let had = change_effective(|e| e & !(1 << CAP_FSETID))? & (1 << CAP_FSETID) != 0;
        Ok(Self { had, _not_send: PhantomData })
    }
}

impl Drop for WithoutFsetid {
    fn drop(&mut self) {
        if self.had {
            change_effective(|e| e | 1 << CAP_FSETID).expect("a permitted capability may be raised again");
        }
    }
}

/// Changes the first word of the effective set; answers what it was.
fn change_effective(change: impl Fn(u32) -> u32) -> nix::Result<u32> {
    let mut header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut sets = [CapSets::default(); 2];
    // SAFETY: version 3 reads and writes two CapSets; pid 0 is this thread.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) })?;
    let old = sets[0].effective;
    sets[0].effective = change(old);
    // SAFETY: as above; the kernel only reads.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) })?;
    Ok(old)
}
