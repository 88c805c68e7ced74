//! The io_uring engine. What the kernel lacks is in `Features`; everything else is the same on Linux 5.10 and 6.18.
//!
//! ```text
//!   submit(op) ──▶ slot, its id = user_data ──▶ SQE ──▶ kernel ──▶ CQE ──▶ slot taken ──▶ Done
//!      ├── a hangup, or room to write ──▶ an epoll of our own, which one POLL_ADD watches (`watches.rs`)
//!      └── what the ring must not do ──▶ POLL_ADD ──▶ a system call that does not wait (`calls.rs`)
//! ```
//!
//! A ring must not write to a terminal: it takes one that has room for a byte for one that has room for all, and then
//! the whole thread waits in the write. Nor may it handle control data where the kernel refuses or spoils that.
//!
//! A slot is freed on its operation's last CQE. Everything the kernel points to lives in the slot or in a box of it.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue, types};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::EpollFlags;
use nix::sys::time::TimeSpec;

use super::calls;
use super::envelope::{Envelope, Envelopes, Held, SLICES_MAX};
use super::op::{Done, Engine, Op, OpId, Outcome};
use super::slots::Slots;
use super::watches::{Watch, Watches};
use crate::errno::{Errno, OsError, OsResult, Step};
use crate::limits::{RING_CQ_ENTRIES, RING_DROP_WAIT, RING_DROP_WAITS, RING_SQ_ENTRIES};
use crate::slack;

/// The completion of a cancel request itself.
const NOBODY: u64 = u64::MAX;
/// The completion of the poll on the watches' epoll.
const WATCHES: u64 = u64::MAX - 1;

/// IORING_RECVSEND_POLL_FIRST of linux/io_uring.h, Linux 5.19: wait for readiness without a try before.
const RECVSEND_POLL_FIRST: u16 = 1;

/// What an entry says besides what its operation does.
#[derive(Clone, Copy)]
struct Besides {
    send_flags: i32,
    recv_ioprio: u16,
}

/// What a kernel may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Features {
    /// IORING_SETUP_SINGLE_ISSUER, DEFER_TASKRUN (Linux 6.1) and SUBMIT_ALL (5.18).
    pub(super) deferred: bool,
    /// A wait with a timeout in the same call: IORING_FEAT_EXT_ARG, Linux 5.11.
    pub(super) timed_wait: bool,
    /// RECVMSG and SENDMSG with a unix socket's control data. Linux 5.10 says EINVAL; 6.17 adds an SCM_INQ that nobody
    /// asked for each time that a RECVMSG has to wait, and in the end loses fds.
    pub(super) control: bool,
    /// A send that succeeds at once without a completion, and one that is cut short with one that says how much was sent
    /// (CQE_SKIP_SUCCESS, Linux 5.17; a short send's count, 6.1).
    pub(super) quiet: bool,
}

impl Features {
    /// Linux 6.1.
    pub(super) const MODERN: Self = Self { deferred: true, timed_wait: true, control: true, quiet: true };
    /// Linux 5.10.
    pub(super) const BASIC: Self = Self { deferred: false, timed_wait: false, control: false, quiet: false };
}

struct Slot {
    token: u64,
    op: Op,
    beside: Beside,
}

/// What an operation holds besides what it was given.
enum Beside {
    Nothing,
    Envelope(Held),
    Watch(Watch),
    /// The ring waits for readiness, or the epoll does for room; the system call follows.
    Polled {
        cancelled: bool,
        watch: Option<Watch>,
    },
}

pub(super) struct Uring {
    ring: IoUring,
    features: Features,
    slots: Slots<Slot>,
    watches: Watches,
    /// A POLL_ADD on the watches' epoll is in flight.
    watching: bool,
    /// Polled operations whose call would have waited after all.
    again: Vec<u64>,
    /// Operations that have ended, for the next `wait`.
    ended: Vec<Done>,
    /// Sends that have no completion unless they fail.
    quiet: Vec<u64>,
    hurried: bool,
    envelopes: Envelopes,
    /// For system calls, which are over at once.
    own: Box<Envelope>,
    /// Bytes of control data that the last received message brought.
    pub(super) control_seen: usize,
}

impl Uring {
    /// Sets the ring up for the calling thread, which alone may use it.
    ///
    /// # Errors
    /// ENOSYS: no io_uring in this kernel, or one before 5.10. EPERM: kernel.io_uring_disabled or a seccomp filter.
    /// EINVAL: a feature that was asked for is not there. ENOMEM: no memory, or a memlock limit.
    pub(super) fn new(features: Features) -> OsResult<Self> {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(RING_CQ_ENTRIES).setup_clamp();
        if features.deferred {
            builder.setup_submit_all().setup_single_issuer().setup_defer_taskrun();
        }
        let ring = builder.build(RING_SQ_ENTRIES).step("io_uring_setup")?;
        let has = ring.params();
        if !(has.is_feature_nodrop() && has.is_feature_rw_cur_pos() && has.is_feature_fast_poll()) {
            return Err(OsError::new("io_uring of Linux 5.10", Errno::ENOSYS));
        }
        if features.timed_wait && !has.is_feature_ext_arg() {
            return Err(OsError::new("io_uring wait with a timeout", Errno::EINVAL));
        }
        Ok(Self {
            ring,
            features,
            slots: Slots::default(),
            watches: Watches::new()?,
            watching: false,
            again: Vec::new(),
            ended: Vec::new(),
            quiet: Vec::new(),
            hurried: false,
            envelopes: Envelopes::default(),
            own: Envelope::new(),
            control_seen: 0,
        })
    }

    pub(super) fn features(&self) -> Features {
        self.features
    }

    pub(super) fn without_control(&mut self) {
        self.features.control = false;
    }

    pub(super) fn without_quiet(&mut self) {
        self.features.quiet = false;
    }

    // ---- in ------------------------------------------------------------------------------------------------------

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: what the entry points to is owned by its slot until its completion is taken.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            // The queue is full: start what is in it. EBUSY, EAGAIN: completions must be taken first. Another error
            // shows again at the next `wait`.
            if self.ring.submit().is_err() {
                self.collect();
                std::thread::yield_now();
            }
        }
    }

    /// A slot for the operation, and its entry.
    fn prepare(&mut self, op: Op, token: u64, send_flags: i32) -> (u64, squeue::Entry) {
        let mut beside = Beside::Nothing;
        let dry = self.features.deferred && matches!(op, Op::Recv { dry: true, .. });
        let besides = Besides { send_flags, recv_ioprio: if dry { RECVSEND_POLL_FIRST } else { 0 } };
        let entry = match &op {
            Op::Recv { fds: true, .. } | Op::Peek { .. } | Op::Measure { .. } | Op::Send { .. } => {
                let mut envelope = self.envelopes.take();
                let entry = message(&op, &mut envelope, besides);
                beside = Beside::Envelope(envelope);
                entry
            }
            op => plain(op, besides),
        };
        let id = self.slots.insert(Slot { token, op, beside });
        (id, entry.user_data(id))
    }

    fn watch(&mut self, op: Op, also: EpollFlags, token: u64) -> OpId {
        let fd = Rc::clone(op.fd());
        let id = self.slots.insert(Slot { token, op, beside: Beside::Nothing });
        match self.watches.watch(&fd, also, id) {
            Ok(watch) => self.slots.get_mut(id).expect("just made").beside = Beside::Watch(watch),
            Err(errno) => self.end(id, Err(errno).into()),
        }
        OpId::new(id)
    }

    fn poll_first(&mut self, op: Op, token: u64) -> OpId {
        // A write finds room as a rule.
        let tried = op.is_write().then(|| calls::attempt(&op, &mut self.own));
        let id = self.slots.insert(Slot { token, op, beside: Beside::Polled { cancelled: false, watch: None } });
        match tried {
            Some(outcome) if outcome.result != Err(Errno::EAGAIN) => self.end(id, outcome),
            _ => self.push_poll(id),
        }
        OpId::new(id)
    }

    fn push_poll(&mut self, id: u64) {
        let Some(Slot { op, beside, .. }) = self.slots.get_mut(id) else { return };
        let Beside::Polled { cancelled, watch } = beside else { return };
        if *cancelled {
            return self.end(id, Err(Errno::ECANCELED).into());
        }
        if op.is_write() {
            match self.watches.watch(op.fd(), EpollFlags::EPOLLOUT, id) {
                Ok(made) => return *watch = Some(made),
                // A file that has no readiness: the ring finds it ready.
                Err(Errno::EPERM) => {}
                Err(errno) => return self.end(id, Err(errno).into()),
            }
        }
        let events = if op.is_write() { libc::POLLOUT } else { libc::POLLIN };
        let entry = poll_add(op.fd(), events).user_data(id);
        self.push(&entry);
    }

    // ---- out -----------------------------------------------------------------------------------------------------

    /// Takes what has completed. Nothing is submitted here: the queue may be full.
    fn collect(&mut self) {
        loop {
            let Some(entry) = self.ring.completion().next() else { return };
            let result = u32::try_from(entry.result()).map_err(|_| Errno::from_raw(-entry.result()));
            match entry.user_data() {
                NOBODY => {}
                WATCHES => {
                    self.watching = false;
                    for (id, events) in self.watches.look() {
                        self.on_watch(id, events);
                    }
                }
                id => self.on_completion(id, result),
            }
        }
    }

    fn on_watch(&mut self, id: u64, events: u32) {
        let slot = self.slots.get_mut(id).expect("a watch is of an operation in flight");
        if let Beside::Polled { watch, .. } = &mut slot.beside {
            self.watches.forget(watch.take().expect("what the epoll tells of is watched"));
            return self.on_completion(id, Ok(events));
        }
        self.end(id, Ok(events).into());
    }

    /// Quiet sends that were submitted and have no completion have succeeded.
    fn settle_quiet(&mut self, hurried: bool) {
        let unsettled = {
            let queue = self.ring.submission();
            !queue.is_empty() || queue.cq_overflow()
        };
        // Some are not submitted yet, or completions wait for room in their queue. Whoever hurries still does.
        if unsettled {
            self.hurried |= hurried;
            return;
        }
        let mut quiet = std::mem::take(&mut self.quiet);
        for id in quiet.drain(..) {
            let Some(slot) = self.slots.get(id) else { continue };
            let all = u32::try_from(slot.op.to_send()).expect("a batch is small");
            self.end(id, Ok(all).into());
        }
        self.quiet = quiet;
    }

    fn on_completion(&mut self, id: u64, result: Result<u32, Errno>) {
        let slot = self.slots.get_mut(id).expect("a completion is of an operation in flight");
        let outcome = match &mut slot.beside {
            Beside::Polled { .. } if result.is_ok() => {
                let outcome = calls::attempt(&slot.op, &mut self.own);
                if outcome.result == Err(Errno::EAGAIN) && !slot.op.ends_at_eagain() {
                    return self.again.push(id);
                }
                outcome
            }
            Beside::Envelope(envelope) => {
                if let Op::Recv { .. } = slot.op {
                    self.control_seen = envelope.control_len();
                }
                // SAFETY: this completion is of the call that the envelope was addressed for, and its only one.
                unsafe { envelope.open(&slot.op, result) }
            }
            _ => Outcome::from(result),
        };
        self.end(id, outcome);
    }

    /// The operation is over: what it held besides is given back.
    fn end(&mut self, id: u64, mut outcome: Outcome) {
        let Slot { token, op, beside } = self.slots.remove(id).expect("an operation ends once");
        match beside {
            Beside::Watch(watch) | Beside::Polled { watch: Some(watch), .. } => self.watches.forget(watch),
            Beside::Envelope(envelope) => self.envelopes.give(envelope),
            Beside::Nothing | Beside::Polled { watch: None, .. } => {}
        }
        if let (Op::Accept { .. }, Ok(raw)) = (&op, outcome.result) {
            // SAFETY: the kernel has just made this fd for us.
            outcome.fds.push(unsafe { OwnedFd::from_raw_fd(raw.cast_signed()) });
        }
        self.ended.push(outcome.done(token, op));
    }

    fn enter(&mut self, want: usize, timeout: Option<Duration>) -> std::io::Result<()> {
        if self.features.timed_wait {
            let spec = timeout.map(Timespec::from);
            let mut args = SubmitArgs::new();
            if let Some(spec) = &spec {
                args = args.timespec(spec);
            }
            return self.ring.submitter().submit_with_args(want, &args).map(drop);
        }
        self.ring.submit()?;
        if want > 0 && self.ring.completion().is_empty() {
            // A ring is ready when it has completions: this wait may have a timeout.
            // SAFETY: the ring outlives the call.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(self.ring.as_raw_fd()) };
            ppoll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout.map(TimeSpec::from), None)?;
        }
        Ok(())
    }
}

impl Engine for Uring {
    fn submit(&mut self, op: Op, token: u64) -> OpId {
        match op {
            Op::Hangup { .. } => return self.watch(op, EpollFlags::empty(), token),
            Op::Poll { events: libc::POLLOUT, .. } => return self.watch(op, EpollFlags::EPOLLOUT, token),
            _ => {}
        }
        let refused = !self.features.control && op.has_control();
        if refused || matches!(&op, Op::Write { terminal: true, .. }) {
            return self.poll_first(op, token);
        }
        let (id, entry) = self.prepare(op, token, 0);
        self.push(&entry);
        OpId::new(id)
    }

    fn submit_quietly(&mut self, op: Op, token: u64) -> OpId {
        // What one call can't carry whole is not over with it.
        let many = matches!(&op, Op::Send { message, .. } if message.batch.parts.len() > SLICES_MAX);
        if !self.features.quiet || op.has_control() || op.is_record() || many {
            return self.submit(op, token);
        }
        // It is over when it has been submitted: MSG_DONTWAIT leaves it nothing to wait for.
        let (id, entry) = self.prepare(op, token, libc::MSG_DONTWAIT);
        self.quiet.push(id);
        self.push(&entry.flags(squeue::Flags::SKIP_SUCCESS));
        OpId::new(id)
    }

    fn hurry(&mut self) {
        self.hurried = true;
    }

    fn cancel(&mut self, id: OpId) {
        let id = id.0.get();
        match self.slots.get_mut(id).map(|s| &mut s.beside) {
            None => return,
            Some(Beside::Watch(_) | Beside::Polled { watch: Some(_), .. }) => {
                return self.end(id, Err(Errno::ECANCELED).into());
            }
            Some(Beside::Polled { cancelled, .. }) => *cancelled = true,
            Some(Beside::Nothing | Beside::Envelope(_)) => {}
        }
        self.push(&opcode::AsyncCancel::new(id).build().user_data(NOBODY));
    }

    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<Done>) -> OsResult<()> {
        for id in std::mem::take(&mut self.again) {
            self.push_poll(id);
        }
        if self.watches.watched > 0 && !self.watching {
            self.watching = true;
            let entry = poll_add(self.watches.fd(), libc::POLLIN).user_data(WATCHES);
            self.push(&entry);
        }
        let hurried = std::mem::take(&mut self.hurried) && !self.quiet.is_empty();
        let ready = hurried || !self.ended.is_empty() || !self.ring.completion().is_empty();
        match self.enter(usize::from(!ready), timeout) {
            Ok(()) => {}
            // ETIME: the timeout is over. EINTR: a signal. EBUSY, EAGAIN: completions must be taken first.
            Err(e) => match e.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                _ => return Err(OsError::new("io_uring_enter", crate::errno::errno_of(&e))),
            },
        }
        self.collect();
        self.settle_quiet(hurried);
        done.append(&mut self.ended);
        Ok(())
    }

    fn rest(&mut self) {
        self.envelopes.rest();
        self.slots.rest();
        slack::vec(&mut self.ended);
        slack::vec(&mut self.quiet);
    }
}

impl Drop for Uring {
    /// The kernel may still write into what operations own: they end first.
    fn drop(&mut self) {
        let mut done = Vec::new();
        for id in self.slots.ids() {
            self.cancel(OpId::new(id));
        }
        for _ in 0..RING_DROP_WAITS {
            if self.slots.len() == 0 || self.wait(Some(RING_DROP_WAIT), &mut done).is_err() {
                break;
            }
        }
        // What does not end (a disk that does not answer) keeps its memory.
        if self.slots.len() > 0 {
            std::mem::forget((std::mem::take(&mut self.slots), std::mem::take(&mut self.envelopes)));
        }
    }
}

fn poll_add(fd: &impl AsFd, events: i16) -> squeue::Entry {
    opcode::PollAdd::new(types::Fd(fd.as_fd().as_raw_fd()), u32::from(events.cast_unsigned())).build()
}

fn message(op: &Op, envelope: &mut Envelope, besides: Besides) -> squeue::Entry {
    let raw = types::Fd(op.fd().as_raw_fd());
    let call = envelope.address(op).expect("an operation on messages");
    if call.sends {
        // MSG_WAITALL: since 5.19 the ring goes on by itself after a short send; before that it ends early.
        // A record is never tried again by the ring: unix(7) sockets take its bytes before they find the receiver's queue
        // full, and what the ring sends then is an empty one.
        // What goes on by itself goes on without its control data: a rest must have its credentials too.
        let speaks = matches!(op, Op::Send { message, .. } if message.credentials.is_some());
        let waits = match (op.is_record(), speaks) {
            (true, _) => libc::MSG_DONTWAIT,
            (false, true) => 0,
            (false, false) => libc::MSG_WAITALL,
        };
        let flags = besides.send_flags | call.flags | waits;
        opcode::SendMsg::new(raw, call.header).flags(flags.cast_unsigned()).build()
    } else {
        let flags = call.flags.cast_unsigned();
        opcode::RecvMsg::new(raw, call.header).flags(flags).ioprio(besides.recv_ioprio).build()
    }
}

/// The entry of an operation that points to its buffer alone.
fn plain(op: &Op, besides: Besides) -> squeue::Entry {
    let raw = types::Fd(op.fd().as_raw_fd());
    let small = |len: usize| u32::try_from(len).expect("a buffer is small");
    match op {
        Op::Recv { into, max, .. } => {
            let room = small((*max).min(into.spare()));
            opcode::Recv::new(raw, into.tail(), room).ioprio(besides.recv_ioprio).build()
        }
        // Offset -1: the file's own position, io_uring_enter(2).
        Op::Read { into, max, .. } => {
            opcode::Read::new(raw, into.tail(), small((*max).min(into.spare()))).offset(u64::MAX).build()
        }
        Op::SendChunk { chunk, .. } => {
            let bytes = chunk.as_ref();
            let flags = besides.send_flags | libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
            opcode::Send::new(raw, bytes.as_ptr(), small(bytes.len())).flags(flags).build()
        }
        Op::Write { chunk, .. } => {
            let bytes = chunk.as_ref();
            opcode::Write::new(raw, bytes.as_ptr(), small(bytes.len())).offset(u64::MAX).build()
        }
        Op::Accept { .. } => {
            let null = std::ptr::null_mut();
            opcode::Accept::new(raw, null, null.cast()).flags(libc::SOCK_CLOEXEC).build()
        }
        Op::Poll { fd, events } => poll_add(&**fd, *events),
        Op::Peek { .. } | Op::Measure { .. } | Op::Send { .. } | Op::Hangup { .. } => {
            unreachable!("not submitted as it is")
        }
    }
}
