//! Who has links now, and whether that is still right: trust may end while they live.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::conn::{Closer, Conn};
use super::guard::Known;
use super::inbox::Cmd;
use super::node::Node;

/// File links that are being served, by numbers of our own.
#[derive(Default)]
pub(super) struct FileLinks {
    next: AtomicU64,
    open: Mutex<Vec<(u64, Known, Closer)>>,
}

impl FileLinks {
    fn open(&self) -> MutexGuard<'_, Vec<(u64, Known, Closer)>> {
        self.open.lock().expect("no holder panics: panic is abort")
    }

    /// Until the returned number is given back to `ended`.
    pub(super) fn begun(&self, conn: &Conn) -> std::io::Result<u64> {
        let (number, closer) = (self.next.fetch_add(1, Ordering::Relaxed), conn.closer()?);
        self.open().push((number, conn.known.clone(), closer));
        Ok(number)
    }

    pub(super) fn ended(&self, number: u64) {
        self.open().retain(|(other, ..)| *other != number);
    }
}

impl Node {
    /// Ends every link whose key is trusted no longer.
    pub(super) fn recheck(&self) {
        let Some(authority) = self.access().authority() else { return };
        let fallen = |known: &Known| known.key.is_some_and(|key| !authority.still_trusts(&key));
        for (peer, pairs) in self.sessions_now() {
            if fallen(&peer.known) {
                tracing::warn!(%peer, "its key is not trusted any more: its session ends");
                for at in pairs {
                    at.inbox.push(Cmd::End { pair: at.pair, reason: "its key is not trusted any more".into() });
                }
            }
        }
        for (_, known, closer) in self.file_links().open().iter() {
            if fallen(known) {
                tracing::warn!(peer = known.name, "its key is not trusted any more: its file link ends");
                closer.close();
            }
        }
    }
}
