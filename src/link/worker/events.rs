//! Applies mux events and the commands of other threads to the streams of a pair.

use std::sync::Arc;

use super::ctx::Ctx;
use super::inbox::{First, Pending, Terms, Verdict};
use super::pair::Pair;
use super::peer::Incoming;
use crate::errno::Errno;
use crate::fdpass::{Keeps, OnRefusal, Pump};
use crate::limits::{INITIAL_WINDOW, PORTS_MAX};
use crate::mux::{Event, Key};
use crate::ring::Chunk;
use crate::stream::{Arrival, AtCommandEnd, Kind};
use crate::wire::service;

impl Pair {
    pub(super) fn process_events(&mut self, ctx: &mut Ctx) {
        while let Some(event) = self.mux.poll_event() {
            self.on_event(event, ctx);
        }
    }

    fn on_event(&mut self, event: Event<Chunk>, ctx: &mut Ctx) {
        match event {
            Event::Incoming { key, service, request } => self.on_incoming(key, service, request, ctx),
            Event::Accepted { key, said } => {
                let Some(at) = self.locals.find(key) else { return };
                if let Some(verdict) = self.locals[at].verdict.take() {
                    verdict(Ok(Pending::new(self.at(ctx), key).with_said(said)));
                }
                self.locals[at].stream.source.on_accepted();
                self.drive(at, ctx);
            }
            Event::Data { key, payload, record_end, recipes, overhead } => {
                self.on_data(key, Arrival { payload, record_end, recipes, overhead }, ctx);
            }
            Event::Fin { key } => {
                let Some(at) = self.locals.find(key) else { return };
                if self.locals[at].stream.kind() == Some(Kind::Listening) {
                    return self.reset(key, Errno::ECONNRESET, ctx);
                }
                self.locals[at].stream.sink.on_fin();
                self.drive(at, ctx);
            }
            Event::ReadClosed { key, unread } => {
                self.drop_announced(key.id(), ctx);
                let Some(at) = self.locals.find(key) else { return };
                self.locals[at].stream.on_read_closed(unread);
                self.drive(at, ctx);
            }
            Event::Unheard { id } => self.drop_announced(id, ctx),
            Event::Reset { key, errno } => self.on_reset(key, errno, ctx),
            Event::MayRead { key } => {
                let Some(at) = self.locals.find(key) else { return };
                self.locals[at].stream.source.on_room();
                self.drive(at, ctx);
            }
            Event::GoingAway => {
                tracing::debug!(peer = %self.peer, "the peer takes no new streams");
                // The answer tells the peer that every OPEN of ours has reached it: then it may close.
                self.mux.leave();
                self.marks.leaves = true;
            }
        }
    }

    fn on_data(&mut self, key: Key, arrival: Arrival<Chunk>, ctx: &mut Ctx) {
        let local = self.locals.find(key).map(|at| (at, &mut self.locals[at]));
        let Some((at, local)) = local else { return arrival.recipes.iter().for_each(|recipes| self.refuse(recipes)) };
        if local.stream.kind() == Some(Kind::Listening) {
            // Nothing is to be said on a listener's stream.
            return self.reset(key, Errno::EPROTO, ctx);
        }
        if local.stream.sink.is_closed() {
            self.mux.on_sink_gone(key, false);
            return arrival.recipes.iter().for_each(|recipes| self.refuse(recipes));
        }
        let fits = match &mut local.io.keeps {
            Keeps::Fill(fill) => fill.take_in(crate::mux::Payload::len(&arrival.payload)),
            _ => Ok(()),
        };
        match fits.and_then(|()| local.stream.sink.take_in(arrival)) {
            Ok(()) => self.drive(at, ctx),
            Err(errno) => self.reset(key, errno, ctx),
        }
    }

    fn on_reset(&mut self, key: Key, errno: Errno, ctx: &mut Ctx) {
        self.drop_announced(key.id(), ctx);
        let Some(at) = self.locals.find(key) else { return };
        let local = &self.locals[at];
        // An output that was cut off has not written all.
        let output = local.stream.kind().is_some_and(Kind::only_writes) && !local.stream.sink.is_closed();
        if let (Some(parent), true) = (local.kin.parent.as_deref(), output) {
            self.outputs.cut(*parent);
        }
        self.cut_off(at, errno, ctx);
    }

    /// The stream of this local end is no more.
    pub(super) fn cut_off(&mut self, at: usize, errno: Errno, ctx: &mut Ctx) {
        if let Some(verdict) = self.locals[at].verdict.take() {
            verdict(Err(errno));
        }
        self.abort(at, ctx);
    }

    fn on_incoming(&mut self, key: Key, service: u16, request: Vec<u8>, ctx: &Ctx) {
        // A stream that has ended may have left its last bytes with a program that does not read.
        if self.locals.len() >= PORTS_MAX {
            return self.mux.reset(key, Errno::EMFILE);
        }
        if service == service::REFUSED {
            return self.on_refused_there(key, &request);
        }
        let at = self.locals.add(key);
        self.locals[at].kin.owns_children = service == service::EXEC;
        let stream = Pending::new(self.at(ctx), key);
        if service == service::LISTENER_CLIENT {
            self.locals[at].kin.on_refusal = OnRefusal::Placeholder;
            return self.on_listener_client(&request, stream, ctx);
        }
        let (peer, helpers) = (Arc::clone(&self.peer), ctx.shared.helpers.clone());
        ctx.shared.handler.on_open(Incoming { service, request, peer, stream, helpers });
    }

    // ---- commands ------------------------------------------------------------------------------------------------

    pub(super) fn open(&mut self, service: u16, request: Vec<u8>, verdict: Verdict) {
        if self.ended.is_some() {
            // It has not begun: another session may be there.
            return verdict(Err(Errno::ECONNABORTED));
        }
        match self.mux.open(service, request, INITIAL_WINDOW) {
            Ok(key) => {
                let at = self.locals.add(key);
                self.locals[at].verdict = Some(verdict);
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
        let Some(at) = self.locals.find(key) else { return };
        self.locals[at].io.speaks_as = speaks_as.map(Box::new);
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

    /// Moves bytes between the stream and this local end from now on.
    pub(super) fn start(&mut self, at: usize, pump: Pump, ctx: &mut Ctx) {
        let key = self.locals[at].stream.key();
        if !self.mux.widen(key, pump.kind.row().window) {
            tracing::warn!(peer = %self.peer, "stream {} ends: too many that carry records", key.id());
            return self.reset(key, Errno::ENOBUFS, ctx);
        }
        match self.set_local_end(at, pump) {
            Ok(()) => self.drive(at, ctx),
            Err(errno) => self.reset(key, errno, ctx),
        }
    }

    /// # Errors
    /// The stream must be reset: what came before can't be written.
    pub(super) fn set_local_end(&mut self, at: usize, pump: Pump) -> Result<(), Errno> {
        let local = &mut self.locals[at];
        let kind = pump.kind;
        local.io.attach(pump);
        if let (Some(parent), true) = (local.kin.parent.as_deref(), kind.writes()) {
            self.outputs.begin(*parent);
        }
        local.stream.attach(kind, &self.records)
    }

    /// The command behind `key` has ended.
    pub(super) fn finish_children(&mut self, key: Key, ctx: &mut Ctx) {
        let Some(at) = self.locals.find(key) else { return };
        for child in self.locals[at].kin.children.clone() {
            // One child's end may have been that of others.
            let Some(at) = self.locals.find(child) else { continue };
            match self.locals[at].stream.kind().map(|kind| kind.row().at_command_end) {
                Some(AtCommandEnd::Drain) => {
                    self.locals[at].stream.source.finish();
                    self.drive(at, ctx);
                }
                Some(AtCommandEnd::Reset) | None => self.reset(child, Errno::EPIPE, ctx),
            }
        }
    }
}
