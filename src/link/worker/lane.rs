//! One TCP connection of a pair on the ring: frames in, frames out.
//!
//! ```text
//!   RECV ─▶ buffer ── records opened where they lie ─▶ chunks ─▶ parser ─▶ mux
//!   mux ─▶ batch ── sealed, copied once ─▶ records in pooled buffers ─▶ SENDMSG
//! ```

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;

use nix::sys::socket::{Shutdown, shutdown};

use super::ctx::Ctx;
use super::guard::Guard;
use super::links::End;
use crate::auth::{Opened, RECORD_HEAD, Room};
use crate::errno::Errno;
use crate::limits::{BULK_BATCH, LAT_BATCH, POOL_PRESSURE};
use crate::mux::{Batch, Mux, Payload};
use crate::ring::{Chunk, Done, Fd, Filling, Message, Op, OpId, Pool, Size};
use crate::sys::tcp;
use crate::wire::hello::Lane;
use crate::wire::parser::{Parser, Step};

pub(super) struct LaneEnd {
    lane: Lane,
    fd: Fd,
    guard: Guard,
    inward: Inward,
    outward: Outward,
    closed: bool,
}

#[derive(Default)]
struct Inward {
    parser: Parser,
    filling: Option<Filling>,
    /// How long the record is, at least, whose first bytes are in `filling`.
    want: usize,
    /// The last read took all that there was.
    dry: bool,
    op: Option<OpId>,
}

struct Outward {
    /// Where the next batch is put together, before it is sealed.
    plain: Batch<Chunk>,
    /// Room for small records that are to be sealed.
    sealed: Option<Filling>,
    /// What leaves next; away while it is being sent.
    message: Option<Box<Message>>,
    op: Option<OpId>,
    /// Nobody wakes for its end.
    quiet: bool,
}

impl LaneEnd {
    pub(super) fn new(lane: Lane, fd: OwnedFd, guard: Guard) -> Self {
        let inward = Inward { want: RECORD_HEAD, ..Inward::default() };
        let message = Some(Box::default());
        let outward = Outward { plain: Batch::default(), sealed: None, message, op: None, quiet: false };
        Self { lane, fd: Rc::new(fd), guard, inward, outward, closed: false }
    }

    pub(super) fn is_over(&self) -> bool {
        self.closed && self.inward.op.is_none() && self.outward.op.is_none()
    }

    /// Whether more may come.
    pub(super) fn is_receiving(&self) -> bool {
        self.inward.op.is_some()
    }

    /// When the other kernel was last heard.
    pub(super) fn acknowledged_ms_ago(&self) -> Option<u32> {
        tcp::acknowledged_ms_ago(self.fd.as_fd())
    }

    /// Whether the last batch has left.
    pub(super) fn is_idle(&self) -> bool {
        self.outward.op.is_none()
    }

    /// Whether something waits for a batch of whose end nobody is told.
    pub(super) fn holds_up(&self, mux: &Mux<Chunk>) -> bool {
        self.outward.op.is_some() && self.outward.quiet && (mux.is_leaving() || mux.has_more(self.lane))
    }

    pub(super) fn receive(&mut self, ctx: &mut Ctx, token: u64) {
        if self.inward.op.is_some() || self.closed {
            return;
        }
        let into = match self.inward.filling.take() {
            Some(f) if f.spare() >= SPARE_MIN.max(self.inward.want.saturating_sub(f.sealed())) => f,
            Some(f) => f.go_on_in(ctx.pool.take(Size::Large)),
            None => ctx.pool.take(Size::Large),
        };
        let max = into.spare();
        let op = Op::Recv { fd: Rc::clone(&self.fd), into, max, fds: false, dry: self.inward.dry };
        self.inward.op = Some(ctx.engine.submit(op, token));
    }

    /// Cuts what came into frames.
    ///
    /// # Errors
    /// The link must be closed: its end, a failed read, or the peer's mistake.
    pub(super) fn on_received(
        &mut self,
        done: Done,
        mux: &mut Mux<Chunk>,
        pool: &Pool,
        now_us: u64,
    ) -> Result<(), End> {
        self.inward.op = None;
        if self.closed {
            return Ok(());
        }
        let count = match done.result {
            Ok(0) if self.inward.parser.is_between_frames() => return Err(End::Closed),
            Ok(0) => return Err(End::Broken("the peer closed the link within a frame".into())),
            Ok(count) => count as usize,
            Err(Errno::EINTR | Errno::EAGAIN) => return Ok(()),
            Err(errno) => return Err(End::Gone(format!("link lost: {}", errno.desc()))),
        };
        let Op::Recv { mut into, max, .. } = done.op else { unreachable!("a link's read is RECV") };
        self.inward.dry = count < max;
        into.received(count);
        let pressed = pool.used() > POOL_PRESSURE;
        let plain = self.open_all(&mut into, mux, pressed, now_us);
        self.inward.filling = Some(into);
        plain
    }

    /// Opens what is whole, and cuts it into frames.
    fn open_all(&mut self, into: &mut Filling, mux: &mut Mux<Chunk>, pressed: bool, now_us: u64) -> Result<(), End> {
        loop {
            let (used, plain) = match &mut self.guard {
                Guard::Tls { opener, .. } => match opener.open(into.raw())? {
                    Opened::Record { used, plain } => (used, plain),
                    Opened::Part { want } => {
                        self.inward.want = want;
                        return Ok(());
                    }
                    Opened::End => return Err(End::Closed),
                },
                #[cfg(any(test, feature = "plaintext"))]
                Guard::Plain => match into.raw().len() {
                    0 => return Ok(()),
                    all => (all, 0..all),
                },
            };
            let chunk = into.cut_opened(used, plain);
            self.on_plain(chunk, mux, pressed, now_us)?;
        }
    }

    fn on_plain(&mut self, mut rest: Chunk, mux: &mut Mux<Chunk>, pressed: bool, now_us: u64) -> Result<(), End> {
        loop {
            match self.inward.parser.step(rest.as_ref())? {
                Step::More => return Ok(()),
                Step::Control { used, header, body } => {
                    rest.advance(used);
                    mux.on_control(self.lane, header, &body, now_us)?;
                }
                Step::Data { skip, take, header, first, last } => {
                    rest.advance(skip);
                    let mut piece = rest.split_to(take);
                    if pressed && piece.is_wasteful() {
                        piece = piece.compacted();
                    }
                    mux.on_data(self.lane, header, piece, (first, last), now_us)?;
                }
            }
        }
    }

    /// Sends the next batch, if the last one has left and there is one.
    ///
    /// # Errors
    /// As `on_received`.
    pub(super) fn transmit(&mut self, mux: &mut Mux<Chunk>, ctx: &mut Ctx, token: u64) -> Result<(), End> {
        if self.closed {
            return Ok(());
        }
        let Some(mut message) = self.outward.message.take() else { return Ok(()) };
        let budget = match self.lane {
            Lane::Lat => LAT_BATCH,
            Lane::Bulk => BULK_BATCH,
        };
        match &mut self.guard {
            Guard::Tls { sealer, .. } => {
                mux.poll_transmit(self.lane, &mut self.outward.plain, budget);
                let mut records =
                    Records { pool: ctx.pool, into: self.outward.sealed.take(), written: 0, batch: &mut message.batch };
                if !self.outward.plain.is_empty() {
                    sealer.seal(self.outward.plain.slices(), &mut records)?;
                }
                self.outward.sealed = records.finish();
                self.outward.plain.clear();
            }
            #[cfg(any(test, feature = "plaintext"))]
            Guard::Plain => mux.poll_transmit(self.lane, &mut message.batch, budget),
        }
        if message.batch.is_empty() {
            self.outward.message = Some(message);
            return Ok(());
        }
        // As a rule all that there is leaves at once, and nothing waits for its end.
        self.outward.quiet = message.left() <= QUIET_MAX && !mux.has_more(self.lane) && !mux.is_leaving();
        let op = Op::Send { fd: Rc::clone(&self.fd), message };
        self.outward.op = Some(match self.outward.quiet {
            true => ctx.engine.submit_quietly(op, token),
            false => ctx.engine.submit(op, token),
        });
        Ok(())
    }

    /// # Errors
    /// As `on_received`.
    pub(super) fn on_sent(&mut self, done: Done, ctx: &mut Ctx, token: u64) -> Result<(), End> {
        self.outward.op = None;
        let Op::Send { fd, mut message } = done.op else { unreachable!("a link's write is SENDMSG") };
        match done.result {
            Ok(count) => message.advance(count as usize),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(errno) => return Err(End::Gone(format!("link lost: {}", errno.desc()))),
        }
        if message.left() > 0 && !self.closed {
            self.outward.quiet = false;
            self.outward.op = Some(ctx.engine.submit(Op::Send { fd, message }, token));
        } else {
            message.clear();
            self.outward.message = Some(message);
        }
        Ok(())
    }

    /// Nothing more is sent; the peer sees the end behind the last frame, and what it still sends is read.
    pub(super) fn finish(&self) {
        // ENOTCONN: the peer was faster.
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Write);
    }

    /// Ends both directions; what is in flight completes soon.
    pub(super) fn close(&mut self, ctx: &mut Ctx) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        // What was sent still leaves, and a FIN behind it; the cancels end our own waiting.
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Both);
        for op in [self.inward.op, self.outward.op].into_iter().flatten() {
            ctx.engine.cancel(op);
        }
        self.inward.filling = None;
    }
}

/// Sealed records on their way into a batch, side by side in pooled buffers.
struct Records<'a> {
    pool: &'a Pool,
    into: Option<Filling>,
    /// The last record's length: it is still to be cut.
    written: usize,
    batch: &'a mut Batch<Chunk>,
}

impl Records<'_> {
    fn cut(&mut self) {
        let written = std::mem::take(&mut self.written);
        if let (Some(into), 1..) = (&mut self.into, written) {
            self.batch.push_body(into.cut(written));
        }
    }

    /// A small buffer serves the next small records too; a large one would be too much for each of many idle links.
    fn finish(mut self) -> Option<Filling> {
        self.cut();
        self.into.filter(|into| into.is_small())
    }
}

impl Room for Records<'_> {
    fn take(&mut self, len: usize) -> &mut [u8] {
        self.cut();
        if self.into.as_ref().is_none_or(|into| into.spare() < len) {
            let size = if len <= SMALL_RECORD { Size::Small } else { Size::Large };
            self.into = Some(self.pool.take(size));
        }
        self.written = len;
        self.into.as_mut().expect("there is one now").tail_mut(len)
    }
}

/// Several such records share a small buffer.
const SMALL_RECORD: usize = 1 << 10;
/// Below this a link takes a new buffer: a read should bring several small frames at once.
const SPARE_MIN: usize = 8 << 10;
/// Above this a socket may take a part only.
const QUIET_MAX: usize = 16 << 10;
