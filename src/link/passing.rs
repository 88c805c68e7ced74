//! fds that cross, as far as a pair is concerned: streams announced for them, and the helpers' answers.
//!
//! ```text
//!   near:  fds read ─▶ helper: describe ─▶ on_described ─▶ announce a stream for each pump ─▶ RECIPE + DATA
//!   far:   RECIPE + DATA ─▶ helper: rebuild ─▶ on_rebuilt ─▶ adopt the streams, start the pumps ─▶ sendmsg with fds
//! ```

use std::sync::Arc;

use super::ctx::Ctx;
use super::inbox::{Cmd, First, Found, Pending};
use super::pair::{Pair, window_of};
use super::port::{Plant, Port, SourceState};
use crate::errno::{Errno, OsResult};
use crate::fdpass::{self, Described, OnRefusal, PumpKind, Rebuilt, Refusal};
use crate::limits::INITIAL_WINDOW;
use crate::mux::{Key, Payload, Recipes};
use crate::ring::Chunk;
use crate::sys::closer;
use crate::wire::recipe::{Recipe, Refused, encode_all};
use crate::wire::service;

/// A command's own sockets and listeners outlive a refused fd: what it can't use it says to whoever passed it.
fn inherited(owns: bool) -> OnRefusal {
    if owns { OnRefusal::Placeholder } else { OnRefusal::Fail }
}

/// The log target of these lines. Clients show them by default: nobody else tells their user.
pub const REFUSED_LOG: &str = "refused";

impl Pair {
    pub(super) fn send_first(&mut self, key: Key, first: First, ctx: &Ctx) -> bool {
        let Some(recipes) = self.announce(first.fds, key, true) else { return false };
        let chunk = Chunk::from_vec(first.bytes);
        self.mux.on_read(key, chunk, false, recipes, ctx.now_us);
        true
    }

    /// Announces a stream for every fd that needs one, on the stream `carrier`, whose end is theirs if it `owns` them.
    /// `None`: no stream could be had, and nothing is left behind.
    fn announce(&mut self, fds: Vec<Described>, carrier: Key, owns: bool) -> Option<Option<Recipes>> {
        let count = fds.len();
        let mut recipes: Vec<Recipe> = Vec::with_capacity(count);
        let mut made: Vec<Key> = Vec::new();
        for mut fd in fds {
            if let Some(pump) = fd.pump {
                let Ok(key) = self.mux.announce(window_of(&pump.kind)) else {
                    for key in made {
                        self.forget(key);
                    }
                    return None;
                };
                made.push(key);
                fd.recipe.set_stream(key.id());
                let at = self.add_port(key);
                self.ports[at].parent = owns.then(|| Box::new(carrier));
                self.ports[at].on_refusal = inherited(owns);
                self.ports[at].shared = true;
                if matches!(pump.kind, PumpKind::Sink | PumpKind::FileSink(_)) {
                    self.mux.on_eof(key);
                }
                self.ports[at].attach(pump.fd, pump.kind, &self.records);
            }
            recipes.push(fd.recipe);
        }
        self.announced.add(carrier, made.clone(), |child| self.mux.waits_for_peer(child));
        if owns {
            self.note_children(carrier, made);
        }
        Some((count > 0).then(|| Recipes::new(encode_all(&recipes), count)))
    }

    /// Remembers what ends with a stream, and forgets what has ended since: as many again may pile up first.
    fn note_children(&mut self, carrier: Key, new: Vec<Key>) {
        let Some(at) = self.port_of(carrier) else { return };
        let mut children = std::mem::take(&mut self.ports[at].children);
        if children.len() + new.len() > children.capacity() {
            children.retain(|child| self.port_of(*child).is_some());
        }
        children.extend(new);
        self.ports[at].children = children;
    }

    /// A helper has described the fds that came with a message.
    pub(super) fn on_described(&mut self, (at, key): (usize, Key), result: OsResult<Found>, ctx: &mut Ctx) {
        if self.ports.get(at).is_some_and(|p| p.key == key && p.plant == Plant::Later) {
            self.ports[at].plant = Plant::Wanted;
            return self.plant(at, ctx);
        }
        if self.ports.get(at).is_none_or(|p| p.key != key || p.source != SourceState::Describing) {
            return;
        }
        let found = match result {
            Ok(found) => found,
            Err(e) => {
                tracing::warn!(peer = %self.peer, "stream {} ends: {e}", key.id());
                return self.reset(key, e.errno, ctx);
            }
        };
        if !found.before.is_empty() {
            self.mux.on_read(key, Chunk::from_vec(found.before), false, None, ctx.now_us);
        }
        for fd in &found.fds {
            if let Recipe::Refused { reason } = &fd.recipe {
                self.say_refused(key.id(), "an fd can't be passed", reason);
            }
        }
        let Some(recipes) = self.announce(found.fds, key, false) else { return self.reset(key, Errno::EMFILE, ctx) };
        let chunk = found.bytes.map(Chunk::from_vec).or(self.ports[at].held.take().map(|held| *held));
        if let (Some(chunk), Some(recipes)) = (chunk, recipes) {
            let record = self.ports[at].keeps_records();
            self.mux.on_read(key, chunk, record, Some(recipes), ctx.now_us);
        }
        self.ports[at].source = SourceState::Idle;
        self.pump(at, ctx);
    }

    /// A helper has made the fds for a message that is to be written.
    pub(super) fn on_rebuilt(&mut self, (at, key): (usize, Key), result: OsResult<Vec<Rebuilt>>, ctx: &mut Ctx) {
        // Ended or cut off meanwhile: what was made is closed again.
        if self.ports.get(at).is_none_or(|p| p.key != key || p.sink_closed) {
            return closer::close(result.into_iter().flatten().map(|made| made.fd));
        }
        self.ports[at].rebuilding = false;
        let made = match result {
            Ok(made) => made,
            Err(e) => {
                tracing::warn!(peer = %self.peer, "stream {} ends: {e}", key.id());
                return self.reset(key, e.errno, ctx);
            }
        };
        let mut fds = Vec::with_capacity(made.len());
        let mut children = Vec::new();
        for Rebuilt { fd, refusal, pump } in made {
            fds.push(fd);
            refusal.into_iter().for_each(|refusal| self.on_refusal(key, refusal));
            let Some((id, pump)) = pump else { continue };
            if self.mux.is_full() {
                // Nobody's mistake: the two ends forget streams at different times. The message is not delivered.
                self.note_children(key, children);
                closer::close(fds);
                return self.reset(key, Errno::EMFILE, ctx);
            }
            let adopted = match self.mux.adopt(id, INITIAL_WINDOW) {
                Ok(adopted) => adopted,
                Err(e) => return self.end(e.into(), ctx),
            };
            let child = self.add_port(adopted);
            let owns = self.ports[at].owns_children;
            self.ports[child].parent = owns.then(|| Box::new(key));
            self.ports[child].on_refusal = inherited(owns);
            if owns {
                children.push(adopted);
            }
            if matches!(pump.kind, PumpKind::Fill(_)) {
                self.ports[child].fills_for = Some(Box::new(key));
                self.ports[at].fills += 1;
            }
            self.mux.accept(adopted, INITIAL_WINDOW, Vec::new());
            self.start(child, pump, ctx);
        }
        self.note_children(key, children);
        self.ports[at].on_fds(fds);
        self.write(at, ctx);
    }

    /// A message of this stream is delivered with a placeholder.
    fn on_refusal(&mut self, key: Key, refusal: Refusal) {
        match refusal {
            Refusal::There { reason } => {
                self.say_refused(key.id(), "the peer can't pass an fd", &reason);
            }
            Refusal::Here { error, stream } => {
                let reason = error.to_string();
                if let Some(id) = stream {
                    self.mux.refuse(id, error.errno);
                }
                if self.say_refused(key.id(), "an fd can't be made here", &reason) {
                    // Without a stream to be had the line in this log must do.
                    let request = Refused { stream: key.id(), reason }.encode();
                    let _ = self.mux.open(service::REFUSED, request, INITIAL_WINDOW);
                }
            }
        }
    }

    /// The peer could not make an fd that was passed here.
    pub(super) fn on_refused_there(&mut self, key: Key, request: &[u8]) {
        match Refused::decode(request) {
            Ok(Refused { stream, reason }) => {
                self.say_refused(stream, "the peer can't make an fd", &reason);
            }
            Err(e) => tracing::debug!(peer = %self.peer, "{e}"),
        }
        self.mux.reset(key, Errno::ECANCELED);
    }

    /// Returns whether it was said.
    fn say_refused(&mut self, stream: u32, what: &str, reason: &str) -> bool {
        let may = self.notices.may_say();
        if may {
            tracing::warn!(target: REFUSED_LOG, peer = %self.peer, "stream {stream}: {what}, its receiver gets a placeholder: {reason}");
        }
        may
    }

    /// Has a helper see which listeners that were made here are held by nobody any more: a connect to the far one must be
    /// refused then, and nothing be left of it.
    pub(super) fn look_at_homes(&self, ctx: &Ctx) {
        let home = |port: &Port| match &port.kind {
            Some(PumpKind::Listening(home)) => Some((port.key, home.socket())),
            _ => None,
        };
        let homes: Vec<_> = self.ports.iter().filter_map(|(_, port)| home(port)).collect();
        if homes.is_empty() {
            return;
        }
        let (inbox, pair) = (Arc::clone(&ctx.shared.inbox), self.id);
        ctx.shared.helpers.run(move || match fdpass::abandoned(homes) {
            Ok(gone) => {
                for key in gone {
                    inbox.push(Cmd::Reset { pair, key, errno: Errno::ECONNREFUSED });
                }
            }
            // Then the next client finds out.
            Err(e) => tracing::debug!("listeners that were made here: {e}"),
        });
    }

    /// The command behind `key` has ended.
    pub(super) fn finish_children(&mut self, key: Key, ctx: &mut Ctx) {
        let Some(at) = self.port_of(key) else { return };
        for child in self.ports[at].children.clone() {
            // One child's end may have been that of others.
            let Some(at) = self.port_of(child) else { continue };
            match self.ports[at].kind {
                Some(
                    PumpKind::Sink
                    | PumpKind::FileSink(_)
                    | PumpKind::Fill(_)
                    | PumpKind::Listener(_)
                    | PumpKind::Listening(_),
                )
                | None => {
                    self.reset(child, Errno::EPIPE, ctx);
                }
                // What they hold is read, and then their end.
                Some(_) => {
                    self.ports[at].finishing = true;
                    if let Some(op) = self.ports[at].source_op {
                        ctx.engine.cancel(op);
                    } else if self.ports[at].source == SourceState::Idle {
                        self.pump(at, ctx);
                    }
                }
            }
        }
    }

    /// A client of a listener that crossed: connect it to the one that was made here.
    pub(super) fn on_listener_client(&mut self, request: &[u8], stream: Pending, ctx: &Ctx) {
        let wanted = request.try_into().map(u32::from_le_bytes).ok();
        let listener = wanted.and_then(|id| self.mux.find(id));
        let found = listener.and_then(|key| match &self.ports[self.port_of(key)?].kind {
            Some(PumpKind::Listening(home)) => Some((key, home.address())),
            _ => None,
        });
        let Some((listener, address)) = found else { return stream.refuse(Errno::ECONNREFUSED) };
        let (inbox, pair) = (Arc::clone(&ctx.shared.inbox), self.id);
        ctx.shared.helpers.run(move || match address.connect() {
            Ok(pump) => drop(stream.attach(pump)),
            Err(e) => {
                stream.refuse(e.errno);
                // The program has closed its listening socket: the near one has no use any more.
                if matches!(e.errno, Errno::ECONNREFUSED | Errno::ENOENT) {
                    inbox.push(Cmd::Reset { pair, key: listener, errno: e.errno });
                }
            }
        });
    }
}
