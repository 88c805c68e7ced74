//! The near end of the file link: requests out, replies in, and what happens when it breaks.
//!
//! ```text
//!   Down ──dialled, Mounted::Yes──▶ Up ──read or write fails, or silence──▶ Down
//!                                          every pending request: EIO
//! ```
//!
//! A request is in `pending` from before it is sent until whoever takes it out answers it: the reply, or the end of
//! the link. So each is answered once. While the link is down each request is EIO at once.

use std::collections::HashMap;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::link::conn::Closer;
use crate::qtfs::abi::op;
use crate::qtfs::wire::{HEADER_LEN, Header, Kind, frame};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pending {
    pub(super) opcode: u32,
    pub(super) node: u64,
}

impl Pending {
    /// Lock waits last as long as they like, so they don't take a place.
    fn takes_place(self) -> bool {
        self.opcode != op::SETLKW
    }
}

struct Places {
    used: usize,
    max: usize,
    up: bool,
    /// Threads in `take_place`: to wake nobody costs a system call for each reply.
    waiting: usize,
}

pub(super) struct Link {
    writer: Mutex<Option<Box<dyn Write + Send>>>,
    closer: Mutex<Option<Closer>>,
    pending: Mutex<HashMap<u64, Pending>>,
    places: Mutex<Places>,
    place_free: Condvar,
    born: Instant,
    /// When the far side was last heard, in ms since `born`.
    heard_ms: AtomicU64,
}

fn locked<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().expect("never poisoned: panics abort")
}

impl Link {
    pub(super) fn new() -> Self {
        Self {
            writer: Mutex::new(None),
            closer: Mutex::new(None),
            pending: Mutex::new(HashMap::new()),
            places: Mutex::new(Places { used: 0, max: 0, up: false, waiting: 0 }),
            place_free: Condvar::new(),
            born: Instant::now(),
            heard_ms: AtomicU64::new(0),
        }
    }

    pub(super) fn up(&self, writer: Box<dyn Write + Send>, closer: Closer, inflight: usize) {
        self.heard();
        *locked(&self.closer) = Some(closer);
        *locked(&self.writer) = Some(writer);
        let mut places = locked(&self.places);
        (places.used, places.max, places.up) = (0, inflight, true);
    }

    /// Ends the connection; the thread that reads it sees the end and calls `down`.
    pub(super) fn cut(&self) {
        if let Some(closer) = &*locked(&self.closer) {
            closer.close();
        }
    }

    /// Nothing is sent any more; gives back all that was not answered.
    pub(super) fn down(&self) -> Vec<(u64, Pending)> {
        // First the connection, so that no writer is stuck holding its lock.
        self.cut();
        locked(&self.places).up = false;
        self.place_free.notify_all();
        *locked(&self.writer) = None;
        *locked(&self.closer) = None;
        locked(&self.pending).drain().collect()
    }

    pub(super) fn heard(&self) {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard_ms.store(now, Ordering::Relaxed);
    }

    pub(super) fn silence(&self) -> Duration {
        self.born.elapsed().saturating_sub(Duration::from_millis(self.heard_ms.load(Ordering::Relaxed)))
    }

    /// Sends a PING unless a request is being written, which is as good.
    pub(super) fn ping(&self) {
        if let Ok(mut writer) = self.writer.try_lock()
            && let Some(out) = writer.as_mut()
            && out.write_all(&frame(Kind::Ping, &[])).is_err()
        {
            self.cut();
        }
    }

    /// Sends a request that is at `buf[HEADER_LEN..]`; the room in front is for the header. `Err`: it was not sent and
    /// is the caller's to answer.
    pub(super) fn send(&self, buf: &mut [u8], unique: u64, pending: Pending) -> Result<(), Errno> {
        let silent = op::is_silent(pending.opcode);
        if !silent {
            if pending.takes_place() {
                self.take_place()?;
            }
            locked(&self.pending).insert(unique, pending);
        }
        if self.write(buf, Kind::Request) || silent {
            return Ok(());
        }
        // Down: if `down` was faster, it has answered.
        match self.answered(unique) {
            Some(_) => Err(Errno::EIO),
            None => Ok(()),
        }
    }

    /// The same for a frame that has no answer.
    pub(super) fn tell(&self, kind: Kind, payload: &[u8]) {
        let mut buf = vec![0; HEADER_LEN];
        buf.extend_from_slice(payload);
        self.write(&mut buf, kind);
    }

    fn write(&self, buf: &mut [u8], kind: Kind) -> bool {
        let header = Header { len: buf.len() - HEADER_LEN, kind }.encode();
        buf[..HEADER_LEN].copy_from_slice(&header);
        let mut writer = locked(&self.writer);
        let Some(out) = writer.as_mut() else { return false };
        if out.write_all(buf).is_err() {
            // What was half sent is answered by `down`.
            self.cut();
        }
        true
    }

    fn take_place(&self) -> Result<(), Errno> {
        let mut places = locked(&self.places);
        while places.up && places.used >= places.max {
            places.waiting += 1;
            places = self.place_free.wait(places).expect("never poisoned: panics abort");
            places.waiting -= 1;
        }
        if !places.up {
            return Err(Errno::EIO);
        }
        places.used += 1;
        Ok(())
    }

    pub(super) fn is_pending(&self, unique: u64) -> bool {
        locked(&self.pending).contains_key(&unique)
    }

    /// A reply has come: what it is to. `None`: nobody waits for it.
    pub(super) fn answered(&self, unique: u64) -> Option<Pending> {
        let pending = locked(&self.pending).remove(&unique)?;
        if pending.takes_place() {
            let mut places = locked(&self.places);
            places.used = places.used.saturating_sub(1);
            let wanted = places.waiting > 0;
            drop(places);
            if wanted {
                self.place_free.notify_one();
            }
        }
        Some(pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qtfs::abi::{IN_HEADER, InHeader};

    fn request(unique: u64) -> Vec<u8> {
        let mut buf = vec![0; HEADER_LEN];
        buf.extend_from_slice(&InHeader::encode(op::STATFS, unique, 1, &[]));
        assert_eq!(buf.len(), HEADER_LEN + IN_HEADER);
        buf
    }

    fn closer() -> Closer {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        Closer::of(stream)
    }

    #[test]
    fn a_request_is_answered_once_whoever_is_first() {
        let link = Link::new();
        let pending = Pending { opcode: op::STATFS, node: 1 };
        assert_eq!(link.send(&mut request(2), 2, pending), Err(Errno::EIO), "the link is down");
        link.up(Box::new(std::io::sink()), closer(), 2);
        assert_eq!(link.send(&mut request(4), 4, pending), Ok(()));
        assert_eq!(link.send(&mut request(6), 6, pending), Ok(()));
        assert_eq!(link.answered(4), Some(pending));
        assert_eq!(link.answered(4), None);
        assert_eq!(link.down(), vec![(6, pending)]);
        assert_eq!(link.answered(6), None);
        assert_eq!(link.send(&mut request(8), 8, pending), Err(Errno::EIO));
    }

    #[test]
    fn who_waits_for_a_place_is_let_go_when_the_link_breaks() {
        let link = std::sync::Arc::new(Link::new());
        let pending = Pending { opcode: op::STATFS, node: 1 };
        link.up(Box::new(std::io::sink()), closer(), 1);
        assert_eq!(link.send(&mut request(2), 2, pending), Ok(()));
        let second = {
            let link = link.clone();
            std::thread::spawn(move || link.send(&mut request(4), 4, pending))
        };
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(link.down(), vec![(2, pending)]);
        assert_eq!(second.join().unwrap(), Err(Errno::EIO));
    }
}
