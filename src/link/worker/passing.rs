//! fds that cross, as far as a pair is concerned: streams announced for them, and the helpers' answers.
//!
//! ```text
//!   near:  fds read ─▶ helper: describe ─▶ on_described ─▶ announce a stream for each pump ─▶ RECIPE + DATA
//!   far:   RECIPE + DATA ─▶ helper: rebuild ─▶ on_rebuilt ─▶ adopt the streams, start the pumps ─▶ sendmsg with fds
//! ```

use std::os::fd::OwnedFd;

use super::ctx::Ctx;
use super::inbox::{First, Found, Made, Pending};
use super::pair::Pair;
use crate::errno::{Errno, OsResult};
use crate::fdpass::{Described, Keeps, OnRefusal, Pump, Rebuilt, Refusal};
use crate::limits::INITIAL_WINDOW;
use crate::mux::{Key, Payload, Recipes};
use crate::ring::Chunk;
use crate::stream::Kind;
use crate::sys::closer;
use crate::wire::features;
use crate::wire::recipe::{Recipe, Refused, encode_all};
use crate::wire::service;

/// A command's own sockets and listeners outlive a refused fd: what it can't use it says to whoever passed it.
fn inherited(owns: bool) -> OnRefusal {
    if owns { OnRefusal::Placeholder } else { OnRefusal::Fail }
}

/// The log target of these lines. Clients show them by default: nobody else tells their user.
pub const REFUSED_LOG: &str = "refused";

impl Pair {
    pub(super) fn send_first(&mut self, key: Key, first: First, ctx: &mut Ctx) -> bool {
        let Some(recipes) = self.announce(first.fds, key, true, ctx) else { return false };
        let chunk = Chunk::from_vec(first.bytes);
        self.mux.on_read(key, chunk, false, recipes, ctx.now_us);
        true
    }

    /// Announces a stream for every fd that needs one, on the stream `carrier`, whose end is theirs if it `owns` them.
    /// `None`: no stream could be had, and nothing is left behind.
    fn announce(&mut self, fds: Vec<Described>, carrier: Key, owns: bool, ctx: &mut Ctx) -> Option<Option<Recipes>> {
        let count = fds.len();
        let mut recipes: Vec<Recipe> = Vec::with_capacity(count);
        let mut made: Vec<Key> = Vec::new();
        for mut fd in fds {
            if let Some(pump) = fd.pump {
                let Ok(key) = self.mux.announce(pump.kind.row().window) else {
                    made.into_iter().for_each(|key| self.reset(key, Errno::ECONNRESET, ctx));
                    return None;
                };
                made.push(key);
                fd.recipe.set_stream(key.id());
                let at = self.locals.add(key);
                let local = &mut self.locals[at];
                local.kin.parent = owns.then(|| Box::new(carrier));
                local.kin.on_refusal = inherited(owns);
                local.stream.share();
                // Nothing has come yet that could not be written.
                let _ = self.set_local_end(at, pump);
                self.locals[at].stream.source.hold();
            }
            recipes.push(fd.recipe);
        }
        // Not before all are announced: none may end before the last.
        for key in &made {
            if let Some(at) = self.locals.find(*key) {
                self.drive(at, ctx);
            }
        }
        self.announced.add(carrier, &made, |child| self.mux.waits_for_peer(child));
        if owns {
            self.note_children(carrier, made);
        }
        Some((count > 0).then(|| Recipes::new(encode_all(&recipes), count)))
    }

    /// Remembers what ends with a stream, and forgets what has ended since: as many again may pile up first.
    fn note_children(&mut self, carrier: Key, new: Vec<Key>) {
        let Some(at) = self.locals.find(carrier) else { return };
        let mut children = std::mem::take(&mut self.locals[at].kin.children);
        if children.len() + new.len() > children.capacity() {
            children.retain(|child| self.locals.find(*child).is_some());
        }
        children.extend(new);
        self.locals[at].kin.children = children;
    }

    /// A helper has described the fds that came with a message.
    pub(super) fn on_described(&mut self, (at, key): (usize, Key), result: OsResult<Found<Described>>, ctx: &mut Ctx) {
        let Some(local) = self.locals.at((at, key)) else { return };
        if local.stream.on_helper_done() {
            return self.drive(at, ctx);
        }
        if !local.stream.source.is_with_helper() {
            return;
        }
        let Found { before, bytes, fds } = match result {
            Ok(found) => found,
            Err(e) => {
                tracing::warn!(peer = %self.peer, "stream {} ends: {e}", key.id());
                return self.reset(key, e.errno, ctx);
            }
        };
        let record = local.stream.keeps_records();
        if !before.is_empty() {
            self.mux.on_read(key, Chunk::from_vec(before), false, None, ctx.now_us);
        }
        for fd in &fds {
            if let Recipe::Refused { reason } = &fd.recipe {
                self.say_refused(key.id(), "an fd can't be passed", reason);
            }
        }
        let Some(recipes) = self.announce(fds, key, false, ctx) else { return self.reset(key, Errno::EMFILE, ctx) };
        self.mux.on_read(key, Chunk::from_vec(bytes), record, recipes, ctx.now_us);
        if let Some(local) = self.locals.at((at, key)) {
            local.stream.source.on_brought();
            self.drive(at, ctx);
        }
    }

    /// A helper has made the fds for a message that is to be written.
    pub(super) fn on_rebuilt(&mut self, (at, key): (usize, Key), Made { recipes, result }: Made, ctx: &mut Ctx) {
        if !self.locals.at((at, key)).is_some_and(|local| local.stream.sink.is_rebuilding()) {
            // Ended or cut off meanwhile: what was made is closed again, and what was announced gets its verdict.
            closer::close(result.into_iter().flatten().map(|made| made.fd));
            return self.refuse(&recipes);
        }
        let made = match result {
            Ok(made) => made,
            Err(e) => {
                tracing::warn!(peer = %self.peer, "stream {} ends: {e}", key.id());
                self.refuse(&recipes);
                return self.reset(key, e.errno, ctx);
            }
        };
        let mut fds = Vec::with_capacity(made.len());
        let mut fills = 0;
        for Rebuilt { fd, refusal, pump } in made {
            fds.push(fd);
            refusal.into_iter().for_each(|refusal| self.on_refusal(key, refusal));
            let Some((id, pump)) = pump else { continue };
            fills += u32::from(pump.kind == Kind::Fill);
            if !self.adopt((at, key), id, pump, ctx) {
                return closer::close(fds);
            }
        }
        // One of its own may have ended it meanwhile.
        let Some(local) = self.locals.at((at, key)) else { return closer::close(fds) };
        local.io.made = fds;
        local.stream.sink.on_made(fills);
        self.drive(at, ctx);
    }

    /// Takes up a stream that this one's message announced. `false`: the message will not be delivered.
    fn adopt(&mut self, (at, key): (usize, Key), id: u32, pump: Pump, ctx: &mut Ctx) -> bool {
        if self.mux.is_full() {
            // Nobody's mistake: the two ends forget streams at different times.
            self.reset(key, Errno::EMFILE, ctx);
            return false;
        }
        let adopted = match self.mux.adopt(id, INITIAL_WINDOW) {
            Ok(adopted) => adopted,
            Err(e) => {
                self.end(e.into(), ctx);
                return false;
            }
        };
        let owns = self.locals[at].kin.owns_children;
        let child = self.locals.add(adopted);
        let kin = &mut self.locals[child].kin;
        kin.parent = owns.then(|| Box::new(key));
        kin.on_refusal = inherited(owns);
        kin.fills_for = (pump.kind == Kind::Fill).then(|| Box::new(key));
        if owns {
            self.note_children(key, vec![adopted]);
        }
        self.mux.accept(adopted, INITIAL_WINDOW, Vec::new());
        self.start(child, pump, ctx);
        self.locals.at((at, key)).is_some()
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
                let said = self.say_refused(key.id(), "an fd can't be made here", &reason);
                if said && self.mux.agreed().has(features::NOTICES) {
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

    /// A near program's listener has a client: it becomes a client of the far one.
    pub(super) fn on_client(&mut self, listener: usize, fd: OwnedFd, ctx: &mut Ctx) {
        let local = &self.locals[listener].stream;
        let Some(Kind::Listener(kind)) = local.kind() else { unreachable!("only a listener accepts") };
        let request = local.key().id().to_le_bytes().to_vec();
        // Refused for want of streams: dropping the fd closes it.
        let Ok(key) = self.mux.open(service::LISTENER_CLIENT, request, INITIAL_WINDOW) else { return };
        let at = self.locals.add(key);
        self.locals[at].kin.on_refusal = OnRefusal::Placeholder;
        let pump = Pump::new(fd, Kind::of_socket(kind));
        if !self.mux.widen(key, pump.kind.row().window) {
            return self.reset(key, Errno::ENOBUFS, ctx);
        }
        // Nothing has come yet that could not be written.
        let _ = self.set_local_end(at, pump);
        let stream = &mut self.locals[at].stream;
        if stream.keeps_records() {
            // The far end must know that these are records before the first one comes.
            stream.source.hold();
        }
        self.drive(at, ctx);
    }

    /// A client of a listener that crossed: connect it to the one that was made here.
    pub(super) fn on_listener_client(&mut self, request: &[u8], stream: Pending, ctx: &Ctx) {
        let wanted = request.try_into().map(u32::from_le_bytes).ok();
        let listener = wanted.and_then(|id| self.mux.find(id));
        let found = listener.and_then(|key| match &self.locals.of(key)?.io.keeps {
            Keeps::Home(home) => Some((key, home.address())),
            _ => None,
        });
        let Some((listener, address)) = found else { return stream.refuse(Errno::ECONNREFUSED) };
        let pair = self.at(ctx);
        ctx.shared.helpers.run(move || match address.connect() {
            Ok(pump) => drop(stream.attach(pump)),
            Err(e) => {
                stream.refuse(e.errno);
                // The program has closed its listening socket: the near one has no use any more.
                if matches!(e.errno, Errno::ECONNREFUSED | Errno::ENOENT) {
                    pair.reset(listener, e.errno);
                }
            }
        });
    }
}
