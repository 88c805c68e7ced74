//! File links that are being served: how many each key may have, and how one ends from outside.
//!
//! ```text
//!   HELLO ──▶ admit: a place of its key's ──▶ begun ──first request──▶ served ──▶ ended
//!                                               └── none in time, or its key is trusted no longer ──▶ closed
//! ```

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::conn::{Closer, Conn, FirstCame};
use crate::auth::PublicKey;
use crate::limits::{FILE_LINKS_A_KEY, FILE_LINKS_MAX, FILE_MOUNT_DEADLINE_MS};
use crate::link::worker::peer::Known;
use crate::sys::quota::{Full, Limits, Place, Quota};

/// A key's place for one file link; nobody has a key in plaintext.
pub(super) type FilePlace = Place<Option<PublicKey>>;

pub(super) struct FileLinks {
    places: Quota<Option<PublicKey>>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    next: u64,
    links: Vec<Link>,
}

struct Link {
    /// Of our own, to find it again.
    number: u64,
    known: Known,
    closer: Closer,
    begun: Instant,
    first_came: FirstCame,
}

impl Default for FileLinks {
    fn default() -> Self {
        let places = Quota::new(Limits { each: FILE_LINKS_A_KEY, all: FILE_LINKS_MAX });
        Self { places, open: Mutex::default() }
    }
}

impl FileLinks {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().expect("no holder panics: panic is abort")
    }

    pub(super) fn take_place(&self, known: &Known) -> Result<FilePlace, Full> {
        self.places.take(known.key)
    }

    /// Until the returned number is given back to `ended`.
    pub(super) fn begun(&self, conn: &Conn) -> std::io::Result<u64> {
        let (closer, begun) = (conn.closer()?, Instant::now());
        let mut open = self.open();
        let number = open.next;
        open.next += 1;
        open.links.push(Link { number, known: conn.known.clone(), closer, begun, first_came: conn.first_came() });
        Ok(number)
    }

    pub(super) fn ended(&self, number: u64) {
        self.open().links.retain(|link| link.number != number);
    }

    /// Ends those whose first request has not come in time, however slowly it comes.
    pub(super) fn end_late(&self, now: Instant) {
        let patience = Duration::from_millis(FILE_MOUNT_DEADLINE_MS);
        for link in &self.open().links {
            if now.duration_since(link.begun) >= patience && !link.first_came.is_told() {
                tracing::warn!(
                    peer = link.known.name,
                    "it mounted nothing within {FILE_MOUNT_DEADLINE_MS} ms: its file link ends"
                );
                link.first_came.tell();
                link.closer.close();
            }
        }
    }

    /// Ends those whose key is trusted no longer.
    pub(super) fn end_those(&self, fallen: impl Fn(&Known) -> bool) {
        for link in self.open().links.iter().filter(|link| fallen(&link.known)) {
            tracing::warn!(peer = link.known.name, "its key is not trusted any more: its file link ends");
            link.closer.close();
        }
    }
}
