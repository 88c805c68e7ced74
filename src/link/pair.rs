//! A link pair on its worker: one mux, two connections, and the local ends of its streams.
//!
//! ```text
//!   completions ─▶ lanes, ports ─▶ mux ─▶ events ─▶ ports ─▶ operations
//!                                    └──▶ frames ─▶ lanes ─▶ operations
//! ```
//!
//! `advance` runs after every turn's completions: first all events, then what leaves. A pair whose link fails ends as a
//! whole: every stream is reset, every fd closed. What stays is a port whose stream had ended before, with bytes that are
//! only to be written: it needs nobody but its program and the kernel.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use slab::Slab;

use super::announced::Announced;
use super::budget::Budget;
use super::ctx::Ctx;
use super::guard::Guard;
use super::inbox::{First, Notice, PairRef, Pending, Terms, Verdict};
use super::lane::LaneEnd;
use super::node::{Incoming, Peer};
use super::notices::Notices;
use super::port::{Port, SourceState};
use super::token::{Token, What};
use crate::errno::Errno;
use crate::fdpass::{OnRefusal, Pump, PumpKind};
use crate::limits::{
    DEAD_AFTER_MS, EXCUSED_KERNEL_MS, HALF_CLOSED_MS, HELLO_DEADLINE_MS, INITIAL_WINDOW, PORTS_MAX, RECORD_WINDOW,
    RECORDS_HELD_MAX,
};
use crate::mux::{Event, Key, Mux, Options};
use crate::ring::{Chunk, Done};
use crate::slack;
use crate::wire::ProtocolError;
use crate::wire::hello::{Lane, Role};
use crate::wire::service;

pub(super) struct Pair {
    /// The same everywhere in this process; never used again.
    pub(super) id: u64,
    slot: usize,
    pub(super) peer: Arc<Peer>,
    pub(super) mux: Mux<Chunk>,
    lanes: [Option<LaneEnd>; 2],
    pub(super) ports: Slab<Port>,
    /// Which port is whose: until the port goes, which may be long after its stream.
    pub(super) by_key: HashMap<Key, usize>,
    watches: Vec<(Key, Notice)>,
    pub(super) announced: Announced,
    pub(super) notices: Notices,
    /// What streams of records hold for programs.
    pub(super) records: Budget,
    pub(super) ended: Option<End>,
    /// In the worker's list of pairs to advance.
    pub(super) touched: bool,
    news: bool,
    told: bool,
    /// Drained: our directions of the links are shut, the peer's are still to end.
    closing: bool,
    /// When the first of the peer's directions has ended, of a pair that both leave.
    half_closed_us: Option<u64>,
    born_us: u64,
    /// A program's own session, which may be stopped by a signal (^Z) for as long as somebody likes.
    may_be_stopped: bool,
}

/// What the peer may send on a stream of this kind. A record must be whole before it can be written.
pub(super) fn window_of(kind: &PumpKind) -> u32 {
    match kind {
        PumpKind::SeqPacket | PumpKind::Datagram => RECORD_WINDOW,
        _ => INITIAL_WINDOW,
    }
}

/// Why a pair ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
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

impl Pair {
    pub(super) fn new(id: u64, slot: usize, peer: Arc<Peer>, options: Options) -> Self {
        let may_be_stopped = peer.role == Role::Client && !options.dialer;
        Self {
            id,
            slot,
            peer,
            mux: Mux::new(options),
            lanes: [None, None],
            ports: Slab::new(),
            by_key: HashMap::new(),
            watches: Vec::new(),
            announced: Announced::default(),
            notices: Notices::default(),
            records: Budget::default(),
            ended: None,
            touched: false,
            news: false,
            told: false,
            closing: false,
            half_closed_us: None,
            born_us: options.now_us,
            may_be_stopped,
        }
    }

    /// Its local ends, for a test that fails.
    #[cfg(test)]
    pub(super) fn picture(&self) -> String {
        let port = |port: &Port| {
            let Port { key, source, source_op, sink_op, hangup, fin, sink_closed, plant, queue, .. } = port;
            let queue = queue.len();
            format!(
                "{key:?}: {source:?} {source_op:?}, sink {sink_op:?} fin={fin} closed={sink_closed} queue={queue}, \
                 hangup {hangup:?}, {plant:?}, rebuilding={} in mux: {:?}\n",
                port.rebuilding,
                self.mux.find(key.id()),
            )
        };
        self.ports.iter().map(|(_, one)| port(one)).collect::<String>() + &format!("{:?}", self.mux.books())
    }

    pub(super) fn token(&self, what: What, index: usize) -> u64 {
        Token { what, pair: self.slot, index }.pack()
    }

    fn at(&self, ctx: &Ctx) -> PairRef {
        PairRef { inbox: Arc::clone(&ctx.shared.inbox), pair: self.id }
    }

    // ---- links ---------------------------------------------------------------------------------------------------

    pub(super) fn add_link(&mut self, lane: Lane, fd: OwnedFd, guard: Guard, ctx: &mut Ctx) {
        if self.ended.is_some() || self.lanes[lane.index()].is_some() {
            return;
        }
        let token = self.token(What::LinkRecv, lane.index());
        let mut end = LaneEnd::new(lane, fd, guard);
        end.receive(ctx, token);
        self.lanes[lane.index()] = Some(end);
        self.mux.on_link_up(lane);
        if lane == Lane::Lat {
            self.mux.ping(ctx.now_us);
        }
    }

    pub(super) fn on_link_done(&mut self, what: What, index: usize, done: Done, ctx: &mut Ctx) {
        let recv_token = self.token(What::LinkRecv, index);
        let send_token = self.token(What::LinkSend, index);
        let Some(end) = &mut self.lanes[index] else { return };
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
                self.half_closed_us.get_or_insert(ctx.now_us);
            }
            Err(e) => self.end(e, ctx),
        }
    }

    /// Whether a link is there on which the peer has not ended.
    fn is_heard(&self) -> bool {
        self.lanes.iter().flatten().any(LaneEnd::is_receiving)
    }

    /// Whether the peer has just said that it takes no new streams.
    pub(super) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// The pair is over: every stream is reset, every fd closed.
    pub(super) fn end(&mut self, why: End, ctx: &mut Ctx) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(why);
        for lane in self.lanes.iter_mut().flatten() {
            lane.close(ctx);
        }
        // Whoever waits for the children's last byte must not take this for it: the notices are dropped unsent.
        self.watches.clear();
        self.mux.reset_all(Errno::ECONNRESET);
        // Not left to the streams' events: a port that has outlived its stream has none.
        let stranded = self.ports.iter().filter(|(_, port)| !port.ends_alone());
        for at in stranded.map(|(at, _)| at).collect::<Vec<_>>() {
            // One port's end may have been that of others.
            if self.ports.contains(at) {
                self.cut_off(at, Errno::ECONNRESET, ctx);
            }
        }
    }

    /// The stream of this port is no more.
    fn cut_off(&mut self, at: usize, errno: Errno, ctx: &mut Ctx) {
        if let Some(verdict) = self.ports[at].verdict.take() {
            verdict(Err(errno));
        }
        self.abort_with_children(at, ctx);
    }

    /// The links are gone: the node may forget the session, while what was received is still being written. Says so once.
    pub(super) fn take_cut(&mut self) -> bool {
        let cut = self.ended.is_some() && self.lanes.iter().flatten().all(LaneEnd::is_over);
        cut && !std::mem::replace(&mut self.told, true)
    }

    /// Nothing of the pair is left, in the kernel or here.
    pub(super) fn is_over(&self) -> bool {
        self.ended.is_some() && self.ports.is_empty() && self.lanes.iter().flatten().all(LaneEnd::is_over)
    }

    /// This process has been stopped for a while.
    pub(super) fn was_away(&mut self, now_us: u64) {
        self.mux.was_away(now_us);
    }

    pub(super) fn on_time(&mut self, ctx: &mut Ctx) {
        if self.ended.is_some() {
            return;
        }
        if self.lanes[Lane::Lat.index()].is_none() {
            if ctx.now_us.saturating_sub(self.born_us) > HELLO_DEADLINE_MS * 2000 {
                self.end(End::Broken("its LAT link never came".into()), ctx);
            }
            return;
        }
        let kernel_within = |lat: &Option<LaneEnd>, limit: u64| {
            lat.as_ref().and_then(LaneEnd::acknowledged_ms_ago).is_some_and(|ms| u64::from(ms) < limit)
        };
        let lat = &self.lanes[Lane::Lat.index()];
        if self.mux.is_excused() && !kernel_within(lat, EXCUSED_KERNEL_MS) {
            return self.end(End::Gone("its machine does not answer".into()), ctx);
        }
        if let Err(e) = self.mux.on_time(ctx.now_us) {
            if self.may_be_stopped && kernel_within(lat, DEAD_AFTER_MS / 2) {
                return self.mux.excuse(ctx.now_us);
            }
            self.end(if self.closing { End::Drained } else { End::Gone(e.0) }, ctx);
        }
        let quiet_us = |since: u64| ctx.now_us.saturating_sub(since.max(self.mux.heard_us()));
        if self.half_closed_us.is_some_and(|since| quiet_us(since) > HALF_CLOSED_MS * 1000) {
            self.end(if self.is_drained() { End::Drained } else { End::Closed }, ctx);
        }
        match self.notices.tick() {
            0 => {}
            more => tracing::warn!(peer = %self.peer, "{more} more fds could not be passed"),
        }
        self.announced.tick(|child| self.mux.waits_for_peer(child));
        let waiting: Vec<usize> = self.ports.iter().filter(|(_, p)| p.is_listener()).map(|(at, _)| at).collect();
        for at in waiting {
            self.pump(at, ctx);
        }
        for (_, port) in &mut self.ports {
            port.looks.tick();
            if port.relax() {
                self.mux.relax(port.key);
            }
            if port.source != SourceState::Reading || port.is_listener() {
                continue;
            }
            if std::mem::replace(&mut port.cooling, true)
                && let Some(op) = port.source_op
            {
                ctx.engine.cancel(op);
            }
        }
    }

    /// Gives back the memory that a burst of streams needed.
    pub(super) fn rest(&mut self) {
        self.mux.rest();
        slack::slab(&mut self.ports);
        slack::map(&mut self.by_key);
    }

    /// Carries out what the mux says, then sends what is ready.
    pub(super) fn advance(&mut self, ctx: &mut Ctx) {
        self.carry_out(ctx);
        self.relieve(ctx);
        if self.closing {
            return;
        }
        for index in 0..2 {
            let token = self.token(What::LinkSend, index);
            if let Some(end) = &mut self.lanes[index]
                && end.is_idle()
                && let Err(e) = end.transmit(&mut self.mux, ctx, token)
            {
                self.end(e, ctx);
            }
        }
        if self.lanes.iter().flatten().any(|end| end.holds_up(&self.mux)) {
            ctx.engine.hurry();
        }
        let idle = self.lanes.iter().flatten().all(LaneEnd::is_idle);
        if self.is_drained() && self.ended.is_none() && idle {
            // Not closed before the peer has closed its side too: unread bytes would turn our last frames into a reset.
            self.closing = true;
            self.lanes.iter().flatten().for_each(LaneEnd::finish);
        }
    }

    /// Records of which too much has come and not been read: whoever holds most of it ends. A link can't wait for one
    /// program, and nothing else would free a byte.
    fn relieve(&mut self, ctx: &mut Ctx) {
        while self.records.held() + self.mux.early_records() > RECORDS_HELD_MAX {
            let holds =
                |port: &Port| port.share.as_ref().map_or(0, |share| share.held()) + self.mux.early_records_of(port.key);
            let Some((_, port)) = self.ports.iter().max_by_key(|(_, port)| holds(port)) else { return };
            let key = port.key;
            tracing::warn!(peer = %self.peer, "stream {} ends: {} bytes of records nobody reads", key.id(), holds(port));
            self.reset(key, Errno::ENOBUFS, ctx);
        }
    }

    /// Both sides opened no more streams, and the last one has ended.
    fn is_drained(&self) -> bool {
        self.mux.is_left() && self.mux.streams() == 0
    }

    pub(super) fn carry_out(&mut self, ctx: &mut Ctx) {
        while let Some(event) = self.mux.poll_event() {
            self.on_event(event, ctx);
        }
    }

    // ---- events --------------------------------------------------------------------------------------------------

    fn on_event(&mut self, event: Event<Chunk>, ctx: &mut Ctx) {
        match event {
            Event::Incoming { key, service, request } => self.on_incoming(key, service, request, ctx),
            Event::Accepted { key, said } => {
                let Some(at) = self.port_of(key) else { return };
                if let Some(verdict) = self.ports[at].verdict.take() {
                    verdict(Ok(Pending::new(self.at(ctx), key).with_said(said)));
                }
                self.pump(at, ctx);
            }
            Event::Data { key, payload, record_end, recipes, overhead } => {
                let Some(at) = self.port_of(key) else { return self.refuse(recipes.into_iter().collect()) };
                if self.ports[at].is_home() {
                    // Nothing is to be said on a listener's stream.
                    return self.reset(key, Errno::EPROTO, ctx);
                }
                if self.ports[at].sink_closed {
                    self.mux.on_sink_gone(key, false);
                    return self.refuse(recipes.into_iter().collect());
                }
                match self.ports[at].take_in(payload, record_end, recipes, overhead) {
                    Ok(()) => self.write(at, ctx),
                    Err(errno) => self.reset(key, errno, ctx),
                }
            }
            Event::Fin { key } => {
                let Some(at) = self.port_of(key) else { return };
                if self.ports[at].is_home() {
                    return self.reset(key, Errno::ECONNRESET, ctx);
                }
                self.ports[at].fin = true;
                self.close_sink(at, ctx);
            }
            Event::ReadClosed { key, unread } => {
                self.drop_announced(key.id(), ctx);
                let Some(at) = self.port_of(key) else { return };
                self.on_unheard(at, unread, ctx);
            }
            Event::Unheard { id } => self.drop_announced(id, ctx),
            Event::Reset { key, errno } => {
                self.drop_announced(key.id(), ctx);
                let Some(at) = self.port_of(key) else { return };
                // An output that was cut off has not written all: its parent's notice is dropped unsent.
                let output = matches!(self.ports[at].kind, Some(PumpKind::Sink | PumpKind::FileSink(_)))
                    && !self.ports[at].sink_closed;
                if let (Some(parent), true) = (&self.ports[at].parent, output) {
                    self.watches.retain(|(key, _)| *key != **parent);
                }
                self.cut_off(at, errno, ctx);
            }
            Event::MayRead { key } => {
                let Some(at) = self.port_of(key) else { return };
                if self.ports[at].source == SourceState::Starved {
                    self.ports[at].source = SourceState::Idle;
                    self.pump(at, ctx);
                }
            }
            Event::GoingAway => {
                tracing::debug!(peer = %self.peer, "the peer takes no new streams");
                // The answer tells the peer that every OPEN of ours has reached it: then it may close.
                self.leave();
                self.news = true;
            }
        }
    }

    fn on_incoming(&mut self, key: Key, service: u16, request: Vec<u8>, ctx: &Ctx) {
        // A stream that has ended may have left its last bytes with a program that does not read.
        if self.ports.len() >= PORTS_MAX {
            return self.mux.reset(key, Errno::EMFILE);
        }
        if service == service::REFUSED {
            return self.on_refused_there(key, &request);
        }
        let at = self.add_port(key);
        self.ports[at].owns_children = service == service::EXEC;
        let stream = Pending::new(self.at(ctx), key);
        if service == service::LISTENER_CLIENT {
            self.ports[at].on_refusal = OnRefusal::Placeholder;
            self.on_listener_client(&request, stream, ctx);
            return;
        }
        let peer = Arc::clone(&self.peer);
        ctx.shared.handler.on_open(Incoming { service, request, peer, stream, helpers: ctx.shared.helpers.clone() });
    }

    // ---- commands ------------------------------------------------------------------------------------------------

    pub(super) fn open(&mut self, service: u16, request: Vec<u8>, verdict: Verdict) {
        if self.ended.is_some() {
            // It has not begun: another session may be there.
            return verdict(Err(Errno::ECONNABORTED));
        }
        match self.mux.open(service, request, INITIAL_WINDOW) {
            Ok(key) => {
                let at = self.add_port(key);
                self.ports[at].verdict = Some(verdict);
            }
            Err(errno) => verdict(Err(errno)),
        }
    }

    /// Incoming streams get their verdict with it; opened ones have theirs already.
    pub(super) fn attach(
        &mut self,
        key: Key,
        pump: Pump,
        (first, Terms { said, speaks_as }): (Option<First>, Terms),
        ctx: &mut Ctx,
    ) {
        let Some(at) = self.port_of(key) else { return };
        self.ports[at].speaks_as = speaks_as;
        if self.mux.waits_for_us(key) {
            self.mux.accept(key, INITIAL_WINDOW, said);
        }
        if let Some(first) = first
            && !self.send_first(key, first, ctx)
        {
            return self.reset(key, Errno::EMFILE, ctx);
        }
        self.start(at, pump, ctx);
    }

    pub(super) fn start(&mut self, at: usize, pump: Pump, ctx: &mut Ctx) {
        let key = self.ports[at].key;
        match pump.kind {
            PumpKind::Sink | PumpKind::FileSink(_) | PumpKind::Fill(_) | PumpKind::Listening(_) => self.mux.on_eof(key),
            _ => {}
        }
        if !self.mux.widen(key, window_of(&pump.kind)) {
            tracing::warn!(peer = %self.peer, "stream {} ends: too many that carry records", key.id());
            return self.reset(key, Errno::ENOBUFS, ctx);
        }
        self.ports[at].attach(pump.fd, pump.kind, &self.records);
        if let Err(errno) = self.ports[at].take_in_early() {
            return self.reset(key, errno, ctx);
        }
        self.pump(at, ctx);
        self.write(at, ctx);
        self.close_sink(at, ctx);
        self.bury(at, ctx);
    }

    pub(super) fn reset(&mut self, key: Key, errno: Errno, ctx: &mut Ctx) {
        self.mux.reset(key, errno);
        if let Some(at) = self.port_of(key) {
            self.abort_with_children(at, ctx);
        }
    }

    pub(super) fn when_children_done(&mut self, key: Key, then: Notice) {
        self.watches.push((key, then));
        self.look_at_watches();
    }

    pub(super) fn look_at_watches(&mut self) {
        for at in (0..self.watches.len()).rev() {
            let parent = Some(&self.watches[at].0);
            let busy = |p: &Port| p.parent.as_deref() == parent && !p.sink_closed;
            if !self.ports.iter().any(|(_, p)| busy(p)) {
                (self.watches.swap_remove(at).1)();
            }
        }
    }

    pub(super) fn leave(&mut self) {
        self.mux.leave();
    }

    // ---- ports ---------------------------------------------------------------------------------------------------

    pub(super) fn add_port(&mut self, key: Key) -> usize {
        let at = self.ports.insert(Port::new(key));
        self.by_key.insert(key, at);
        at
    }

    pub(super) fn port_of(&self, key: Key) -> Option<usize> {
        self.by_key.get(&key).copied()
    }

    pub(super) fn remove_port(&mut self, at: usize) -> Port {
        let port = self.ports.remove(at);
        let idle = port.source_op.is_none() && port.sink_op.is_none() && port.hangup.is_none();
        assert!(idle, "an operation in flight names this slot");
        self.by_key.remove(&port.key);
        port
    }

    /// A stream that was announced and will not be sent after all.
    pub(super) fn forget(&mut self, key: Key) {
        self.mux.reset(key, Errno::ECONNRESET);
        if let Some(at) = self.port_of(key) {
            self.remove_port(at);
        }
    }
}
