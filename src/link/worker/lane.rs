//! One TCP connection of a pair on the ring: frames in, frames out.
//!
//! ```text
//!   RECV ─▶ buffer ── records opened where they lie ─▶ chunks ─▶ parser ─▶ mux
//!   mux ─▶ batch ── sealed, copied once ─▶ records in pooled buffers ─▶ SENDMSG
//! ```

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;

use nix::sys::socket::{MsgFlags, Shutdown, send, shutdown};

use super::ctx::Ctx;
use super::guard::Guard;
use super::links::{End, Tracks};
use super::records::Records;
use super::resuming::Resuming;
use super::token::What;
use super::track::Track;
use crate::auth::{Opened, RECORD_HEAD};
use crate::errno::Errno;
use crate::limits::{BULK_BATCH, LAT_BATCH, POOL_PRESSURE};
use crate::mux::{Mux, Payload};
use crate::ring::{Chunk, Done, Fd, Filling, Message, Op, OpId, Pool, Size};
use crate::sys::tcp;
use crate::wire::frame::{FrameType, HEADER_LEN, Header};
use crate::wire::hello::Lane;
use crate::wire::parser::Step;

pub(super) struct LaneEnd {
    lane: Lane,
    /// Which link of its pair it is.
    number: usize,
    fd: Fd,
    guard: Guard,
    inward: Inward,
    outward: Outward,
    /// The resume handshake, until it is complete.
    resuming: Option<Box<Resuming>>,
    closed: bool,
}

#[derive(Default)]
struct Inward {
    filling: Option<Filling>,
    /// How long the record is, at least, whose first bytes are in `filling`.
    want: usize,
    /// The last read took all that there was.
    dry: bool,
    op: Option<OpId>,
}

struct Outward {
    /// Frames about the link itself, which leave first.
    link: Vec<u8>,
    /// Room for small records that are to be sealed.
    sealed: Option<Filling>,
    /// What leaves next; away while it is being sent.
    message: Option<Box<Message>>,
    op: Option<OpId>,
    /// Nobody wakes for its end.
    quiet: bool,
}

impl LaneEnd {
    pub(super) fn new(lane: Lane, number: usize, fd: OwnedFd, guard: Guard) -> Self {
        let inward = Inward { want: RECORD_HEAD, ..Inward::default() };
        let message = Some(Box::default());
        let outward = Outward { link: Vec::new(), sealed: None, message, op: None, quiet: false };
        Self { lane, number, fd: Rc::new(fd), guard, inward, outward, resuming: None, closed: false }
    }

    /// This link takes over from a lost one.
    pub(super) fn resume(&mut self, track: &mut Track) {
        self.resuming = Some(Box::default());
        self.outward.link = track.resume_frame();
    }

    /// Whether the resume handshake is incomplete.
    pub(super) fn is_resuming(&self) -> bool {
        self.resuming.is_some()
    }

    pub(super) fn is_over(&self) -> bool {
        self.closed && self.inward.op.is_none() && self.outward.op.is_none()
    }

    pub(super) fn lane(&self) -> Lane {
        self.lane
    }

    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// An operation of one that is closed has ended.
    pub(super) fn on_faded(&mut self, what: What) {
        let op = if what == What::LinkRecv { &mut self.inward.op } else { &mut self.outward.op };
        *op = None;
    }

    /// Sends close_notify, so that the peer does not wait for a new link. Skipped while a send is in flight: then the peer
    /// learns it when it dials.
    pub(super) fn say_end(&mut self) {
        let mut alert = Vec::new();
        if self.closed || self.outward.op.is_some() || self.guard.say_end(&mut alert).is_err() {
            return;
        }
        // Best effort: a full socket buffer is treated by the peer as a lost link.
        let _ = send(self.fd.as_raw_fd(), &alert, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
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
        (tracks, mux): (&mut Tracks, &mut Mux<Chunk>),
        pool: &Pool,
        now_us: u64,
    ) -> Result<(), End> {
        self.inward.op = None;
        if self.closed {
            return Ok(());
        }
        let count = match done.result {
            // If the session is leaving, this may be its orderly end. Otherwise an end is announced by close_notify.
            Ok(0) if tracks[self.lane.index()].resumes() && !mux.is_leaving() => {
                return Err(End::Gone("link closed".into()));
            }
            Ok(0) if tracks[self.lane.index()].parser.is_between_frames() => return Err(End::Closed),
            Ok(0) => return Err(End::Broken("the peer closed the link within a frame".into())),
            Ok(count) => count as usize,
            Err(Errno::EINTR | Errno::EAGAIN) => return Ok(()),
            Err(errno) => return Err(End::Gone(format!("link lost: {}", errno.desc()))),
        };
        let Op::Recv { mut into, max, .. } = done.op else { unreachable!("a link's read is RECV") };
        self.inward.dry = count < max;
        into.received(count);
        let pressed = pool.used() > POOL_PRESSURE;
        let plain = self.open_all(&mut into, (tracks, mux), pressed, now_us);
        self.inward.filling = Some(into);
        plain
    }

    /// Opens what is whole, and cuts it into frames.
    fn open_all(
        &mut self,
        into: &mut Filling,
        (tracks, mux): (&mut Tracks, &mut Mux<Chunk>),
        pressed: bool,
        now_us: u64,
    ) -> Result<(), End> {
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
            self.on_plain(chunk, (tracks, mux), pressed, now_us)?;
        }
    }

    fn on_plain(
        &mut self,
        mut rest: Chunk,
        (tracks, mux): (&mut Tracks, &mut Mux<Chunk>),
        pressed: bool,
        now_us: u64,
    ) -> Result<(), End> {
        let lane = self.lane.index();
        loop {
            let before = self.resuming.as_mut().and_then(|resuming| resuming.parser());
            let parser = before.unwrap_or(&mut tracks[lane].parser);
            match parser.step(rest.as_ref())? {
                Step::More => return Ok(()),
                Step::Control { used, header, body } => {
                    rest.advance(used);
                    self.on_control(header, &body, (tracks, mux), now_us)?;
                }
                Step::Data { skip, take, header, first, last } => {
                    self.check_resumed()?;
                    rest.advance(skip);
                    let mut piece = rest.split_to(take);
                    if pressed && let Some(compact) = piece.compacted() {
                        piece = compact;
                    }
                    tracks[lane].on_received(take + if first { HEADER_LEN } else { 0 });
                    mux.on_data(self.lane, header, piece, (first, last), now_us)?;
                }
            }
        }
    }

    fn on_control(
        &mut self,
        header: Header,
        body: &[u8],
        (tracks, mux): (&mut Tracks, &mut Mux<Chunk>),
        now_us: u64,
    ) -> Result<(), End> {
        let lane = self.lane.index();
        match header.kind {
            FrameType::Resume => self.on_resume(body, &mut tracks[lane]),
            FrameType::Ack => match tracks.get_mut(usize::from(header.aux)) {
                Some(track) => track.on_ack(body),
                None => Err(End::Broken(format!("an ACK of lane {}", header.aux))),
            },
            kind => {
                if !kind.is_of_link() {
                    self.check_resumed()?;
                    tracks[lane].on_received(HEADER_LEN + body.len());
                }
                Ok(mux.on_control(self.lane, header, body, now_us)?)
            }
        }
    }

    fn on_resume(&mut self, body: &[u8], track: &mut Track) -> Result<(), End> {
        let Some(resuming) = &mut self.resuming else {
            return Err(End::Broken("RESUME on a link that does not resume a lane".into()));
        };
        resuming.on_resume(body, track)?;
        self.resuming.take_if(|resuming| resuming.is_over());
        Ok(())
    }

    fn check_resumed(&self) -> Result<(), End> {
        match &self.resuming {
            Some(resuming) if !resuming.receives() => Err(End::Broken("lane data before RESUME".into())),
            _ => Ok(()),
        }
    }

    /// Whether the lane may go on towards the peer. Says so first.
    fn may_send(&mut self) -> bool {
        let Some(resuming) = &mut self.resuming else { return true };
        if let Some(said) = resuming.begin_to_send() {
            self.outward.link.extend_from_slice(&said);
        }
        let may = resuming.sends();
        self.resuming.take_if(|resuming| resuming.is_over());
        may
    }

    /// Sends the next batch, if the last one has left and there is one.
    ///
    /// # Errors
    /// As `on_received`.
    pub(super) fn transmit(
        &mut self,
        (tracks, mux): (&mut Tracks, &mut Mux<Chunk>),
        ctx: &mut Ctx,
        token: u64,
    ) -> Result<(), End> {
        if self.closed {
            return Ok(());
        }
        let Some(mut message) = self.outward.message.take() else { return Ok(()) };
        self.gather_link_frames(tracks, mux);
        let budget = match self.lane {
            Lane::Lat => LAT_BATCH,
            Lane::Bulk => BULK_BATCH,
        };
        let may_send = self.may_send();
        let track = &mut tracks[self.lane.index()];
        let has_more = may_send && track.refill(mux, budget);
        if !has_more && self.outward.link.is_empty() {
            self.outward.message = Some(message);
            return Ok(());
        }
        let next = if has_more { track.replay.take_next() } else { None };
        let plain = std::iter::once(&self.outward.link[..]).chain(next.into_iter().flatten());
        let into = self.outward.sealed.take();
        let mut records = Records::new(ctx.pool, into, &mut message.batch);
        self.guard.seal_into(plain, &mut records)?;
        self.outward.sealed = records.finish();
        self.outward.link.clear();
        track.on_sealed();
        // As a rule all that there is leaves at once, and nothing waits for its end.
        let more = track.replay.has_next() || mux.has_more(self.lane);
        self.outward.quiet = message.left() <= QUIET_MAX && !more && !mux.is_leaving();
        let op = Op::Send { fd: Rc::clone(&self.fd), message };
        self.outward.op = Some(match self.outward.quiet {
            true => ctx.engine.submit_quietly(op, token),
            false => ctx.engine.submit(op, token),
        });
        Ok(())
    }

    /// What is to be said of this link itself: on LAT also of what came on both.
    fn gather_link_frames(&mut self, tracks: &mut Tracks, mux: &mut Mux<Chunk>) {
        if self.lane != Lane::Lat {
            return;
        }
        while let Some(header) = mux.poll_link_frame() {
            self.outward.link.extend_from_slice(&header.encode());
        }
        for frame in tracks.iter_mut().filter_map(Track::ack) {
            self.outward.link.extend_from_slice(&frame);
        }
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

/// Below this a link takes a new buffer: a read should bring several small frames at once.
const SPARE_MIN: usize = 8 << 10;
/// Above this a socket may take a part only.
const QUIET_MAX: usize = 16 << 10;
