//! fds that cross, as far as a pair is concerned: streams announced for them, and the helpers' answers.
//!
//! ```text
//!   near:  fds read ─▶ helper: describe ─▶ on_described ─▶ announce a stream for each pump ─▶ RECIPE + DATA
//!   far:   RECIPE + DATA ─▶ helper: rebuild ─▶ on_rebuilt ─▶ adopt the streams, start the pumps ─▶ sendmsg with fds
//! ```

use std::sync::Arc;

use super::inbox::{Cmd, First, Pending};
use super::pair::{Pair, Shared};
use super::port::{Hands, Item, SourceState};
use crate::errno::{Errno, OsResult};
use crate::fdpass::{self, Described, Pump, PumpKind, Rebuilt};
use crate::limits::INITIAL_WINDOW;
use crate::mux::{Key, Payload, Recipes};
use crate::ring::Chunk;
use crate::wire::recipe::{Recipe, encode_all};

impl Pair {
    pub(super) fn send_first(&mut self, key: Key, first: First, now_us: u64) -> bool {
        let Some(recipes) = self.announce(first.fds, Some(key)) else { return false };
        let chunk = Chunk::from_vec(first.bytes);
        self.mux.on_read(key, chunk, false, recipes, now_us);
        true
    }

    /// Announces a stream for every fd that needs one. `None`: no stream could be had, and nothing is left behind.
    fn announce(&mut self, fds: Vec<Described>, parent: Option<Key>) -> Option<Option<Recipes>> {
        let count = fds.len();
        let mut recipes: Vec<Recipe> = Vec::with_capacity(count);
        let mut made: Vec<Key> = Vec::new();
        for mut fd in fds {
            if let Some(pump) = fd.pump {
                let Ok(key) = self.mux.announce(INITIAL_WINDOW) else {
                    for key in made {
                        self.forget(key);
                    }
                    return None;
                };
                made.push(key);
                fd.recipe.set_stream(key.id());
                let at = self.add_port(key);
                self.ports[at].parent = parent;
                if matches!(pump.kind, PumpKind::Sink) {
                    self.mux.on_eof(key);
                }
                self.ports[at].attach(pump.fd, pump.kind);
            }
            recipes.push(fd.recipe);
        }
        Some((count > 0).then(|| Recipes::new(encode_all(&recipes), count)))
    }

    /// A helper has described the fds that came with a message.
    pub(super) fn on_described(
        &mut self,
        (at, key): (usize, Key),
        result: OsResult<Vec<Described>>,
        hands: &mut Hands,
        now_us: u64,
    ) {
        if self.ports.get(at).is_none_or(|p| p.key != key) {
            return;
        }
        let Some(chunk) = self.ports[at].held.take() else { return };
        let recipes = match result {
            Ok(described) => self.announce(described, None),
            Err(e) => {
                tracing::warn!(peer = %self.peer, "stream {} ends: {e}", key.id());
                return self.reset(key, e.errno, hands);
            }
        };
        let Some(recipes) = recipes else { return self.reset(key, Errno::EMFILE, hands) };
        self.mux.on_read(key, chunk, false, recipes, now_us);
        self.ports[at].source = SourceState::Idle;
        self.pump(at, hands);
    }

    /// A helper has made the fds for a message that is to be written.
    pub(super) fn on_rebuilt(
        &mut self,
        (at, key): (usize, Key),
        result: OsResult<Vec<Rebuilt>>,
        shared: &Shared,
        hands: &mut Hands,
    ) {
        // Ended or cut off meanwhile: what was made is closed again here.
        if self.ended.is_some() || self.ports.get(at).is_none_or(|p| p.key != key || p.sink_closed) {
            return;
        }
        self.ports[at].rebuilding = false;
        let made = match result {
            Ok(made) => made,
            Err(e) => {
                tracing::warn!(peer = %self.peer, "stream {} ends: {e}", key.id());
                return self.reset(key, e.errno, hands);
            }
        };
        let mut fds = Vec::with_capacity(made.len());
        for Rebuilt { fd, pump } in made {
            fds.push(fd);
            let Some((id, pump)) = pump else { continue };
            let adopted = match self.mux.adopt(id, INITIAL_WINDOW) {
                Ok(adopted) => adopted,
                Err(e) => return self.end(&e.0, hands),
            };
            let child = self.add_port(adopted);
            self.ports[child].parent = self.ports[at].owns_children.then_some(key);
            self.mux.accept(adopted, INITIAL_WINDOW);
            self.start(child, pump, shared, hands);
        }
        let Some(Item::Recipes { chunk, overhead, .. }) = self.ports[at].queue.pop_front() else {
            unreachable!("the recipes stay in front while they are followed");
        };
        self.ports[at].queue.push_front(Item::Message { fds, chunk, overhead });
        self.write(at, shared, hands);
    }

    /// The command behind `key` has ended.
    pub(super) fn finish_children(&mut self, key: Key, hands: &mut Hands) {
        let children: Vec<usize> = self.ports.iter().filter(|(_, p)| p.parent == Some(key)).map(|(at, _)| at).collect();
        for at in children {
            let child = self.ports[at].key;
            match self.ports[at].kind {
                Some(PumpKind::Source | PumpKind::Socket) => {
                    self.ports[at].finishing = true;
                    if let Some(op) = self.ports[at].source_op {
                        hands.engine.cancel(op);
                    } else if self.ports[at].source == SourceState::Idle {
                        self.pump(at, hands);
                    }
                }
                _ => self.reset(child, Errno::EPIPE, hands),
            }
        }
    }

    /// A client of a listener that crossed: connect it to the one that was made here.
    pub(super) fn on_listener_client(&mut self, request: &[u8], stream: Pending, shared: &Shared) {
        let wanted = request.try_into().map(u32::from_le_bytes).ok();
        let found = self.ports.iter().find_map(|(_, port)| match &port.kind {
            Some(PumpKind::Listening(dir)) if Some(port.key.id()) == wanted => Some((port.key, dir.path().to_owned())),
            _ => None,
        });
        let Some((listener, path)) = found else { return stream.refuse(Errno::ECONNREFUSED) };
        let (inbox, pair) = (Arc::clone(&shared.inbox), self.id);
        shared.helpers.run(move || match fdpass::connect_listener(&path) {
            Ok(fd) => drop(stream.attach(Pump { fd, kind: PumpKind::Socket })),
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
