//! File locks of the near side's programs, taken on the host so that host processes meet them.
//!
//! A POSIX or OFD lock belongs to (inode, owner); all owners live in this one process, so each gets an open file of its
//! own and locks by `F_OFD_*`, which conflicts with other processes' `F_SETLK` as well. Closing that file gives all its
//! locks back: at a POSIX owner's FLUSH, or at the RELEASE of the handle that an OFD lock was taken through (`holders`).
//! A flock(2) belongs to the near open file, and the far open file stands for it.
//!
//! Who has to wait does so on a thread of its own, so that the pool goes on; INTERRUPT ends the wait. Deadlocks
//! between owners are not detected (OFD locks never say EDEADLK).

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::files::Open;
use super::holders::Holders;
use crate::limits::LOCK_WAITS_MAX;
use crate::qtfs::abi::Lock;
use crate::sys::file::reopen;
use crate::sys::file::{flock, ofd_lock};
use crate::sys::kick::Kickable;

/// An INTERRUPT may overtake the wait that it is meant for: so many are remembered.
const EARLY_MAX: usize = 256;
const WAITER_STACK: usize = 64 << 10;

/// One owner's own open file of one inode.
#[derive(Debug)]
pub(super) struct LockFile {
    file: OwnedFd,
    /// Who locked last, for F_GETLK of another near program.
    pid: AtomicU32,
}

impl LockFile {
    /// A thread of the same owner may wait for another lock through the same file, which therefore stays open.
    fn unlock(&self) {
        let _ = ofd_lock(self.file.as_fd(), libc::F_OFD_SETLK, &mut whole_file(libc::F_UNLCK));
    }
}

#[derive(Debug)]
struct Wait {
    cancelled: AtomicBool,
    thread: Mutex<Option<Kickable>>,
}

#[derive(Debug, Default)]
struct Waits {
    waiting: HashMap<u64, Arc<Wait>>,
    early: VecDeque<u64>,
    closed: bool,
}

#[derive(Debug)]
pub(super) struct Locks {
    /// With what a lock's own open file is opened.
    access: OFlag,
    holders: Mutex<Holders<LockFile>>,
    waits: Arc<Mutex<Waits>>,
}

/// What a lock request wants done, with everything that it needs.
#[derive(Debug, Clone)]
pub(super) enum Target {
    Posix(Arc<LockFile>, Lock),
    Flock(Arc<Open>, i32),
}

impl Target {
    fn apply(&self, wait: bool) -> nix::Result<()> {
        match self {
            Self::Posix(file, lock) => {
                file.pid.store(lock.pid, Ordering::Relaxed);
                let command = if wait { libc::F_OFD_SETLKW } else { libc::F_OFD_SETLK };
                ofd_lock(file.file.as_fd(), command, &mut native(lock)?)
            }
            Self::Flock(open, operation) => {
                flock(open.file.as_fd(), if wait { *operation } else { operation | libc::LOCK_NB })
            }
        }
    }
}

impl Locks {
    /// Where the peer may only read, no file of the host is opened for writing: the host could not execute it meanwhile
    /// (ETXTBSY).
    pub(super) fn new(read_only: bool) -> Self {
        let access = if read_only { OFlag::O_RDONLY } else { OFlag::O_RDWR };
        Self { access, holders: Mutex::default(), waits: Arc::default() }
    }

    /// What the request is about; `None` when there is nothing to unlock.
    pub(super) fn target(&self, open: &Arc<Open>, lock: &Lock, is_flock: bool) -> nix::Result<Option<Target>> {
        if is_flock {
            let operation = match i32::try_from(lock.kind).unwrap_or(-1) {
                libc::F_RDLCK => libc::LOCK_SH,
                libc::F_WRLCK => libc::LOCK_EX,
                libc::F_UNLCK => libc::LOCK_UN,
                _ => return Err(Errno::EINVAL),
            };
            return Ok(Some(Target::Flock(open.clone(), operation)));
        }
        if i32::try_from(lock.kind) == Ok(libc::F_UNLCK) {
            return Ok(self.holders().find(open.node.id, lock.owner).map(|file| Target::Posix(file, *lock)));
        }
        let make = || Ok(LockFile { file: self.open_for_lock(open)?, pid: AtomicU32::new(0) });
        let file = self.holders().take((open.node.id, lock.owner), lock.fh, make)?;
        Ok(Some(Target::Posix(file, *lock)))
    }

    fn holders(&self) -> MutexGuard<'_, Holders<LockFile>> {
        self.holders.lock().expect("never poisoned: panics abort")
    }

    pub(super) fn set(&self, target: &Target) -> nix::Result<()> {
        target.apply(false)
    }

    /// Write locks need a writable fd. Whether the request's own handle is one was asked before (`rights`).
    fn open_for_lock(&self, open: &Open) -> nix::Result<OwnedFd> {
        match reopen(open.file.as_fd(), self.access) {
            Err(Errno::EROFS | Errno::ETXTBSY | Errno::EACCES | Errno::EPERM | Errno::EISDIR) => {
                reopen(open.file.as_fd(), OFlag::O_RDONLY)
            }
            other => other,
        }
    }

    /// The first lock in the way, or `lock` with F_UNLCK.
    pub(super) fn test(&self, open: &Arc<Open>, lock: &Lock) -> nix::Result<Lock> {
        let mut found = native(lock)?;
        let own = self.holders().find(open.node.id, lock.owner);
        match own {
            Some(own) => ofd_lock(own.file.as_fd(), libc::F_OFD_GETLK, &mut found)?,
            // Any other open file will do: this owner has no lock that could be in its own way.
            None => ofd_lock(self.open_for_lock(open)?.as_fd(), libc::F_OFD_GETLK, &mut found)?,
        }
        if i32::from(found.l_type) == libc::F_UNLCK {
            return Ok(Lock { kind: u32::try_from(libc::F_UNLCK).expect("2"), pid: 0, ..*lock });
        }
        let start = u64::try_from(found.l_start).unwrap_or(0);
        let end = match u64::try_from(found.l_len) {
            Ok(0) | Err(_) => i64::MAX.cast_unsigned(),
            Ok(len) => start.saturating_add(len - 1),
        };
        let kind = u32::try_from(found.l_type).unwrap_or(0);
        // A host pid means another process here, or none: then 0. OFD locks say -1: perhaps one of ours.
        let pid = if found.l_pid == -1 { self.holder(open.node.id, lock.owner) } else { 0 };
        Ok(Lock { start, end, kind, pid, ..*lock })
    }

    /// The near pid that holds a lock of this node, if there is just one other owner.
    fn holder(&self, node: u64, asker: u64) -> u32 {
        let holders = self.holders();
        let mut others = holders.others(node, asker);
        match (others.next(), others.next()) {
            (Some(only), None) => only.pid.load(Ordering::Relaxed),
            _ => 0,
        }
    }

    /// The owner closed an fd of this inode: POSIX gives all its locks there back.
    pub(super) fn release_owner(&self, node: u64, owner: u64) {
        let gone = self.holders().flushed(node, owner);
        gone.iter().for_each(|file| file.unlock());
    }

    /// Nobody has this open file any more: its locks end with it.
    pub(super) fn release_handle(&self, node: u64, handle: u64) {
        let gone = self.holders().released(node, handle);
        gone.iter().for_each(|file| file.unlock());
    }

    /// Waits on a thread of its own; `done` gets the result there.
    pub(super) fn wait(
        &self,
        unique: u64,
        target: Target,
        done: impl FnOnce(nix::Result<()>) + Send + 'static,
    ) -> nix::Result<()> {
        let wait = Arc::new(Wait { cancelled: AtomicBool::new(false), thread: Mutex::new(None) });
        {
            let mut waits = self.waits.lock().expect("never poisoned: panics abort");
            if waits.closed || waits.waiting.len() >= LOCK_WAITS_MAX {
                return Err(Errno::ENOLCK);
            }
            if let Some(at) = waits.early.iter().position(|u| *u == unique) {
                waits.early.remove(at);
                return Err(Errno::EINTR);
            }
            if waits.waiting.contains_key(&unique) {
                return Err(Errno::EINVAL);
            }
            waits.waiting.insert(unique, wait.clone());
        }
        let waits = self.waits.clone();
        let body = move || {
            *wait.thread.lock().expect("never poisoned: panics abort") = Some(Kickable::this_thread());
            let result = wait_for(&target, &wait.cancelled);
            drop(target);
            waits.lock().expect("never poisoned: panics abort").waiting.remove(&unique);
            done(result);
        };
        let started = std::thread::Builder::new().name("lock-wait".into()).stack_size(WAITER_STACK).spawn(body);
        if started.is_err() {
            self.waits.lock().expect("never poisoned: panics abort").waiting.remove(&unique);
            return Err(Errno::ENOLCK);
        }
        Ok(())
    }

    /// The program that waits got a signal.
    pub(super) fn interrupt(&self, unique: u64) {
        let mut waits = self.waits.lock().expect("never poisoned: panics abort");
        let Some(wait) = waits.waiting.get(&unique).cloned() else {
            if waits.early.len() == EARLY_MAX {
                waits.early.pop_front();
            }
            waits.early.push_back(unique);
            return;
        };
        drop(waits);
        wait.cancelled.store(true, Ordering::SeqCst);
        let waits = self.waits.clone();
        let kick = move || kick_until(&wait, || waits.lock().expect("never poisoned").waiting.contains_key(&unique));
        // Without a thread there is no wait to end either: the limit is on threads.
        let _ = std::thread::Builder::new().name("lock-kick".into()).stack_size(WAITER_STACK).spawn(kick);
    }

    /// The link is gone: every wait ends, and none begins.
    pub(super) fn close(&self) {
        let all: Vec<_> = {
            let mut waits = self.waits.lock().expect("never poisoned: panics abort");
            waits.closed = true;
            waits.waiting.iter().map(|(u, w)| (*u, w.clone())).collect()
        };
        for (_, wait) in &all {
            wait.cancelled.store(true, Ordering::SeqCst);
        }
        for (unique, wait) in &all {
            kick_until(wait, || self.waits.lock().expect("never poisoned").waiting.contains_key(unique));
        }
        self.holders().clear();
    }
}

/// A signal that comes just before the call blocks is lost, so it is sent until the waiter is out.
fn kick_until(wait: &Wait, waiting: impl Fn() -> bool) {
    while waiting() {
        if let Some(thread) = *wait.thread.lock().expect("never poisoned: panics abort") {
            thread.kick();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn wait_for(target: &Target, cancelled: &AtomicBool) -> nix::Result<()> {
    loop {
        if cancelled.load(Ordering::SeqCst) {
            return Err(Errno::EINTR);
        }
        match target.apply(true) {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

fn whole_file(kind: i32) -> libc::flock {
    let kind = libc::c_short::try_from(kind).expect("a lock type");
    let set = libc::c_short::try_from(libc::SEEK_SET).expect("0");
    libc::flock { l_type: kind, l_whence: set, l_start: 0, l_len: 0, l_pid: 0 }
}

fn native(lock: &Lock) -> nix::Result<libc::flock> {
    let kind = i32::try_from(lock.kind).unwrap_or(-1);
    if !matches!(kind, libc::F_RDLCK | libc::F_WRLCK | libc::F_UNLCK) {
        return Err(Errno::EINVAL);
    }
    let start = i64::try_from(lock.start).map_err(|_| Errno::EINVAL)?;
    let end = i64::try_from(lock.end).map_err(|_| Errno::EINVAL)?;
    if end < start {
        return Err(Errno::EINVAL);
    }
    let len = if end == i64::MAX { 0 } else { end - start + 1 };
    Ok(libc::flock { l_start: start, l_len: len, ..whole_file(kind) })
}
