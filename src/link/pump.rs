//! A pair's ports at work: what a completion brings, and what is asked of the kernel next.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{MsgFlags, recv};

use super::ctx::Ctx;
use super::inbox::{Cmd, Found};
use super::pair::{Pair, window_of};
use super::port::{Plant, Port, Read, SourceState};
use super::sink::{Task, Wrote};
use super::token::What;
use crate::errno::{Errno, OsError, OsResult, Step};
use crate::fdpass::{self, Mode, OnRefusal, PumpKind};
use crate::limits::{BULK_FRAME_MAX, INITIAL_WINDOW, RECORD_MAX};
use crate::mux::{Key, Payload, Recipes};
use crate::ring::{Chunk, Done};
use crate::sys::{closer, fd_edge, readable, unread};
use crate::wire::recipe::{Recipe, decode_all};
use crate::wire::service;

impl Pair {
    pub(super) fn on_port_done(&mut self, what: What, at: usize, done: Done, ctx: &mut Ctx) {
        if what == What::PortHangup {
            self.on_hangup(at, &done, ctx);
        } else if what == What::PortSource {
            let token = self.token(What::PortSource, at);
            let read = self.ports[at].on_source_done(done, ctx, token);
            self.on_source(at, read, ctx);
            if self.ports.get(at).is_some_and(|p| p.plant == Plant::Wanted) {
                self.plant(at, ctx);
            }
        } else {
            let token = self.token(What::PortSink, at);
            let wrote = self.ports[at].on_sink_done(done, ctx, token);
            self.on_wrote(at, wrote, ctx);
        }
        self.bury(at, ctx);
    }

    fn on_wrote(&mut self, at: usize, wrote: Wrote, ctx: &mut Ctx) {
        let key = self.ports[at].key;
        match wrote {
            Wrote::Consumed(count) => self.mux.on_consumed(key, count, ctx.now_us),
            Wrote::Again => {}
            Wrote::Gone(errno) => self.on_gone(at, errno, ctx),
        }
        // A datagram's stream is reset when nobody reads.
        if self.port_of(key).is_none() {
            return;
        }
        self.write(at, ctx);
        self.close_sink(at, ctx);
    }

    /// A helper has read from a regular file; no bytes: its end.
    pub(super) fn on_file_read(&mut self, (at, key): (usize, Key), result: Result<Vec<u8>, Errno>, ctx: &mut Ctx) {
        let Some(port) = self.ports.get_mut(at).filter(|p| p.key == key && p.source == SourceState::Reading) else {
            return;
        };
        port.source = SourceState::Idle;
        port.used = true;
        let read = match result {
            Ok(bytes) if bytes.is_empty() => Read::Eof,
            Ok(bytes) => Read::Bytes(Chunk::from_vec(bytes)),
            Err(errno) => Read::Failed(errno),
        };
        self.on_source(at, read, ctx);
        self.bury(at, ctx);
    }

    /// A helper has written to a regular file.
    pub(super) fn on_file_written(&mut self, (at, key): (usize, Key), result: Result<(), Errno>, ctx: &mut Ctx) {
        let Some(port) = self.ports.get_mut(at).filter(|p| p.key == key) else { return };
        let wrote = port.on_file_written(result);
        self.on_wrote(at, wrote, ctx);
        self.bury(at, ctx);
    }

    fn on_gone(&mut self, at: usize, errno: Errno, ctx: &mut Ctx) {
        let key = self.ports[at].key;
        tracing::debug!(peer = %self.peer, "stream {}: nobody reads: {}", key.id(), errno.desc());
        if matches!(self.ports[at].kind, Some(PumpKind::Datagram | PumpKind::Fill(_))) {
            // A datagram's sender hears by its own socket's end alone; memory that can't be filled is nothing at all.
            return self.reset(key, errno, ctx);
        }
        let reading = self.ports[at].source_op.is_some() && self.ports[at].source != SourceState::Ended;
        if reading && self.ports[at].is_gone() {
            // The read in flight is about to tell how it went, and so what the peer must hear.
            self.drop_sink(at);
        } else {
            self.nobody_reads(at, false, ctx);
        }
    }

    /// The program takes no more. `unread`: it left something unread.
    fn nobody_reads(&mut self, at: usize, unread: bool, ctx: &mut Ctx) {
        let port = &self.ports[at];
        if let Some(op) = port.sink_op {
            ctx.engine.cancel(op);
        }
        self.mux.on_sink_gone(port.key, unread);
        self.drop_sink(at);
    }

    /// The peer's program does not read what this source gives. If it closed with something unread, this program's next
    /// read must say ECONNRESET, as a local socket's would.
    pub(super) fn on_unheard(&mut self, at: usize, unread: bool, ctx: &mut Ctx) {
        if let Some(op) = self.ports[at].source_op {
            ctx.engine.cancel(op);
        }
        let ours = self.ports[at].is_socket() && !self.ports[at].shared;
        if unread && ours && self.ports[at].source != SourceState::Ended {
            let describing = self.ports[at].source == SourceState::Describing;
            self.ports[at].want_plant();
            if describing {
                // A helper may still be reading: `on_described` goes on.
                self.ports[at].plant = Plant::Later;
                return;
            }
            return self.plant(at, ctx);
        }
        self.ports[at].stop_source();
        self.bury(at, ctx);
    }

    /// Starts the helper, once no read is in flight.
    pub(super) fn plant(&mut self, at: usize, ctx: &Ctx) {
        let port = &mut self.ports[at];
        let Some(fd) = port.fd.as_ref().filter(|_| port.plant == Plant::Wanted && port.source_op.is_none()) else {
            return;
        };
        // Without an fd to spare the end is an orderly one.
        let fd = fd.as_fd().try_clone_to_owned();
        port.plant = Plant::Working;
        let (inbox, pair, port) = (Arc::clone(&ctx.shared.inbox), self.id, (at, port.key));
        ctx.shared.helpers.run(move || {
            // What is unread here already does as well.
            if let Ok(fd) = fd
                && readable::bytes(&fd) == 0
                && let Err(e) = unread::plant(fd.as_fd())
            {
                tracing::debug!("an orderly end in place of a reset: {e}");
            }
            inbox.push(Cmd::Planted { pair, port });
        });
    }

    pub(super) fn on_planted(&mut self, (at, key): (usize, Key), ctx: &mut Ctx) {
        if self.ports.get(at).is_some_and(|p| p.key == key && p.plant == Plant::Working) {
            self.ports[at].plant = Plant::Done;
            self.ports[at].stop_source();
            self.close_sink(at, ctx);
            self.bury(at, ctx);
        }
    }

    fn on_source(&mut self, at: usize, read: Read, ctx: &mut Ctx) {
        let key = self.ports[at].key;
        if self.ports[at].source == SourceState::Ended {
            return;
        }
        match read {
            Read::Bytes(chunk) => {
                let record = self.ports[at].keeps_records();
                self.mux.on_read(key, chunk, record, None, ctx.now_us);
                self.pump(at, ctx);
            }
            // A record is looked at for no other reason.
            Read::FdsAhead(_) if closer::is_choked() || self.ports[at].keeps_records() => self.refuse_fds(at, ctx),
            Read::WithFds(_, fds) if closer::is_choked() => {
                closer::close(fds);
                self.refuse_fds(at, ctx);
            }
            Read::WithFds(chunk, fds) => {
                self.ports[at].held = Some(Box::new(chunk));
                self.find(at, ctx, move || Ok((Found::default(), fds)));
            }
            Read::FdsAhead(max) => {
                let fd = self.ports[at].fd.as_ref().expect("the source is open").as_fd().try_clone_to_owned();
                self.find(at, ctx, move || {
                    let fd = fd.step("dup")?;
                    let taken = fd_edge::take(&fd, max).map_err(|e| OsError::new("recvmsg", e))?;
                    let found = Found { before: taken.before, bytes: Some(taken.with), fds: Vec::new() };
                    Ok((found, taken.fds))
                });
            }
            Read::Accepted(fd) => {
                self.on_client(at, fd, ctx);
                self.pump(at, ctx);
            }
            Read::Ready => self.read(at, ctx),
            Read::Underway => {}
            Read::Nothing if self.ports[at].finishing => self.pump(at, ctx),
            Read::Nothing => {
                let token = self.token(What::PortSource, at);
                self.ports[at].poll_source(ctx, token);
            }
            Read::Eof => self.end_source(at, self.ports[at].was_reset, ctx),
            // Of records the kernel says so once, before those that are still in the queue.
            Read::Failed(Errno::ECONNRESET) if self.ports[at].keeps_records() && !self.ports[at].was_reset => {
                self.ports[at].was_reset = true;
                self.pump(at, ctx);
            }
            // Its peer closed with something unread. What came before is still on its way, so the end is an ordered one.
            Read::Failed(Errno::ECONNRESET) if self.ports[at].is_socket() => self.end_source(at, true, ctx),
            Read::Failed(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ECONNABORTED)
                if self.ports[at].is_listener() =>
            {
                // The client stays in the queue; `on_time` tries again.
                tracing::warn!(peer = %self.peer, "stream {}: accept: no fd to be had", key.id());
            }
            Read::Failed(errno) => {
                tracing::warn!(peer = %self.peer, "stream {}: read: {}", key.id(), errno.desc());
                self.reset(key, errno, ctx);
            }
        }
    }

    /// Files that came before can't be closed: until they are, no stream may bring more.
    fn refuse_fds(&mut self, at: usize, ctx: &mut Ctx) {
        let key = self.ports[at].key;
        tracing::warn!(peer = %self.peer, "stream {} ends: it brings fds, and too many can't be closed", key.id());
        self.reset(key, Errno::ETOOMANYREFS, ctx);
    }

    /// Has a helper look at what came with fds.
    fn find(&mut self, at: usize, ctx: &Ctx, take: impl FnOnce() -> OsResult<(Found, Vec<OwnedFd>)> + Send + 'static) {
        self.ports[at].source = SourceState::Describing;
        let (inbox, pair, port) = (Arc::clone(&ctx.shared.inbox), self.id, (at, self.ports[at].key));
        let (maker, on_refusal) = (Arc::clone(&ctx.shared.maker), self.ports[at].on_refusal);
        ctx.shared.helpers.run(move || {
            let result = take().and_then(|(found, fds)| {
                let fds = fds.into_iter().map(|fd| (fd, Mode::Passed)).collect();
                Ok(Found { fds: maker.describe(fds, on_refusal)?, ..found })
            });
            inbox.push(Cmd::Described { pair, port, result });
        });
    }

    /// A near program's listener has a client: it becomes a client of the far one.
    fn on_client(&mut self, listener: usize, fd: OwnedFd, ctx: &mut Ctx) {
        let request = self.ports[listener].key.id().to_le_bytes().to_vec();
        // Refused for want of streams: dropping the fd closes it.
        let Ok(key) = self.mux.open(service::LISTENER_CLIENT, request, INITIAL_WINDOW) else { return };
        let Some(PumpKind::Listener(kind)) = self.ports[listener].kind else { unreachable!("only a listener accepts") };
        let kind = fdpass::socket_pump(kind);
        let at = self.add_port(key);
        self.ports[at].on_refusal = OnRefusal::Placeholder;
        if !self.mux.widen(key, window_of(&kind)) {
            return self.reset(key, Errno::ENOBUFS, ctx);
        }
        self.ports[at].attach(fd, kind, &self.records);
        // The far end must know that these are records before the first one comes: `Accepted` starts them.
        if !self.ports[at].keeps_records() {
            self.pump(at, ctx);
        }
    }

    /// The source's next step, when nothing is in flight for it.
    pub(super) fn pump(&mut self, at: usize, ctx: &mut Ctx) {
        let port = &self.ports[at];
        if port.source != SourceState::Idle || port.source_op.is_some() || port.fd.is_none() {
            return;
        }
        if port.finishing && port.fd.as_ref().is_none_or(|fd| readable::bytes(&**fd) == 0) {
            return self.end_source(at, false, ctx);
        }
        self.read(at, ctx);
    }

    fn read(&mut self, at: usize, ctx: &mut Ctx) {
        let token = self.token(What::PortSource, at);
        let port = &mut self.ports[at];
        let room = if port.is_listener() { u32::from(self.mux.is_open(port.key)) } else { self.mux.room(port.key) };
        let need = port.need();
        if need > RECORD_MAX {
            tracing::warn!(peer = %self.peer, "stream {}: a record of {need} bytes, above {RECORD_MAX}", port.key.id());
            return self.reset(self.ports[at].key, Errno::EMSGSIZE, ctx);
        }
        if room < need {
            port.source = SourceState::Starved;
            self.mux.wait_for_room(port.key, need);
            return;
        }
        if let Some(PumpKind::FileSource(file)) = &port.kind {
            let (file, max) = (Arc::clone(file), room.min(BULK_FRAME_MAX) as usize);
            port.source = SourceState::Reading;
            let (inbox, pair, port) = (Arc::clone(&ctx.shared.inbox), self.id, (at, port.key));
            let read = move || inbox.push(Cmd::FileRead { pair, port, result: file.read(max) });
            return ctx.shared.helpers.run(read);
        }
        port.read_source(ctx, room, token);
    }

    /// The source has ended: the peer hears it, and also whether the program reads on.
    fn end_source(&mut self, at: usize, unread: bool, ctx: &mut Ctx) {
        let key = self.ports[at].key;
        // A master reads its end when nobody has the slave open: nothing can be written to it either.
        let hung_up = matches!(self.ports[at].kind, Some(PumpKind::Master)) || unread || self.ports[at].is_gone();
        self.mux.on_eof(key);
        if hung_up || (self.ports[at].finishing && self.ports[at].is_socket()) {
            self.nobody_reads(at, unread, ctx);
        }
        self.ports[at].end_source();
        let token = self.token(What::PortHangup, at);
        self.ports[at].watch_hangup(ctx, token);
        self.bury(at, ctx);
    }

    /// A program that had ended its half has gone: nobody reads any more.
    fn on_hangup(&mut self, at: usize, done: &Done, ctx: &mut Ctx) {
        let port = &mut self.ports[at];
        port.hangup = None;
        let (Ok(_), false, Some(fd)) = (done.result, port.sink_closed, &port.fd) else { return };
        let unread = matches!(recv(fd.as_raw_fd(), &mut [0], MsgFlags::MSG_DONTWAIT), Err(Errno::ECONNRESET));
        self.nobody_reads(at, unread, ctx);
    }

    pub(super) fn write(&mut self, at: usize, ctx: &mut Ctx) {
        let token = self.token(What::PortSink, at);
        let (port, mux) = (&mut self.ports[at], &self.mux);
        if port.sink_holds_up() {
            ctx.engine.hurry();
        }
        let key = port.key;
        let Some(task) = port.write_sink(ctx, token, |count| mux.tells_of(key, count)) else { return };
        let (inbox, pair, port) = (Arc::clone(&ctx.shared.inbox), self.id, (at, key));
        let recipes = match task {
            Task::Rebuild(recipes) => recipes,
            Task::Write(file, bytes) => {
                let write = move || inbox.push(Cmd::FileWritten { pair, port, result: file.write_all(&bytes) });
                return ctx.shared.helpers.run(write);
            }
        };
        let (maker, on_refusal) = (Arc::clone(&ctx.shared.maker), self.ports[at].on_refusal);
        ctx.shared.helpers.run(move || {
            let result = match decode_all(recipes.bytes(), recipes.count()) {
                Ok(recipes) => maker.rebuild(&recipes, on_refusal),
                Err(e) => {
                    tracing::error!("{e}");
                    Err(OsError::new("decode recipes", Errno::EPROTO))
                }
            };
            inbox.push(Cmd::Rebuilt { pair, port, result });
        });
    }

    pub(super) fn close_sink(&mut self, at: usize, ctx: &mut Ctx) {
        let filled = self.ports[at].finish_fill();
        if self.ports[at].fin && self.ports[at].sink_holds_up() {
            ctx.engine.hurry();
        }
        if self.ports[at].close_sink_if_done() {
            self.bury(at, ctx);
        }
        if let Some((carrier, result)) = filled {
            self.on_filled(carrier, result, ctx);
        }
    }

    /// Memory that a message waits for is whole, or never will be.
    fn on_filled(&mut self, carrier: Key, result: OsResult<()>, ctx: &mut Ctx) {
        let Some(at) = self.port_of(carrier) else { return };
        match result {
            Ok(()) => {
                self.ports[at].fills -= 1;
                self.write(at, ctx);
            }
            Err(e) => {
                tracing::warn!(peer = %self.peer, "stream {} ends: {e}", carrier.id());
                self.reset(carrier, e.errno, ctx);
            }
        }
    }

    /// The stream's end takes along what belongs to it, and what it announced and the peer has not taken up: its message
    /// may never have been delivered.
    pub(super) fn abort_with_children(&mut self, at: usize, ctx: &mut Ctx) {
        let key = self.ports[at].key;
        let undelivered = self.ports[at].abort(ctx.engine);
        self.refuse(undelivered);
        let children = std::mem::take(&mut self.ports[at].children);
        let fills_for = self.ports[at].fills_for.take();
        self.bury(at, ctx);
        if let Some(carrier) = fills_for {
            self.reset(*carrier, Errno::EIO, ctx);
        }
        for child in children {
            self.reset(child, Errno::ECONNRESET, ctx);
        }
        self.drop_announced(key.id(), ctx);
    }

    /// The peer reads no more of this stream: what it announced and the peer has not taken up never will be.
    pub(super) fn drop_announced(&mut self, carrier: u32, ctx: &mut Ctx) {
        for child in self.announced.take(carrier) {
            if self.mux.waits_for_peer(child) {
                self.reset(child, Errno::ECONNRESET, ctx);
            }
        }
    }

    fn drop_sink(&mut self, at: usize) {
        let undelivered = self.ports[at].drop_sink();
        self.refuse(undelivered);
    }

    /// Messages that will not be delivered: the streams that they announce get their verdict.
    pub(super) fn refuse(&mut self, undelivered: Vec<Recipes>) {
        for recipes in undelivered {
            // What cannot be read announces nothing that could be named.
            let recipes = decode_all(recipes.bytes(), recipes.count()).unwrap_or_default();
            for id in recipes.iter().filter_map(Recipe::stream) {
                self.mux.refuse(id, Errno::ECONNRESET);
            }
        }
    }

    pub(super) fn bury(&mut self, at: usize, ctx: &mut Ctx) {
        let Some(port) = self.ports.get(at) else { return };
        if let (Some(op), true) = (port.hangup, port.sink_closed) {
            ctx.engine.cancel(op);
        }
        if !port.is_over() {
            if port.sink_closed && port.sink_holds_up() {
                ctx.engine.hurry();
            }
            return;
        }
        let Port { key, children, .. } = self.remove_port(at);
        self.look_at_watches();
        // What a command was to read ends with its stream, also where nobody reads it: stdin is its caller's again. What it
        // wrote may still be on its way.
        let feeds = |port: &Port| {
            matches!(port.kind, Some(PumpKind::Source | PumpKind::FileSource(_)))
                && port.parent.as_deref() == Some(&key)
        };
        for child in children {
            if self.mux.is_ours(child.id()) && self.port_of(child).is_some_and(|at| feeds(&self.ports[at])) {
                self.reset(child, Errno::ECONNRESET, ctx);
            }
        }
    }
}
