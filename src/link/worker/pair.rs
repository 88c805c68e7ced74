//! A link pair on its worker: one mux, two connections, and the local ends of its streams.
//!
//! ```text
//!   completions ─▶ links ──▶ mux ─▶ events ─▶ streams ─▶ actions ─▶ operations
//!              └─▶ streams ─▶ │
//!                             └──▶ frames ─▶ links ─▶ operations
//! ```
//!
//! `advance` runs after every turn's completions: first all events, then what leaves. A pair whose link fails ends as a
//! whole: every stream is reset, every fd closed. What stays is a local end whose stream had ended before, with bytes that
//! are only to be written: it needs nobody but its program and the kernel.

use std::sync::Arc;

use super::announced::Announced;
use super::ctx::Ctx;
use super::inbox::{HelperAnswer, PairRef};
use super::links::{End, Links};
use super::local::{Locals, Outputs};
use super::notices::Notices;
use super::peer::Peer;
use super::token::{Token, What};
use crate::errno::Errno;
use crate::limits::RECORDS_HELD_MAX;
use crate::mux::{Mux, Options};
use crate::ring::Chunk;
use crate::stream::{Budget, Kind};
use crate::wire::hello::Role;

pub(in crate::link) struct Pair {
    /// The same everywhere in this process; never used again.
    pub(super) id: u64,
    slot: usize,
    pub(super) peer: Arc<Peer>,
    pub(in crate::link) mux: Mux<Chunk>,
    pub(super) links: Links,
    pub(in crate::link) locals: Locals,
    pub(super) outputs: Outputs,
    pub(super) announced: Announced,
    pub(super) notices: Notices,
    /// What streams of records hold for programs.
    pub(in crate::link) records: Budget,
    pub(super) ended: Option<End>,
    pub(super) marks: Marks,
}

/// What the worker is still to do about the pair.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// It is in the worker's list of pairs to advance.
    pub(super) touched: bool,
    /// The peer has just said that it takes no new streams.
    pub(super) leaves: bool,
    /// The node has been told of its end.
    pub(super) told: bool,
}

impl Pair {
    pub(super) fn new(id: u64, slot: usize, peer: Arc<Peer>, options: Options) -> Self {
        let may_be_stopped = peer.role == Role::Client && !options.dialer;
        Self {
            id,
            slot,
            peer,
            mux: Mux::new(options),
            links: Links::new(options, may_be_stopped),
            locals: Locals::default(),
            outputs: Outputs::default(),
            announced: Announced::default(),
            notices: Notices::default(),
            records: Budget::default(),
            ended: None,
            marks: Marks::default(),
        }
    }

    /// Its local ends, for a test that fails.
    #[cfg(test)]
    pub(in crate::link) fn picture(&self) -> String {
        let one = |(_, local): (usize, &super::local::Local)| {
            format!("{:?} {:?}, in mux: {:?}\n", local.stream, local.io.ops, self.mux.find(local.stream.key().id()))
        };
        self.locals.iter().map(one).collect::<String>() + &format!("{:?}", self.mux.books())
    }

    pub(super) fn token(&self, what: What, index: usize) -> u64 {
        Token { what, pair: self.slot, index }.pack()
    }

    pub(super) fn at(&self, ctx: &Ctx) -> PairRef {
        PairRef { inbox: Arc::clone(&ctx.shared.inbox), pair: self.id }
    }

    /// By which a helper brings what it was asked for.
    pub(super) fn answer(&self, at: usize, ctx: &Ctx) -> HelperAnswer {
        HelperAnswer::new(self.at(ctx), (at, self.locals[at].stream.key()))
    }

    /// Whether the peer has just said that it takes no new streams.
    pub(super) fn take_leaving(&mut self) -> bool {
        std::mem::take(&mut self.marks.leaves)
    }

    /// The links are gone: the node may forget the session, while what was received is still being written. Says so once.
    pub(super) fn take_cut(&mut self) -> bool {
        let cut = self.ended.is_some() && self.links.are_over();
        cut && !std::mem::replace(&mut self.marks.told, true)
    }

    /// Nothing of the pair is left, in the kernel or here.
    pub(super) fn is_over(&self) -> bool {
        self.ended.is_some() && self.locals.is_empty() && self.links.are_over()
    }

    /// This process has been stopped for a while.
    pub(super) fn was_away(&mut self, now_us: u64) {
        self.mux.was_away(now_us);
    }

    pub(super) fn on_time(&mut self, ctx: &mut Ctx) {
        if self.ended.is_some() || !self.check_links(ctx) {
            return;
        }
        match self.notices.tick() {
            0 => {}
            more => tracing::warn!(peer = %self.peer, "{more} more fds could not be passed"),
        }
        self.announced.tick(|child| self.mux.waits_for_peer(child));
        let mut to_drive = Vec::new();
        for (at, local) in self.locals.iter_mut() {
            if local.stream.shrink() {
                self.mux.relax(local.stream.key());
            }
            if local.stream.tick() {
                to_drive.push(at);
            }
        }
        for at in to_drive {
            self.drive(at, ctx);
        }
    }

    /// Gives back the memory that a burst of streams needed.
    pub(super) fn rest(&mut self) {
        self.mux.rest();
        self.locals.shrink();
    }

    /// Carries out what the mux says, then sends what is ready.
    pub(super) fn advance(&mut self, ctx: &mut Ctx) {
        self.process_events(ctx);
        self.enforce_record_budget(ctx);
        self.transmit(ctx);
    }

    /// Records of which too much has come and not been read: whoever holds most of it ends. A link can't wait for one
    /// program, and nothing else would free a byte.
    fn enforce_record_budget(&mut self, ctx: &mut Ctx) {
        while self.records.held() + self.mux.early_records() > RECORDS_HELD_MAX {
            let holds = |local: &super::local::Local| {
                local.stream.sink.held_records() + self.mux.early_records_of(local.stream.key())
            };
            let Some((_, most)) = self.locals.iter().max_by_key(|(_, local)| holds(local)) else { return };
            let key = most.stream.key();
            tracing::warn!(peer = %self.peer, "stream {} ends: {} bytes of records nobody reads", key.id(), holds(most));
            self.reset(key, Errno::ENOBUFS, ctx);
        }
    }

    /// Has a helper see which listeners that were made here are held by nobody any more: a connect to the far one must be
    /// refused then, and nothing be left of it.
    pub(super) fn look_at_homes(&self, ctx: &Ctx) {
        use crate::fdpass::{self, Keeps};
        let homes: Vec<_> = (self.locals.iter())
            .filter(|(_, local)| local.stream.kind() == Some(Kind::Listening))
            .filter_map(|(_, local)| match &local.io.keeps {
                Keeps::Home(home) => Some((local.stream.key(), home.socket())),
                _ => None,
            })
            .collect();
        if homes.is_empty() {
            return;
        }
        let at = self.at(ctx);
        ctx.shared.helpers.run(move || match fdpass::abandoned(homes) {
            Ok(gone) => gone.into_iter().for_each(|key| at.reset(key, Errno::ECONNREFUSED)),
            // Then the next client finds out.
            Err(e) => tracing::debug!("listeners that were made here: {e}"),
        });
    }
}
