//! The engine without io_uring: epoll says when, system calls that do not wait do it.
//!
//! ```text
//!   submit ──a write: at once──▶ done
//!     └──▶ the fd's watch ══ settle: asked of epoll what is waited for, once a turn ══▶ event ──▶ attempt ──▶ done
//! ```
//!
//! What epoll was asked for stays until the next turn's end, so a stream that reads on and on costs no epoll_ctl. A
//! watch holds its fd: were it closed while another process holds the same file, the kernel would keep the entry, and
//! report it for ever. So an fd of an operation that has ended is closed at the next `wait`, before that waits.

use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::calls;
use super::envelope::Envelope;
use super::op::{Done, Engine, Fd, Op, OpId, Outcome};
use super::slots::Slots;
use crate::errno::{Errno, OsError, OsResult, Step};
use crate::limits::EPOLL_EVENTS;
use crate::slack;

struct Slot {
    token: u64,
    op: Op,
}

/// One fd that operations wait for.
struct Watch {
    fd: Fd,
    /// In the order in which they came.
    waiting: Vec<u64>,
    /// The events that epoll was asked for.
    asked: Option<u32>,
}

pub(super) struct EpollEngine {
    epoll: Epoll,
    slots: Slots<Slot>,
    /// By the fd's number.
    watches: Vec<Option<Watch>>,
    /// Watches that epoll must be told of, perhaps.
    touched: Vec<RawFd>,
    ended: Vec<Done>,
    /// They have ended too, and wake nobody.
    quiet: Vec<Done>,
    hurried: bool,
    envelope: Box<Envelope>,
    events: Vec<EpollEvent>,
}

const IN: u32 = libc::EPOLLIN.cast_unsigned();
const OUT: u32 = libc::EPOLLOUT.cast_unsigned();
/// Reported whether asked for or not, epoll_ctl(2).
const ALWAYS: u32 = (libc::EPOLLERR | libc::EPOLLHUP).cast_unsigned();

impl EpollEngine {
    pub(super) fn new() -> OsResult<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).step("epoll_create1")?,
            slots: Slots::default(),
            watches: Vec::new(),
            touched: Vec::new(),
            ended: Vec::new(),
            quiet: Vec::new(),
            hurried: false,
            envelope: Envelope::new(),
            events: vec![EpollEvent::empty(); EPOLL_EVENTS],
        })
    }

    fn watch(&mut self, fd: &Fd) -> &mut Watch {
        let raw = fd.as_raw_fd();
        self.touched.push(raw);
        let at = usize::try_from(raw).expect("an open fd");
        if self.watches.len() <= at {
            self.watches.resize_with(at + 1, || None);
        }
        self.watches[at].get_or_insert_with(|| Watch { fd: Rc::clone(fd), waiting: Vec::new(), asked: None })
    }

    fn has_write_waiting(&self, fd: &Fd) -> bool {
        let at = usize::try_from(fd.as_raw_fd()).expect("an open fd");
        let Some(watch) = self.watches.get(at).and_then(Option::as_ref) else { return false };
        watch.waiting.iter().any(|id| self.slots.get(*id).is_some_and(|s| s.op.is_write()))
    }

    fn end(&mut self, id: u64, outcome: Outcome) {
        let Slot { token, op } = self.slots.remove(id).expect("a waiting operation is in its slot");
        self.ended.push(outcome.done(token, op));
    }

    /// Tells epoll what has changed since the last turn.
    fn settle(&mut self) {
        for raw in std::mem::take(&mut self.touched) {
            let at = usize::try_from(raw).expect("an open fd");
            let Some(watch) = &mut self.watches[at] else { continue };
            if watch.waiting.is_empty() {
                if watch.asked.is_some() {
                    self.epoll.delete(&*watch.fd).expect("a watched fd is in the epoll, and open");
                }
                self.watches[at] = None;
                continue;
            }
            let waiting = watch.waiting.iter().filter_map(|id| self.slots.get(*id));
            let wanted = waiting.fold(0, |all, slot| all | interest(&slot.op));
            if watch.asked == Some(wanted) {
                continue;
            }
            let mut event =
                EpollEvent::new(EpollFlags::from_bits_retain(wanted.cast_signed()), u64::from(raw.cast_unsigned()));
            let told = match watch.asked {
                None => self.epoll.add(&*watch.fd, event),
                Some(_) => self.epoll.modify(&*watch.fd, &mut event),
            };
            match told {
                Ok(()) => watch.asked = Some(wanted),
                Err(errno) => self.without_readiness(at, errno),
            }
        }
    }

    /// EPERM: a file, or a device that is always ready. Anything else ends what waits there.
    fn without_readiness(&mut self, at: usize, errno: Errno) {
        let Some(watch) = self.watches[at].take() else { return };
        for id in watch.waiting {
            let Some(slot) = self.slots.get(id) else { continue };
            let outcome = match &slot.op {
                Op::Hangup { .. } => Err(errno).into(),
                op if errno == Errno::EPERM => calls::attempt(op, &mut self.envelope),
                _ => Err(errno).into(),
            };
            self.end(id, outcome);
        }
    }

    fn on_event(&mut self, at: usize, events: u32) {
        let Some(watch) = &mut self.watches[at] else { return };
        let mut left = std::mem::take(&mut watch.waiting);
        // A direction in which something waits on: what came later waits behind it.
        let mut blocked = 0;
        left.retain(|id| {
            let slot = self.slots.get(*id).expect("a waiting operation is in its slot");
            let asked = interest(&slot.op);
            let said = events & (asked | ALWAYS);
            if said == 0 || asked & blocked != 0 {
                return true;
            }
            let outcome = match &slot.op {
                Op::Poll { .. } | Op::Hangup { .. } => Ok(said).into(),
                op => calls::attempt(op, &mut self.envelope),
            };
            if outcome.result == Err(Errno::EAGAIN) && !slot.op.ends_at_eagain() {
                blocked |= asked;
                return true;
            }
            let Slot { token, op } = self.slots.remove(*id).expect("just seen");
            self.ended.push(outcome.done(token, op));
            false
        });
        let watch = self.watches[at].as_mut().expect("nobody has taken it");
        watch.waiting = left;
        self.touched.push(watch.fd.as_raw_fd());
    }
}

impl Engine for EpollEngine {
    fn submit(&mut self, op: Op, token: u64) -> OpId {
        let fd = Rc::clone(op.fd());
        let begins = op.is_write() && !self.has_write_waiting(&fd);
        let id = self.slots.insert(Slot { token, op });
        // A write finds room as a rule; a read waits as a rule.
        if begins {
            let slot = self.slots.get(id).expect("just made");
            let outcome = calls::attempt(&slot.op, &mut self.envelope);
            if outcome.result != Err(Errno::EAGAIN) {
                self.end(id, outcome);
                return OpId::new(id);
            }
        }
        self.watch(&fd).waiting.push(id);
        OpId::new(id)
    }

    fn submit_quietly(&mut self, op: Op, token: u64) -> OpId {
        let (before, all) = (self.ended.len(), op.to_send());
        let id = self.submit(op, token);
        if self.ended.len() > before && self.ended[before].result.is_ok_and(|sent| sent as usize == all) {
            self.quiet.extend(self.ended.pop());
        }
        id
    }

    fn hurry(&mut self) {
        self.hurried = true;
    }

    fn cancel(&mut self, id: OpId) {
        let id = id.0.get();
        let Some(slot) = self.slots.get(id) else { return };
        let fd = Rc::clone(slot.op.fd());
        self.watch(&fd).waiting.retain(|w| *w != id);
        self.end(id, Err(Errno::ECANCELED).into());
    }

    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<Done>) -> OsResult<()> {
        self.settle();
        let hurried = std::mem::take(&mut self.hurried) && !self.quiet.is_empty();
        let timeout = match timeout {
            _ if hurried || !self.ended.is_empty() => EpollTimeout::ZERO,
            None => EpollTimeout::NONE,
            // Rounded up: a wait that ends too early would be followed by another one.
            Some(t) => {
                let ms = i32::try_from(t.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
                EpollTimeout::try_from(ms).expect("not negative")
            }
        };
        let mut events = std::mem::take(&mut self.events);
        let result = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => {
                for event in &events[..count] {
                    let at = usize::try_from(event.data()).expect("an fd's number");
                    self.on_event(at, event.events().bits().cast_unsigned());
                }
                Ok(())
            }
            Err(Errno::EINTR) => Ok(()),
            Err(e) => Err(OsError::new("epoll_wait", e)),
        };
        self.events = events;
        done.append(&mut self.quiet);
        done.append(&mut self.ended);
        result
    }

    fn rest(&mut self) {
        self.slots.rest();
        slack::vec(&mut self.ended);
        slack::vec(&mut self.quiet);
        let used = self.watches.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        self.watches.truncate(used);
        slack::vec(&mut self.watches);
    }
}

/// The readiness that an operation waits for.
fn interest(op: &Op) -> u32 {
    match op {
        Op::Recv { .. } | Op::Peek { .. } | Op::Measure { .. } | Op::Read { .. } | Op::Accept { .. } => IN,
        Op::Send { .. } | Op::SendChunk { .. } | Op::Write { .. } => OUT,
        Op::Poll { events, .. } => u32::from(events.cast_unsigned()),
        Op::Hangup { .. } => 0,
    }
}
