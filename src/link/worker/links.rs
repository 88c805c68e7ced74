//! A pair's two links: when they come, what they bring, and when they are given up.

use std::fmt;
use std::os::fd::OwnedFd;

use super::ctx::Ctx;
use super::guard::Guard;
use super::lane::LaneEnd;
use super::pair::Pair;
use super::token::What;
use crate::errno::Errno;
use crate::limits::{DEAD_AFTER_MS, EXCUSED_KERNEL_MS, HALF_CLOSED_MS, HELLO_DEADLINE_MS};
use crate::ring::Done;
use crate::wire::ProtocolError;
use crate::wire::hello::Lane;

/// Why a pair ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::link) enum End {
    /// Both sides had left, and the last stream ended.
    Drained,
    /// The peer sends nothing more on a link.
    Closed,
    /// A link is lost, or its other end has gone: how a command's session ends, however that went.
    Gone(String),
    /// The peer's mistake.
    Broken(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drained => f.write_str("drained"),
            Self::Closed => f.write_str("the peer closed the link"),
            Self::Gone(why) | Self::Broken(why) => f.write_str(why),
        }
    }
}

impl From<ProtocolError> for End {
    fn from(e: ProtocolError) -> Self {
        Self::Broken(e.0)
    }
}

pub(super) struct Links {
    lanes: [Option<LaneEnd>; 2],
    /// Drained: our directions are shut, the peer's are still to end.
    closing: bool,
    /// When the first of the peer's directions has ended, of a pair that both leave.
    half_closed_us: Option<u64>,
    born_us: u64,
    /// A program's own session, which may be stopped by a signal (^Z) for as long as somebody likes.
    may_be_stopped: bool,
}

impl Links {
    pub(super) fn new(born_us: u64, may_be_stopped: bool) -> Self {
        Self { lanes: [None, None], closing: false, half_closed_us: None, born_us, may_be_stopped }
    }

    pub(super) fn are_over(&self) -> bool {
        self.lanes.iter().flatten().all(LaneEnd::is_over)
    }

    /// Whether the other machine's kernel has been heard within that time.
    fn has_heard_kernel_within(&self, limit_ms: u64) -> bool {
        let lat = &self.lanes[Lane::Lat.index()];
        lat.as_ref().and_then(LaneEnd::acknowledged_ms_ago).is_some_and(|ms| u64::from(ms) < limit_ms)
    }
}

impl Pair {
    pub(super) fn add_link(&mut self, lane: Lane, fd: OwnedFd, guard: Guard, ctx: &mut Ctx) {
        if self.ended.is_some() || self.links.lanes[lane.index()].is_some() {
            return;
        }
        let token = self.token(What::LinkRecv, lane.index());
        let mut end = LaneEnd::new(lane, fd, guard);
        end.receive(ctx, token);
        self.links.lanes[lane.index()] = Some(end);
        self.mux.on_link_up(lane);
        if lane == Lane::Lat {
            self.mux.ping(ctx.now_us);
        }
    }

    pub(super) fn on_link_done(&mut self, what: What, index: usize, done: Done, ctx: &mut Ctx) {
        let recv_token = self.token(What::LinkRecv, index);
        let send_token = self.token(What::LinkSend, index);
        let Some(end) = &mut self.links.lanes[index] else { return };
        let result = if what == What::LinkRecv {
            let result = end.on_received(done, &mut self.mux, ctx.pool, ctx.now_us);
            if result.is_ok() {
                end.receive(ctx, recv_token);
            }
            result
        } else {
            end.on_sent(done, ctx, send_token)
        };
        match result {
            Ok(()) => {}
            // The peer may close as soon as nothing more can come; that is no loss.
            Err(_) if self.is_drained() => self.end(End::Drained, ctx),
            // One that leaves closes both links at once, and the other one's last frames may not have been read.
            Err(End::Closed) if self.mux.is_leaving() && self.is_heard() => {
                self.links.half_closed_us.get_or_insert(ctx.now_us);
            }
            Err(e) => self.end(e, ctx),
        }
    }

    /// Whether a link is there on which the peer has not ended.
    fn is_heard(&self) -> bool {
        self.links.lanes.iter().flatten().any(LaneEnd::is_receiving)
    }

    /// Both sides opened no more streams, and the last one has ended.
    fn is_drained(&self) -> bool {
        self.mux.is_left() && self.mux.streams() == 0
    }

    /// Sends what is ready on the links that have nothing in flight.
    pub(super) fn transmit(&mut self, ctx: &mut Ctx) {
        if self.links.closing {
            return;
        }
        for index in 0..2 {
            let token = self.token(What::LinkSend, index);
            if let Some(end) = &mut self.links.lanes[index]
                && end.is_idle()
                && let Err(e) = end.transmit(&mut self.mux, ctx, token)
            {
                self.end(e, ctx);
            }
        }
        let mut lanes = self.links.lanes.iter().flatten();
        if lanes.any(|end| end.holds_up(&self.mux)) {
            ctx.engine.hurry();
        }
        let idle = self.links.lanes.iter().flatten().all(LaneEnd::is_idle);
        if self.is_drained() && self.ended.is_none() && idle {
            // Not closed before the peer has closed its side too: unread bytes would turn our last frames into a reset.
            self.links.closing = true;
            self.links.lanes.iter().flatten().for_each(LaneEnd::finish);
        }
    }

    /// The deadlines of the links. `false`: the pair has ended, or has only begun.
    pub(super) fn check_links(&mut self, ctx: &mut Ctx) -> bool {
        let links = &self.links;
        if links.lanes[Lane::Lat.index()].is_none() {
            if ctx.now_us.saturating_sub(links.born_us) > HELLO_DEADLINE_MS * 2000 {
                self.end(End::Broken("its LAT link never came".into()), ctx);
            }
            return false;
        }
        if self.mux.is_excused() && !links.has_heard_kernel_within(EXCUSED_KERNEL_MS) {
            self.end(End::Gone("its machine does not answer".into()), ctx);
            return false;
        }
        if let Err(e) = self.mux.on_time(ctx.now_us) {
            if links.may_be_stopped && links.has_heard_kernel_within(DEAD_AFTER_MS / 2) {
                self.mux.excuse(ctx.now_us);
                return false;
            }
            self.end(if links.closing { End::Drained } else { End::Gone(e.0) }, ctx);
        }
        let quiet_us = |since: u64| ctx.now_us.saturating_sub(since.max(self.mux.heard_us()));
        if self.links.half_closed_us.is_some_and(|since| quiet_us(since) > HALF_CLOSED_MS * 1000) {
            self.end(if self.is_drained() { End::Drained } else { End::Closed }, ctx);
        }
        true
    }

    /// The pair is over: every stream is reset, every fd closed.
    pub(super) fn end(&mut self, why: End, ctx: &mut Ctx) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(why);
        for lane in self.links.lanes.iter_mut().flatten() {
            lane.close(ctx);
        }
        // Whoever waits for the children's last byte must not take this for it.
        self.outputs.cut_all();
        self.mux.reset_all(Errno::ECONNRESET);
        // Not left to the streams' events: a local end that has outlived its stream has none.
        let stranded = self.locals.iter().filter(|(_, local)| !local.stream.ends_alone());
        for at in stranded.map(|(at, _)| at).collect::<Vec<_>>() {
            // One's end may have been that of others.
            if self.locals.get(at).is_some() {
                self.cut_off(at, Errno::ECONNRESET, ctx);
            }
        }
    }
}
