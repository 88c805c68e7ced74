//! One TCP connection of a pair on the ring: frames in, frames out.

use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use nix::sys::socket::{Shutdown, shutdown};

use super::pair::End;
use super::port::Hands;
use crate::errno::Errno;
use crate::limits::{BULK_BATCH, LAT_BATCH, POOL_PRESSURE};
use crate::mux::{Mux, Payload};
use crate::ring::{Chunk, Done, Fd, Filling, Message, Op, OpId, Pool, Size};
use crate::wire::hello::Lane;
use crate::wire::parser::{Parser, Step};

pub(super) struct LaneEnd {
    lane: Lane,
    fd: Fd,
    parser: Parser,
    filling: Option<Filling>,
    recv: Option<OpId>,
    send: Option<OpId>,
    /// Where the next batch is put together; away while one is being sent.
    message: Option<Box<Message>>,
    closed: bool,
}

impl LaneEnd {
    pub(super) fn new(lane: Lane, fd: OwnedFd) -> Self {
        let message = Some(Box::default());
        let parser = Parser::default();
        Self { lane, fd: Rc::new(fd), parser, filling: None, recv: None, send: None, message, closed: false }
    }

    pub(super) fn is_over(&self) -> bool {
        self.closed && self.recv.is_none() && self.send.is_none()
    }

    /// Whether the last batch has left.
    pub(super) fn is_idle(&self) -> bool {
        self.send.is_none()
    }

    pub(super) fn receive(&mut self, hands: &mut Hands, token: u64) {
        if self.recv.is_some() || self.closed {
            return;
        }
        let into = match self.filling.take() {
            Some(f) if f.spare() >= SPARE_MIN => f,
            _ => hands.pool.take(Size::Large),
        };
        let max = into.spare();
        let op = Op::Recv { fd: Rc::clone(&self.fd), into, max, fds: false };
        self.recv = Some(hands.engine.submit(op, token));
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
        self.recv = None;
        if self.closed {
            return Ok(());
        }
        let count = match done.result {
            Ok(0) if self.parser.is_between_frames() => return Err(End::Gone("the peer closed the link".into())),
            Ok(0) => return Err(End::Broken("the peer closed the link within a frame".into())),
            Ok(count) => count as usize,
            Err(Errno::EINTR | Errno::EAGAIN) => return Ok(()),
            Err(errno) => return Err(End::Gone(format!("link lost: {}", errno.desc()))),
        };
        let Op::Recv { mut into, .. } = done.op else { unreachable!("a link's read is RECV") };
        let mut rest = into.cut(count);
        self.filling = Some(into);
        let pressed = pool.used() > POOL_PRESSURE;
        loop {
            match self.parser.step(rest.as_ref())? {
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
    pub(super) fn transmit(&mut self, mux: &mut Mux<Chunk>, hands: &mut Hands, token: u64) {
        if self.closed {
            return;
        }
        let Some(mut message) = self.message.take() else { return };
        let budget = match self.lane {
            Lane::Lat => LAT_BATCH,
            Lane::Bulk => BULK_BATCH,
        };
        mux.poll_transmit(self.lane, &mut message.batch, budget);
        if message.batch.is_empty() {
            self.message = Some(message);
            return;
        }
        self.send = Some(hands.engine.submit(Op::Send { fd: Rc::clone(&self.fd), message }, token));
    }

    /// # Errors
    /// As `on_received`.
    pub(super) fn on_sent(&mut self, done: Done, hands: &mut Hands, token: u64) -> Result<(), End> {
        self.send = None;
        let Op::Send { fd, mut message } = done.op else { unreachable!("a link's write is SENDMSG") };
        match done.result {
            Ok(count) => message.advance(count as usize),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(errno) => return Err(End::Gone(format!("link lost: {}", errno.desc()))),
        }
        if message.left() > 0 && !self.closed {
            self.send = Some(hands.engine.submit(Op::Send { fd, message }, token));
        } else {
            message.clear();
            self.message = Some(message);
        }
        Ok(())
    }

    /// Nothing more is sent; the peer sees the end behind the last frame, and what it still sends is read.
    pub(super) fn finish(&self) {
        // ENOTCONN: the peer was faster.
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Write);
    }

    /// Ends both directions; what is in flight completes soon.
    pub(super) fn close(&mut self, hands: &mut Hands) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        // What was sent still leaves, and a FIN behind it; the cancels end our own waiting.
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Both);
        for op in [self.recv, self.send].into_iter().flatten() {
            hands.engine.cancel(op);
        }
        self.filling = None;
    }
}

/// Below this a link takes a new buffer: a read should bring several small frames at once.
const SPARE_MIN: usize = 8 << 10;
