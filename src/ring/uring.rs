//! The io_uring engine, tier A: kernel 6.1, SINGLE_ISSUER and DEFER_TASKRUN, one-shot operations.
//!
//! ```text
//!   submit(op) ──▶ slab slot + generation = user_data ──▶ SQE ──▶ kernel ──▶ CQE ──▶ slot taken ──▶ Done
//! ```
//!
//! A slot is freed on its operation's only CQE. The generation in user_data tells a late completion of a cancelled
//! operation from the slot's next tenant. Everything the kernel points to lives in the slot or in a box of it.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue, types};
use slab::Slab;

use super::hangup::{Hangups, Watch};
use super::op::{Done, Engine, Fd, Message, Op, OpId};
use crate::errno::{Errno, OsError, OsResult, Step};
use crate::limits::{FDS_MAX, RING_CQ_ENTRIES, RING_SQ_ENTRIES};
use crate::sys::scm::{self, CONTROL_WORDS};

/// The completion of a cancel request itself.
const NOBODY: u64 = u64::MAX;
/// The completion of the poll on the hangups' epoll.
const HANGUPS: u64 = u64::MAX - 1;

/// What RECVMSG and SENDMSG point to besides the buffers.
struct Envelope {
    header: libc::msghdr,
    slices: Vec<libc::iovec>,
    control: [u64; CONTROL_WORDS],
}

impl Envelope {
    fn new() -> Box<Self> {
        // SAFETY: msghdr is plain data; all zero is an empty one.
        let header = unsafe { std::mem::zeroed() };
        Box::new(Self { header, slices: Vec::new(), control: [0; CONTROL_WORDS] })
    }

    fn point(&mut self, control_len: usize) -> *mut libc::msghdr {
        self.header.msg_iov = self.slices.as_mut_ptr();
        self.header.msg_iovlen = self.slices.len();
        self.header.msg_control =
            if control_len == 0 { std::ptr::null_mut() } else { self.control.as_mut_ptr().cast() };
        self.header.msg_controllen = control_len;
        self.header.msg_flags = 0;
        &raw mut self.header
    }
}

struct Slot {
    token: u64,
    generation: u32,
    op: Op,
    envelope: Option<Box<Envelope>>,
    watch: Option<Watch>,
}

pub struct Uring {
    ring: IoUring,
    hangups: Hangups,
    /// A POLL_ADD on the hangups' epoll is in flight.
    watching: bool,
    /// Operations that ended without a completion, for the next `wait`.
    ended: Vec<Done>,
    slots: Slab<Slot>,
    generation: u32,
    /// Envelopes that are free: they are large, and every message needs one. Boxed: the kernel keeps pointers into them.
    #[expect(
        clippy::vec_box,
        reason = "the kernel keeps pointers into an envelope while it moves between here and its slot"
    )]
    envelopes: Vec<Box<Envelope>>,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Uring({} operations)", self.slots.len())
    }
}

impl Uring {
    /// Sets the ring up for the calling thread, which alone may use it.
    ///
    /// # Errors
    /// ENOSYS: no io_uring in this kernel. EPERM: kernel.io_uring_disabled or a seccomp filter. EINVAL: older than 6.1.
    /// ENOMEM: no memory, or a memlock limit.
    pub fn new() -> OsResult<Self> {
        let ring = IoUring::builder()
            .setup_cqsize(RING_CQ_ENTRIES)
            .setup_clamp()
            .setup_submit_all()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(RING_SQ_ENTRIES)
            .step("io_uring_setup")?;
        Ok(Self {
            ring,
            hangups: Hangups::new()?,
            watching: false,
            ended: Vec::new(),
            slots: Slab::new(),
            generation: 0,
            envelopes: Vec::new(),
        })
    }

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: what the entry points to is owned by its slot until its completion is taken.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            // The queue is full: start what is in it. An error here shows again at the next `wait`.
            if self.ring.submit().is_err() {
                std::thread::yield_now();
            }
        }
    }

    fn collect(&mut self, done: &mut Vec<Done>) -> OsResult<()> {
        done.append(&mut self.ended);
        loop {
            let Some(entry) = self.ring.completion().next() else { return Ok(()) };
            match entry.user_data() {
                NOBODY => {}
                HANGUPS => {
                    self.watching = false;
                    self.look_for_hangups(done)?;
                }
                id => {
                    let slot = self.take_slot(id).expect("a completion is of an operation in flight");
                    done.push(self.finish(slot, entry.result()));
                }
            }
        }
    }

    /// `None`: the operation has ended already.
    fn take_slot(&mut self, id: u64) -> Option<Slot> {
        let index = index_of(id);
        let known = self.slots.get(index).is_some_and(|s| u64::from(s.generation) == id >> 32);
        known.then(|| self.slots.remove(index))
    }

    fn look_for_hangups(&mut self, done: &mut Vec<Done>) -> OsResult<()> {
        let mut over = Vec::new();
        self.hangups.look(&mut over)?;
        for (id, events) in over {
            let slot = self.take_slot(id).expect("a watch ends with its operation");
            done.push(self.end_watch(slot, Ok(events)));
        }
        Ok(())
    }

    fn end_watch(&mut self, mut slot: Slot, result: Result<u32, Errno>) -> Done {
        if let Some(watch) = slot.watch.take() {
            self.hangups.forget(watch);
        }
        done(slot, result)
    }

    fn watch(&mut self, op: Op, token: u64) -> OpId {
        let Op::Hangup { fd } = &op else { unreachable!("only hangups are watched") };
        let fd = Rc::clone(fd);
        let id = self.insert(Slot { token, generation: 0, op, envelope: None, watch: None });
        match self.hangups.watch(&fd, id) {
            Ok(watch) => self.slots[index_of(id)].watch = Some(watch),
            Err(errno) => {
                let slot = self.take_slot(id).expect("just made");
                self.ended.push(done(slot, Err(errno)));
            }
        }
        OpId(id)
    }

    fn insert(&mut self, mut slot: Slot) -> u64 {
        self.generation = self.generation.wrapping_add(1);
        slot.generation = self.generation;
        let index = self.slots.insert(slot);
        u64::from(self.generation) << 32 | u64::try_from(index).expect("far fewer than 2^32 operations")
    }

    fn finish(&mut self, mut slot: Slot, result: i32) -> Done {
        let result = u32::try_from(result).map_err(|_| Errno::from_raw(-result));
        let mut fds = Vec::new();
        let mut flags = 0;
        if let Some(mut envelope) = slot.envelope.take() {
            if let (Op::Recv { fds: true, .. } | Op::Peek { .. }, Ok(_)) = (&slot.op, &result) {
                // SAFETY: this RECVMSG has just completed into the envelope, and its control data is looked at once.
                fds = unsafe { scm::take_fds(&envelope.header) };
                flags = envelope.header.msg_flags;
            }
            envelope.slices.clear();
            if self.envelopes.len() < 64 {
                self.envelopes.push(envelope);
            }
        }
        if let (Op::Accept { .. }, Ok(fd)) = (&slot.op, &result) {
            let raw = i32::try_from(*fd).expect("an fd");
            // SAFETY: the kernel has just made this fd for us.
            fds.push(unsafe { OwnedFd::from_raw_fd(raw) });
        }
        let (control_lost, record_cut) = (flags & libc::MSG_CTRUNC != 0, flags & libc::MSG_TRUNC != 0);
        Done { token: slot.token, op: slot.op, result, fds, control_lost, record_cut }
    }

    /// RECVMSG into `tail`, if there is one, with room for `control_len` bytes of control data.
    fn recvmsg(&mut self, fd: &Fd, tail: Option<(*mut u8, usize)>, control_len: usize, flags: i32) -> Sqe {
        let mut envelope = self.envelopes.pop().unwrap_or_else(Envelope::new);
        let slice = tail.map(|(start, len)| libc::iovec { iov_base: start.cast(), iov_len: len });
        envelope.slices.extend(slice);
        let header = envelope.point(control_len);
        let entry = opcode::RecvMsg::new(types::Fd(fd.as_raw_fd()), header).flags(flags.cast_unsigned()).build();
        (entry, Some(envelope))
    }

    fn send(&mut self, fd: &Fd, message: &Message) -> Sqe {
        let mut envelope = self.envelopes.pop().unwrap_or_else(Envelope::new);
        for slice in message.slices().take(SLICES_MAX) {
            envelope.slices.push(libc::iovec { iov_base: slice.as_ptr().cast_mut().cast(), iov_len: slice.len() });
        }
        let control_len = put_fds(&mut envelope.control, &message.fds);
        let header = envelope.point(control_len);
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = opcode::SendMsg::new(types::Fd(fd.as_raw_fd()), header).flags(flags.cast_unsigned()).build();
        (entry, Some(envelope))
    }
}

/// An entry, and what it points to besides buffers.
type Sqe = (squeue::Entry, Option<Box<Envelope>>);

/// UIO_MAXIOV, sendmsg(2).
const SLICES_MAX: usize = 1024;

impl Engine for Uring {
    fn submit(&mut self, op: Op, token: u64) -> OpId {
        if let Op::Hangup { .. } = op {
            return self.watch(op, token);
        }
        let (entry, envelope) = match &op {
            Op::Recv { fd, into, max, fds: false } => {
                let len = u32::try_from((*max).min(into.spare())).expect("a buffer is small");
                (opcode::Recv::new(types::Fd(fd.as_raw_fd()), into.tail(), len).build(), None)
            }
            Op::Recv { fd, into, max, fds: true } => {
                let tail = Some((into.tail(), (*max).min(into.spare())));
                self.recvmsg(fd, tail, CONTROL_WORDS * 8, libc::MSG_CMSG_CLOEXEC)
            }
            // Without control space no fd is installed: MSG_CTRUNC alone says that there are some.
            Op::Peek { fd, into, max } => {
                let tail = Some((into.tail(), (*max).min(into.spare())));
                self.recvmsg(fd, tail, 0, libc::MSG_PEEK)
            }
            Op::Measure { fd } => self.recvmsg(fd, None, 0, libc::MSG_PEEK | libc::MSG_TRUNC),
            Op::Read { fd, into, max } => {
                let len = u32::try_from((*max).min(into.spare())).expect("a buffer is small");
                // Offset -1: the file's own position, io_uring_enter(2).
                (opcode::Read::new(types::Fd(fd.as_raw_fd()), into.tail(), len).offset(u64::MAX).build(), None)
            }
            Op::Send { fd, message } => self.send(fd, message),
            Op::SendChunk { fd, chunk } => {
                let bytes = chunk.as_ref();
                let len = u32::try_from(bytes.len()).expect("a chunk is small");
                let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
                (opcode::Send::new(types::Fd(fd.as_raw_fd()), bytes.as_ptr(), len).flags(flags).build(), None)
            }
            Op::Write { fd, chunk } => {
                let bytes = chunk.as_ref();
                let len = u32::try_from(bytes.len()).expect("a chunk is small");
                let raw = types::Fd(fd.as_raw_fd());
                (opcode::Write::new(raw, bytes.as_ptr(), len).offset(u64::MAX).build(), None)
            }
            Op::Accept { fd } => {
                let null = std::ptr::null_mut();
                let flags = libc::SOCK_CLOEXEC;
                (opcode::Accept::new(types::Fd(fd.as_raw_fd()), null, null.cast()).flags(flags).build(), None)
            }
            Op::Poll { fd, events } => {
                let events = u32::from(events.cast_unsigned());
                (opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), events).build(), None)
            }
            Op::Hangup { .. } => unreachable!("watched, not submitted"),
        };
        let id = self.insert(Slot { token, generation: 0, op, envelope, watch: None });
        self.push(&entry.user_data(id));
        OpId(id)
    }

    fn cancel(&mut self, id: OpId) {
        let OpId(id) = id;
        let op = self.slots.get(index_of(id)).filter(|s| u64::from(s.generation) == id >> 32).map(|s| &s.op);
        if let Some(Op::Hangup { .. }) = op {
            let slot = self.take_slot(id).expect("just seen");
            let done = self.end_watch(slot, Err(Errno::ECANCELED));
            self.ended.push(done);
        } else if op.is_some() {
            self.push(&opcode::AsyncCancel::new(id).build().user_data(NOBODY));
        }
    }

    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<Done>) -> OsResult<()> {
        if self.hangups.watched > 0 && !self.watching {
            self.watching = true;
            let fd = types::Fd(self.hangups.fd().as_fd().as_raw_fd());
            let events = u32::from(libc::POLLIN.cast_unsigned());
            self.push(&opcode::PollAdd::new(fd, events).build().user_data(HANGUPS));
        }
        let ready = !self.ended.is_empty() || !self.ring.completion().is_empty();
        let spec = timeout.map(Timespec::from);
        let mut args = SubmitArgs::new();
        if let Some(spec) = &spec {
            args = args.timespec(spec);
        }
        match self.ring.submitter().submit_with_args(usize::from(!ready), &args) {
            Ok(_) => {}
            // ETIME: the timeout is over. EINTR: a signal. EBUSY, EAGAIN: completions must be taken first.
            Err(e) => match e.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                _ => return Err(OsError::new("io_uring_enter", crate::errno::errno_of(&e))),
            },
        }
        self.collect(done)
    }
}

fn index_of(id: u64) -> usize {
    usize::try_from(id & 0xffff_ffff).expect("32 bits")
}

fn done(slot: Slot, result: Result<u32, Errno>) -> Done {
    Done { token: slot.token, op: slot.op, result, fds: Vec::new(), control_lost: false, record_cut: false }
}

/// Writes one SCM_RIGHTS message; returns its length, 0 for no fds.
fn put_fds(control: &mut [u64; CONTROL_WORDS], fds: &[OwnedFd]) -> usize {
    if fds.is_empty() {
        return 0;
    }
    assert!(fds.len() <= FDS_MAX, "the kernel takes no more, nor did the peer send more");
    let bytes = u32::try_from(size_of_val(fds)).expect("253 fds");
    let header = control.as_mut_ptr().cast::<libc::cmsghdr>();
    // SAFETY: `control` has room for 253 fds behind a header and is aligned for it.
    unsafe {
        (*header).cmsg_len = libc::CMSG_LEN(bytes) as usize;
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        let data = libc::CMSG_DATA(header).cast::<i32>();
        for (i, fd) in fds.iter().enumerate() {
            data.add(i).write_unaligned(fd.as_raw_fd());
        }
        libc::CMSG_SPACE(bytes) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mux::Payload;
    use crate::ring::buf::{Chunk, Filling, Pool, Size};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    fn wait_for(count: usize, ring: &mut Uring) -> Vec<Done> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut done = Vec::new();
        while done.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} have ended", done.len());
            ring.wait(Some(Duration::from_secs(1)), &mut done).unwrap();
        }
        assert_eq!(done.len(), count);
        done
    }

    fn wait_one(ring: &mut Uring) -> Done {
        wait_for(1, ring).pop().unwrap()
    }

    fn shared(stream: UnixStream) -> Fd {
        Rc::new(stream.into())
    }

    #[test]
    fn bytes_and_253_fds_cross_a_socket() {
        let (near, far) = UnixStream::pair().unwrap();
        let (near, far) = (shared(near), shared(far));
        let mut ring = Uring::new().unwrap();
        let mut message = Box::new(Message::from(vec![Chunk::from_vec(b"hello".to_vec())]));
        let (probe, mut other) = UnixStream::pair().unwrap();
        message.fds = (0..253).map(|_| probe.try_clone().unwrap().into()).collect();
        ring.submit(Op::Send { fd: near, message }, 1);
        let sent = wait_one(&mut ring);
        assert_eq!((sent.token, sent.result), (1, Ok(5)));
        let into = Pool::default().take(Size::Small);
        ring.submit(Op::Recv { fd: far, into, max: 100, fds: true }, 2);
        let mut got = wait_one(&mut ring);
        assert_eq!((got.token, got.result, got.fds.len(), got.control_lost), (2, Ok(5), 253, false));
        let Op::Recv { mut into, .. } = got.op else { panic!("another operation came back") };
        assert_eq!(into.cut(5).as_ref(), b"hello");
        UnixStream::from(got.fds.pop().unwrap()).write_all(b"x").unwrap();
        let mut byte = [0];
        other.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn a_peek_tells_whether_fds_are_ahead() {
        let (near, far) = UnixStream::pair().unwrap();
        let (near, far) = (shared(near), shared(far));
        let mut ring = Uring::new().unwrap();
        for (bytes, fds, said) in [(&b"plain"[..], &[][..], (Ok(5), false)), (b"with", &[far.as_fd()], (Ok(9), true))] {
            crate::sys::scm::send(far.as_fd(), bytes, fds).unwrap();
            ring.submit(Op::Peek { fd: Rc::clone(&near), into: Pool::default().take(Size::Small), max: 100 }, 1);
            let done = wait_one(&mut ring);
            assert_eq!((done.result, done.control_lost), said);
            assert!(done.fds.is_empty());
        }
    }

    #[test]
    fn a_record_is_measured_before_it_is_read() {
        let (near, far) = seqpackets();
        let mut ring = Uring::new().unwrap();
        let long = vec![7; 100_000];
        crate::sys::scm::send(far.as_fd(), &long, &[far.as_fd()]).unwrap();
        crate::sys::scm::send(far.as_fd(), b"", &[]).unwrap();
        ring.submit(Op::Measure { fd: Rc::clone(&near) }, 1);
        assert_eq!(wait_one(&mut ring).result, Ok(100_000));
        let into = Filling::of_its_own(100_000);
        ring.submit(Op::Recv { fd: Rc::clone(&near), into, max: 100_000, fds: true }, 2);
        let done = wait_one(&mut ring);
        assert_eq!((done.result, done.fds.len(), done.record_cut), (Ok(100_000), 1, false));
        ring.submit(Op::Measure { fd: near }, 3);
        assert_eq!(wait_one(&mut ring).result, Ok(0));
    }

    fn seqpackets() -> (Fd, Fd) {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty()).unwrap();
        (Rc::new(a), Rc::new(b))
    }

    #[test]
    fn a_cancelled_read_completes_and_gives_its_buffer_back() {
        let (near, _far) = UnixStream::pair().unwrap();
        let pool = Pool::default();
        let mut ring = Uring::new().unwrap();
        let op = Op::Recv { fd: shared(near), into: pool.take(Size::Large), max: 100, fds: true };
        let id = ring.submit(op, 7);
        ring.wait(Some(Duration::ZERO), &mut Vec::new()).unwrap();
        ring.cancel(id);
        let done = wait_one(&mut ring);
        assert_eq!((done.token, done.result), (7, Err(Errno::ECANCELED)));
        drop(done);
        assert_eq!(pool.used(), 0);
    }

    #[test]
    fn a_wait_without_work_ends_at_its_timeout() {
        let mut ring = Uring::new().unwrap();
        let mut done = Vec::new();
        ring.wait(Some(Duration::from_millis(5)), &mut done).unwrap();
        assert!(done.is_empty());
    }

    #[test]
    fn more_operations_than_the_queue_has_room_for_all_complete() {
        let (near, far) = UnixStream::pair().unwrap();
        let near = shared(near);
        let mut ring = Uring::new().unwrap();
        for token in 0..3 * u64::from(RING_SQ_ENTRIES) {
            ring.submit(Op::Poll { fd: Rc::clone(&near), events: libc::POLLIN }, token);
        }
        (&far).write_all(b"x").unwrap();
        let mut done = Vec::new();
        while done.len() < 3 * RING_SQ_ENTRIES as usize {
            ring.wait(Some(Duration::from_secs(5)), &mut done).unwrap();
        }
        assert!(done.iter().all(|d| d.result == Ok(1)));
    }

    fn nothing_comes(ring: &mut Uring) {
        let mut done = Vec::new();
        ring.wait(Some(Duration::from_millis(20)), &mut done).unwrap();
        assert!(done.is_empty(), "{done:?}");
    }

    #[test]
    fn a_hangup_is_not_a_half_close() {
        let (near, far) = UnixStream::pair().unwrap();
        let near = shared(near);
        let mut ring = Uring::new().unwrap();
        ring.submit(Op::Hangup { fd: Rc::clone(&near) }, 1);
        ring.submit(Op::Hangup { fd: Rc::clone(&near) }, 2);
        nothing_comes(&mut ring);
        far.shutdown(std::net::Shutdown::Write).unwrap();
        (&far).write_all(b"x").unwrap_err();
        nothing_comes(&mut ring);
        drop(far);
        for done in wait_for(2, &mut ring) {
            assert_eq!(done.result.unwrap() & u32::from(libc::POLLHUP.cast_unsigned()), 0x10);
        }
        // One that was before the question.
        ring.submit(Op::Hangup { fd: near }, 3);
        assert_eq!(wait_one(&mut ring).token, 3);
    }

    #[test]
    fn a_cancelled_hangup_gives_its_fd_back() {
        let (near, far) = UnixStream::pair().unwrap();
        let near = shared(near);
        let kept = near.try_clone().unwrap();
        let mut ring = Uring::new().unwrap();
        let ids = [1, 2].map(|token| ring.submit(Op::Hangup { fd: Rc::clone(&near) }, token));
        nothing_comes(&mut ring);
        ids.into_iter().for_each(|id| ring.cancel(id));
        for done in wait_for(2, &mut ring) {
            assert_eq!(done.result, Err(Errno::ECANCELED));
        }
        assert_eq!(Rc::strong_count(&near), 1);
        // The socket lives on in another fd: its end is nobody's business here.
        drop((near, far));
        nothing_comes(&mut ring);
        drop(kept);
    }
}
