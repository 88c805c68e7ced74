//! The audit log: a line for each operation that was allowed or refused, if node.toml asks for one.
//!
//! ```text
//!   note(line) ──try_send──▶ queue of AUDIT_QUEUE_MAX ──▶ its thread ──▶ the file, opened to append
//!                 └─ full: counted; the thread writes how many are missing, where they are missing
//! ```
//!
//! Whoever notes never waits: a worker may. The file is opened by whoever says `keep`, at the start and on HUP, so that
//! logrotate's new file is used from then on.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use crate::errno::{OsResult, Step as _};
use crate::limits::{AUDIT_LINE_MAX, AUDIT_QUEUE_MAX};

struct Audit {
    queue: SyncSender<String>,
    /// The file to go on with.
    next: Mutex<Option<File>>,
    /// Since the thread has looked.
    missing: AtomicU64,
    /// Whether node.toml still asks for it.
    wanted: AtomicBool,
}

static AUDIT: OnceLock<Audit> = OnceLock::new();

/// How long a new file may wait for the thread's look when there is nothing to write.
const LOOK: Duration = Duration::from_secs(1);

/// Keeps the log in that file from now on; `None`: nowhere. Not before signals are taken: it starts a thread.
///
/// # Errors
/// The file cannot be opened to append; what was kept is kept as before.
pub fn keep(path: Option<&Path>) -> OsResult<()> {
    let Some(path) = path else {
        if let Some(audit) = AUDIT.get() {
            audit.wanted.store(false, Ordering::Relaxed);
        }
        return Ok(());
    };
    let opened = OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path);
    let file = opened.step_on("open the audit log", path.display())?;
    let (audit, fresh) = match AUDIT.get() {
        Some(audit) => (audit, None),
        None => {
            let (queue, lines) = sync_channel(AUDIT_QUEUE_MAX);
            let (next, missing, wanted) = (Mutex::default(), AtomicU64::new(0), AtomicBool::new(true));
            (AUDIT.get_or_init(|| Audit { queue, next, missing, wanted }), Some(lines))
        }
    };
    *audit.next.lock().expect("no holder panics: panic is abort") = Some(file);
    audit.wanted.store(true, Ordering::Relaxed);
    if let Some(lines) = fresh {
        std::thread::Builder::new().name("audit".into()).spawn(move || write(audit, &lines)).step("start a thread")?;
    }
    Ok(())
}

/// Notes one operation, if somebody wants to know. The text is made only then.
pub fn note(text: impl FnOnce() -> String) {
    let Some(audit) = AUDIT.get().filter(|audit| audit.wanted.load(Ordering::Relaxed)) else { return };
    if audit.queue.try_send(line(SystemTime::now(), &text())).is_err() {
        audit.missing.fetch_add(1, Ordering::Relaxed);
    }
}

/// With its time, and on one line whatever names are in it.
fn line(now: SystemTime, text: &str) -> String {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut line = format!("{}.{:03} ", seconds.as_secs(), seconds.subsec_millis());
    line.extend(text.chars().map(|c| if c.is_control() { '?' } else { c }).take(AUDIT_LINE_MAX));
    line.push('\n');
    line
}

fn write(audit: &Audit, lines: &Receiver<String>) {
    let (mut file, mut failed) = (None::<File>, false);
    loop {
        let first = lines.recv_timeout(LOOK).ok();
        if let Some(next) = audit.next.lock().expect("no holder panics: panic is abort").take() {
            file = Some(next);
        }
        let missing = audit.missing.swap(0, Ordering::Relaxed);
        let mut batch = match missing {
            0 => String::new(),
            count => line(SystemTime::now(), &format!("{count} lines are missing here: the queue was full")),
        };
        // As many as are there, in one write.
        let more = std::iter::from_fn(|| lines.try_recv().ok()).take(AUDIT_QUEUE_MAX);
        batch.extend(first.into_iter().chain(more));
        let Some(file) = file.as_mut().filter(|_| !batch.is_empty()) else { continue };
        let written = file.write_all(batch.as_bytes());
        match (&written, failed) {
            (Err(e), false) => tracing::error!("the audit log cannot be written, and lines are lost: {e}"),
            (Ok(()), true) => tracing::warn!("the audit log is written again; the lines in between are lost"),
            _ => {}
        }
        failed = written.is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_and_bounded() {
        let then = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_042);
        assert_eq!(line(then, "uds /a\nb: allowed"), "1700000000.042 uds /a?b: allowed\n");
        assert!(line(then, &"x".repeat(1 << 20)).len() < AUDIT_LINE_MAX + 20);
    }
}
