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

/// One connection after the other. A request belongs to the one that was up when it got its place: it is sent by no other,
/// whose far side does not know its nodes and did not count it.
struct State {
    /// Which connection this is.
    number: u64,
    up: bool,
    pending: HashMap<u64, Pending>,
    /// Those of `pending` that take a place.
    used: usize,
    max: usize,
    /// Threads that wait for a place: to wake nobody costs a system call for each reply.
    waiting: usize,
}

/// Where frames of the connection of that number are written.
struct Out {
    number: u64,
    writer: Box<dyn Write + Send>,
}

pub(super) struct Link {
    out: Mutex<Option<Out>>,
    closer: Mutex<Option<Closer>>,
    state: Mutex<State>,
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
        let state = State { number: 0, up: false, pending: HashMap::new(), used: 0, max: 0, waiting: 0 };
        Self {
            out: Mutex::new(None),
            closer: Mutex::new(None),
            state: Mutex::new(state),
            place_free: Condvar::new(),
            born: Instant::now(),
            heard_ms: AtomicU64::new(0),
        }
    }

    pub(super) fn up(&self, writer: Box<dyn Write + Send>, closer: Closer, inflight: usize) {
        self.heard();
        *locked(&self.closer) = Some(closer);
        let mut state = locked(&self.state);
        assert!(!state.up && state.pending.is_empty() && state.used == 0, "the last connection went down");
        let number = state.number + 1;
        // Before `state` lets anybody send.
        *locked(&self.out) = Some(Out { number, writer });
        (state.number, state.max, state.up) = (number, inflight, true);
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
        let lost = {
            let mut state = locked(&self.state);
            (state.up, state.used) = (false, 0);
            state.pending.drain().collect()
        };
        self.place_free.notify_all();
        *locked(&self.out) = None;
        *locked(&self.closer) = None;
        lost
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
        if let Ok(mut out) = self.out.try_lock()
            && let Some(out) = out.as_mut()
            && out.writer.write_all(&frame(Kind::Ping, &[])).is_err()
        {
            self.cut();
        }
    }

    /// Sends a request that is at `buf[HEADER_LEN..]`; the room in front is for the header. `Err`: it was not sent and
    /// is the caller's to answer.
    pub(super) fn send(&self, buf: &mut [u8], unique: u64, pending: Pending) -> Result<(), Errno> {
        if op::is_silent(pending.opcode) {
            self.write(buf, Kind::Request, None);
            return Ok(());
        }
        let number = self.take_place(unique, pending)?;
        // If that connection is not there any more, `down` has given the request back already, as all of its.
        self.write(buf, Kind::Request, Some(number));
        Ok(())
    }

    /// The same for a frame that has no answer.
    pub(super) fn tell(&self, kind: Kind, payload: &[u8]) {
        let mut buf = vec![0; HEADER_LEN];
        buf.extend_from_slice(payload);
        self.write(&mut buf, kind, None);
    }

    /// By the connection of that number, or by whichever is up.
    fn write(&self, buf: &mut [u8], kind: Kind, number: Option<u64>) {
        let header = Header { len: buf.len() - HEADER_LEN, kind }.encode();
        buf[..HEADER_LEN].copy_from_slice(&header);
        let mut out = locked(&self.out);
        if let Some(out) = out.as_mut().filter(|out| number.is_none_or(|number| number == out.number))
            && out.writer.write_all(buf).is_err()
        {
            // What was half sent is answered by `down`.
            self.cut();
        }
    }

    /// Waits for a place, if the request takes one; from then on it is pending. The connection that it belongs to.
    fn take_place(&self, unique: u64, pending: Pending) -> Result<u64, Errno> {
        let mut state = locked(&self.state);
        while state.up && pending.takes_place() && state.used >= state.max {
            state.waiting += 1;
            state = self.place_free.wait(state).expect("never poisoned: panics abort");
            state.waiting -= 1;
        }
        if !state.up {
            return Err(Errno::EIO);
        }
        state.used += usize::from(pending.takes_place());
        state.pending.insert(unique, pending);
        Ok(state.number)
    }

    pub(super) fn is_pending(&self, unique: u64) -> bool {
        locked(&self.state).pending.contains_key(&unique)
    }

    /// A reply has come: what it is to. `None`: nobody waits for it.
    pub(super) fn answered(&self, unique: u64) -> Option<Pending> {
        let mut state = locked(&self.state);
        let pending = state.pending.remove(&unique)?;
        if pending.takes_place() {
            state.used -= 1;
            let wanted = state.waiting > 0;
            drop(state);
            if wanted {
                self.place_free.notify_one();
            }
        }
        Some(pending)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize};

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

    /// What one connection has brought to the far side, and nobody has answered yet.
    #[derive(Clone, Default)]
    struct Brought(std::sync::Arc<Mutex<Vec<u64>>>, std::sync::Arc<AtomicUsize>);

    impl Write for Brought {
        fn write(&mut self, frame: &[u8]) -> std::io::Result<usize> {
            let (header, _) = InHeader::decode(&frame[HEADER_LEN..]).unwrap();
            let mut unanswered = locked(&self.0);
            unanswered.push(header.unique);
            self.1.fetch_max(unanswered.len(), Ordering::Relaxed);
            Ok(frame.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Otherwise no thread of the far side is left to answer a PING.
    #[test]
    fn no_connection_brings_more_than_it_has_places_however_often_the_link_breaks() {
        const MAX: usize = 3;
        let (link, unique, over) = (Link::new(), AtomicU64::new(2), AtomicBool::new(false));
        let unknown = AtomicUsize::new(0);
        let (next, most) = (|| unique.fetch_add(2, Ordering::Relaxed), std::sync::Arc::<AtomicUsize>::default());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        let unique = next();
                        // EIO: it is down.
                        let _ = link.send(&mut request(unique), unique, Pending { opcode: op::STATFS, node: 1 });
                    }
                });
            }
            for _ in 0..500 {
                let brought = Brought(std::sync::Arc::default(), most.clone());
                link.up(Box::new(brought.clone()), closer(), MAX);
                for _ in 0..50 {
                    let answer = locked(&brought.0).pop();
                    match answer.map(|unique| link.answered(unique)) {
                        None => std::thread::yield_now(),
                        Some(None) => _ = unknown.fetch_add(1, Ordering::Relaxed),
                        Some(Some(_)) => {}
                    }
                }
                link.down();
            }
            over.store(true, Ordering::Relaxed);
        });
        assert_eq!(unknown.load(Ordering::Relaxed), 0, "requests of one connection were sent by the next");
        let most = most.load(Ordering::Relaxed);
        assert!((1..=MAX).contains(&most), "{most} at once where {MAX} are the most");
    }
}
