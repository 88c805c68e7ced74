//! The clock of a mount: is the link alive, are aliases still wanted, does anybody still have the mount?
//!
//! Aliases hold the file system, as any open file would, and so do the connections that came through them. So when no
//! mount namespace has it any more, the aliases go; and when no program has a file of it open either (after a lazy
//! umount one may), the mount is over. A namespace without a process in it is not seen.

use std::collections::HashSet;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Near;
use crate::limits::{ALIAS_SWEEP_MS, DEAD_AFTER_MS, PING_AFTER_MS};
use crate::link::conn::Closer;
use crate::sys::file;

/// This thread's namespace, which is where it was mounted.
const TABLE: &str = "/proc/thread-self/mountinfo";
const TICK: Duration = Duration::from_millis(500);

/// `device`: the mount's. The thread ends with the mount.
pub(super) fn watch(near: &Near, device: u64) {
    let device = format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let table = File::open(TABLE);
    let mut swept = Instant::now();
    // It may have been unmounted before the table was opened.
    let mut look = true;
    while !near.is_over() {
        if look && !lists(TABLE, &device) && !elsewhere(&device) {
            near.aliases.close();
            return last_users(near);
        }
        tick(near);
        if swept.elapsed() >= Duration::from_millis(ALIAS_SWEEP_MS) {
            swept = Instant::now();
            near.sweep();
        }
        look = changed(table.as_ref().ok()) || look && !lists(TABLE, &device);
    }
}

/// Waits for a tick, or until this namespace changes.
fn changed(table: Option<&File>) -> bool {
    match table.map(|t| file::mounts_changed(t, TICK)) {
        Some(Ok(changed)) => changed,
        Some(Err(_)) | None => {
            std::thread::sleep(TICK);
            true
        }
    }
}

/// Nobody finds the mount any more; who has a file open keeps it.
fn last_users(near: &Near) {
    while !near.is_over() && !near.opens.is_empty() {
        std::thread::sleep(TICK);
        tick(near);
    }
    near.finish();
}

fn tick(near: &Near) {
    near.aliases.let_go(&near.device);
    let silence = near.link.silence();
    if silence >= Duration::from_millis(DEAD_AFTER_MS) {
        near.link.cut();
    } else if silence >= Duration::from_millis(PING_AFTER_MS) {
        near.link.ping();
    }
}

fn lists(table: &str, device: &str) -> bool {
    // A table that can't be read belongs to a process that has ended.
    let table = std::fs::read_to_string(table).unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(2) == Some(device))
}

/// Whether any process lives in a mount namespace that has the mount.
fn elsewhere(device: &str) -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else { return false };
    let mut seen = HashSet::new();
    processes.flatten().any(|p| {
        let path = p.path();
        let Ok(namespace) = std::fs::read_link(path.join("ns/mnt")) else { return false };
        seen.insert(namespace) && lists(&path.join("mountinfo").to_string_lossy(), device)
    })
}

/// Ends a connection that has not answered in time.
pub(super) struct Deadline {
    done: Arc<AtomicBool>,
    late: Arc<AtomicBool>,
}

impl Deadline {
    pub(super) fn start(closer: &Closer, limit: Duration) -> std::io::Result<Self> {
        let deadline = Self { done: Arc::default(), late: Arc::default() };
        let (done, late, closer) = (deadline.done.clone(), deadline.late.clone(), closer.try_clone()?);
        let body = move || {
            let end = Instant::now() + limit;
            while !done.load(Ordering::Acquire) {
                if Instant::now() >= end {
                    late.store(true, Ordering::Release);
                    return closer.close();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        std::thread::Builder::new().name("deadline".into()).spawn(body)?;
        Ok(deadline)
    }

    pub(super) fn in_time(&self) -> bool {
        self.done.store(true, Ordering::Release);
        !self.late.load(Ordering::Acquire)
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Release);
    }
}
