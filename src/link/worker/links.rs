//! A pair's two links: when they come, what they bring, and when they are given up.

use std::fmt;
use std::os::fd::OwnedFd;

use super::ctx::Ctx;
use super::guard::Guard;
use super::lane::LaneEnd;
use super::pair::Pair;
use super::token::What;
use super::track::Track;
use crate::errno::Errno;
use crate::limits::{DEAD_AFTER_MS, EXCUSED_KERNEL_MS, HALF_CLOSED_MS, HELLO_DEADLINE_MS};
use crate::mux::Options;
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

/// Of LAT and of BULK.
pub(super) type Tracks = [Track; 2];

pub(super) struct Links {
    lanes: [Option<LaneEnd>; 2],
    tracks: Tracks,
    /// Closed links whose last operations have not completed.
    fading: Vec<LaneEnd>,
    /// Number of the next link. Completions carry it, so that an old link's completion is not taken for a new one's.
    next: usize,
    /// When the session was suspended: a lane has lost its link.
    cut_us: Option<u64>,
    /// Lanes that had a link before.
    had: [bool; 2],
    /// Lanes that need a new link, until the node is told.
    lost: [bool; 2],
    /// Drained: our directions are shut, the peer's are still to end.
    closing: bool,
    /// When the first of the peer's directions has ended, of a pair that both leave.
    half_closed_us: Option<u64>,
    born_us: u64,
    /// A program's own session, which may be stopped by a signal (^Z) for as long as somebody likes.
    may_be_stopped: bool,
}

impl Links {
    pub(super) fn new(options: Options, may_be_stopped: bool) -> Self {
        Self {
            lanes: [None, None],
            tracks: Lane::ALL.map(|lane| Track::new(lane, options.agreed)),
            fading: Vec::new(),
            next: 0,
            cut_us: None,
            had: [false; 2],
            lost: [false; 2],
            closing: false,
            half_closed_us: None,
            born_us: options.now_us,
            may_be_stopped,
        }
    }

    pub(super) fn are_over(&self) -> bool {
        self.lanes.iter().flatten().all(LaneEnd::is_over) && self.fading.is_empty()
    }

    /// Whether the other machine's kernel has been heard within that time.
    fn has_heard_kernel_within(&self, limit_ms: u64) -> bool {
        let lat = &self.lanes[Lane::Lat.index()];
        lat.as_ref().and_then(LaneEnd::acknowledged_ms_ago).is_some_and(|ms| u64::from(ms) < limit_ms)
    }

    /// Closes the link of a lane, which waits for a new one.
    fn cut(&mut self, index: usize, ctx: &mut Ctx) {
        let Some(mut end) = self.lanes[index].take() else { return };
        end.close(ctx);
        self.tracks[index].on_cut();
        if !end.is_over() {
            self.fading.push(end);
        }
        self.lost[index] = true;
        self.cut_us.get_or_insert(ctx.now_us);
    }

    /// An operation of a closed link completed.
    fn on_faded(&mut self, what: What, number: usize, done: Done) {
        drop(done);
        for end in self.fading.iter_mut().filter(|end| end.number() == number) {
            end.on_faded(what);
        }
        self.fading.retain(|end| !end.is_over());
    }

    /// Lanes that need a new link. Each is returned once.
    pub(super) fn take_lost(&mut self) -> impl Iterator<Item = Lane> {
        let lost = std::mem::take(&mut self.lost);
        Lane::ALL.into_iter().filter(move |lane| lost[lane.index()])
    }
}

impl Pair {
    pub(super) fn add_link(&mut self, lane: Lane, (fd, guard): (OwnedFd, Guard), resumes: bool, ctx: &mut Ctx) {
        if self.ended.is_some() {
            return;
        }
        let index = lane.index();
        match (&self.links.lanes[index], resumes && self.links.tracks[index].resumes()) {
            // The peer noticed the loss first, and this link is half-open.
            (Some(_), true) => self.lose(lane, ctx),
            (Some(_), false) => return,
            // A link that does not resume must not restart a lane.
            (None, false) if self.links.had[index] => return,
            (None, _) => {}
        }
        let number = self.links.next;
        self.links.next += 1;
        let token = self.token(What::LinkRecv, number);
        let mut end = LaneEnd::new(lane, number, fd, guard);
        if self.links.had[index] {
            end.resume(&mut self.links.tracks[index]);
        }
        end.receive(ctx, token);
        self.links.lanes[index] = Some(end);
        (self.links.had[index], self.links.lost[index]) = (true, false);
        self.mux.on_link_up(lane);
        if lane == Lane::Lat {
            self.mux.was_away(ctx.now_us);
            self.mux.ping(ctx.now_us);
        }
    }

    /// Ends the suspension when every lane has a link on which it goes on in both directions.
    fn check_resumed(&mut self, ctx: &Ctx) {
        let links = &mut self.links;
        let Some(since) = links.cut_us else { return };
        let suspended = |(lane, had): (&Option<LaneEnd>, bool)| had && lane.as_ref().is_none_or(LaneEnd::is_resuming);
        if links.lanes.iter().zip(links.had).any(suspended) {
            return;
        }
        links.cut_us = None;
        let ms = ctx.now_us.saturating_sub(since) / 1000;
        let replayed: u64 = links.tracks.iter_mut().map(Track::take_replayed).sum();
        tracing::info!(peer = %self.peer, "session resumed after {ms} ms; {replayed} bytes replayed");
    }

    pub(super) fn on_link_done(&mut self, what: What, number: usize, done: Done, ctx: &mut Ctx) {
        let recv_token = self.token(What::LinkRecv, number);
        let send_token = self.token(What::LinkSend, number);
        let links = &mut self.links;
        let Some(end) = links.lanes.iter_mut().flatten().find(|end| end.number() == number) else {
            return links.on_faded(what, number, done);
        };
        let lane = end.lane();
        let result = if what == What::LinkRecv {
            let result = end.on_received(done, (&mut links.tracks, &mut self.mux), ctx.pool, ctx.now_us);
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
            Err(End::Gone(why)) if self.links.tracks[lane.index()].resumes() && self.ended.is_none() => {
                self.cut(lane, &why, ctx);
            }
            Err(e) => self.end(e, ctx),
        }
        self.check_resumed(ctx);
    }

    /// A link is lost and the session is suspended.
    fn cut(&mut self, lane: Lane, why: &str, ctx: &mut Ctx) {
        if self.links.cut_us.is_none() {
            let grace_s = ctx.shared.grace_us / 1_000_000;
            tracing::warn!(peer = %self.peer, "{lane:?} link: {why}; session suspended for up to {grace_s} s");
        }
        self.lose(lane, ctx);
    }

    fn lose(&mut self, lane: Lane, ctx: &mut Ctx) {
        if lane == Lane::Lat {
            self.mux.on_link_lost();
        }
        self.links.cut(lane.index(), ctx);
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
            let idle = self.links.lanes[index].as_ref().filter(|end| end.is_idle());
            let Some(token) = idle.map(|end| self.token(What::LinkSend, end.number())) else { continue };
            let links = &mut self.links;
            if let Some(end) = &mut links.lanes[index]
                && let Err(e) = end.transmit((&mut links.tracks, &mut self.mux), ctx, token)
            {
                self.end(e, ctx);
            }
        }
        self.check_resumed(ctx);
        let mut lanes = self.links.lanes.iter().flatten();
        if lanes.any(|end| end.holds_up(&self.mux)) {
            ctx.engine.hurry();
        }
        let idle = self.links.lanes.iter().flatten().all(LaneEnd::is_idle);
        // While a lane is cut, the peer may lack its last frames.
        let whole = self.links.cut_us.is_none();
        if self.is_drained() && self.ended.is_none() && idle && whole {
            // Not closed before the peer has closed its side too: unread bytes would turn our last frames into a reset.
            self.links.closing = true;
            self.links.lanes.iter().flatten().for_each(LaneEnd::finish);
        }
    }

    /// The deadlines of the links. `false`: the pair has ended, has only begun, or waits for a link.
    pub(super) fn check_links(&mut self, ctx: &mut Ctx) -> bool {
        self.links.tracks.iter_mut().for_each(Track::tick);
        let links = &self.links;
        let waited_us = links.cut_us.map_or(0, |since| ctx.now_us.saturating_sub(since));
        if waited_us > ctx.shared.grace_us {
            self.end(End::Gone("no new link within the grace time".into()), ctx);
            return false;
        }
        if links.lanes[Lane::Lat.index()].is_none() {
            let late = ctx.now_us.saturating_sub(links.born_us) > HELLO_DEADLINE_MS * 2000;
            if late && links.cut_us.is_none() {
                self.end(End::Broken("its LAT link never came".into()), ctx);
            }
            return false;
        }
        if self.mux.is_excused() && !links.has_heard_kernel_within(EXCUSED_KERNEL_MS) {
            self.on_silence("its machine does not answer".into(), ctx);
            return false;
        }
        if let Err(e) = self.mux.on_time(ctx.now_us) {
            if links.may_be_stopped && links.has_heard_kernel_within(DEAD_AFTER_MS / 2) {
                self.mux.excuse(ctx.now_us);
                return false;
            }
            self.on_silence(e.0, ctx);
        }
        let quiet_us = |since: u64| ctx.now_us.saturating_sub(since.max(self.mux.heard_us()));
        if self.links.half_closed_us.is_some_and(|since| quiet_us(since) > HALF_CLOSED_MS * 1000) {
            self.end(if self.is_drained() { End::Drained } else { End::Closed }, ctx);
        }
        self.ended.is_none()
    }

    /// The peer is silent on a link that is not closed.
    fn on_silence(&mut self, why: String, ctx: &mut Ctx) {
        if self.links.closing {
            self.end(End::Drained, ctx);
        } else if self.links.tracks[Lane::Lat.index()].resumes() {
            Lane::ALL.into_iter().for_each(|lane| self.cut(lane, &why, ctx));
        } else {
            self.end(End::Gone(why), ctx);
        }
    }

    /// The pair is over: every stream is reset, every fd closed.
    pub(super) fn end(&mut self, why: End, ctx: &mut Ctx) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(why);
        for lane in self.links.lanes.iter_mut().flatten() {
            lane.say_end();
            lane.close(ctx);
        }
        self.links.tracks.iter_mut().for_each(|track| track.replay.clear());
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
