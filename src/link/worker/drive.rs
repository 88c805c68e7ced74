//! Performs the actions that a stream returns.

use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::sync::Arc;

use nix::sys::socket::{Shutdown, shutdown};

use super::ctx::Ctx;
use super::inbox::{Answer, Made};
use super::pair::Pair;
use super::token::What;
use crate::errno::{Errno, OsError};
use crate::fdpass::Keeps;
use crate::mux::Recipes;
use crate::ring::{Chunk, Op};
use crate::stream::{Action, SinkAction, SourceAction};
use crate::sys::{closer, readable, unread};
use crate::wire::recipe::{Recipe, decode_all};

impl Pair {
    /// Performs all actions of a stream and removes the stream if it is over.
    pub(super) fn drive(&mut self, at: usize, ctx: &mut Ctx) {
        let Some(key) = self.locals.get(at).map(|local| local.stream.key()) else { return };
        let choked = closer::is_choked();
        // An action may end other streams, and this one.
        while let Some(local) = self.locals.at((at, key))
            && let Some(action) = local.stream.poll(&self.mux, choked, local.io.speaks_as.is_some())
        {
            match action {
                Action::Source(action) => self.source(at, action, ctx),
                Action::Sink(action) => self.sink(at, action, ctx),
                Action::ForceReset => self.force_reset(at, ctx),
                Action::ShutWrites { unless_alone } => self.shut_writes(at, unless_alone),
                Action::FinishFill => self.finish_fill(at, ctx),
                Action::WatchHangup => self.watch_hangup(at, ctx),
                Action::CancelHangup => {
                    if let Some(op) = self.locals[at].io.ops.hangup {
                        ctx.engine.cancel(op);
                    }
                }
            }
        }
        let Some(local) = self.locals.at((at, key)) else { return };
        if local.stream.is_closed() {
            local.io.detach();
        }
        if local.stream.is_over() {
            self.bury(at, ctx);
        }
    }

    fn source(&mut self, at: usize, action: SourceAction, ctx: &mut Ctx) {
        let token = self.token(What::LocalSource, at);
        let local = &mut self.locals[at];
        let key = local.stream.key();
        match action {
            SourceAction::SayEof => return self.mux.on_eof(key),
            SourceAction::WaitForRoom { need } => return self.mux.wait_for_room(key, need),
            SourceAction::SeeWhatIsLeft => return self.see_what_is_left(at),
            SourceAction::Cancel => return local.io.ops.source.into_iter().for_each(|op| ctx.engine.cancel(op)),
            _ => {}
        }
        let fd = Rc::clone(local.io.fd.as_ref().expect("a source that reads is open"));
        let op = match action {
            SourceAction::Poll => {
                local.io.cool();
                Op::Poll { fd, events: libc::POLLIN }
            }
            SourceAction::Accept => Op::Accept { fd },
            SourceAction::Measure => Op::Measure { fd },
            SourceAction::Peek { max, into } => {
                let (into, max) = local.io.room(max, into, ctx.pool);
                Op::Peek { fd, into, max }
            }
            SourceAction::Recv { max, into, dry } => {
                let (into, max) = local.io.room(max, into, ctx.pool);
                Op::Recv { fd, into, max, fds: true, dry }
            }
            SourceAction::Read { max, into } => {
                let (into, max) = local.io.room(max, into, ctx.pool);
                Op::Read { fd, into, max }
            }
            SourceAction::ReadFile { max } => return self.read_file(at, max as usize, ctx),
            _ => {
                // ENOTCONN: its peer has gone already.
                let _ = shutdown(fd.as_raw_fd(), Shutdown::Read);
                return;
            }
        };
        local.io.start_source(op, ctx, token);
    }

    fn read_file(&mut self, at: usize, max: usize, ctx: &mut Ctx) {
        let Keeps::File(file) = &self.locals[at].io.keeps else { unreachable!("a file's end keeps it") };
        let (file, answer) = (Arc::clone(file), self.answer(at, ctx));
        ctx.shared.helpers.run(move || answer.give(Answer::FileRead(file.read(max))));
    }

    fn sink(&mut self, at: usize, action: SinkAction<Chunk>, ctx: &mut Ctx) {
        let token = self.token(What::LocalSink, at);
        let local = &mut self.locals[at];
        match action {
            SinkAction::Write { payloads, fds, quiet } => {
                let kind = local.stream.kind().expect("it is attached");
                local.io.write((payloads, fds, quiet), kind, ctx, token);
            }
            SinkAction::WriteFile(bytes) => {
                let Keeps::File(file) = &local.io.keeps else { unreachable!("a file's end keeps it") };
                let (file, answer) = (Arc::clone(file), self.answer(at, ctx));
                ctx.shared.helpers.run(move || answer.give(Answer::FileWritten(file.write_all(&bytes))));
            }
            SinkAction::Rebuild(recipes) => self.rebuild(at, recipes, ctx),
            SinkAction::Hurry => ctx.engine.hurry(),
            SinkAction::Cancel => local.io.ops.sink.into_iter().for_each(|op| ctx.engine.cancel(op)),
            SinkAction::SayReadClosed { unread } => self.mux.on_sink_gone(local.stream.key(), unread),
            SinkAction::Refuse(recipes) => self.refuse(&recipes),
            SinkAction::Closed => {
                closer::close(local.io.made.drain(..));
                let writes = local.stream.kind().is_some_and(|kind| kind.writes());
                if let (Some(parent), true) = (local.kin.parent.as_deref().copied(), writes) {
                    self.outputs.end(parent);
                }
            }
        }
    }

    /// Has a helper make the fds of the message in front.
    fn rebuild(&mut self, at: usize, recipes: Recipes, ctx: &Ctx) {
        let (maker, on_refusal) = (Arc::clone(&ctx.shared.maker), self.locals[at].kin.on_refusal);
        let answer = self.answer(at, ctx);
        ctx.shared.helpers.run(move || {
            let result = match decode_all(recipes.bytes(), recipes.count()) {
                Ok(recipes) => maker.rebuild(&recipes, on_refusal),
                Err(e) => {
                    tracing::error!("{e}");
                    Err(OsError::new("decode recipes", Errno::EPROTO))
                }
            };
            answer.give(Answer::Rebuilt(Made { recipes, result }));
        });
    }

    /// Messages that will not be delivered: the streams that they announce get their verdict.
    pub(super) fn refuse(&mut self, undelivered: &Recipes) {
        // What cannot be read announces nothing that could be named.
        let recipes = decode_all(undelivered.bytes(), undelivered.count()).unwrap_or_default();
        for id in recipes.iter().filter_map(Recipe::stream) {
            self.mux.refuse(id, Errno::ECONNRESET);
        }
    }

    fn force_reset(&mut self, at: usize, ctx: &Ctx) {
        // Without an fd to spare the end is an orderly one.
        let Some(fd) = self.locals[at].io.fd.as_ref().map(|fd| fd.as_fd().try_clone_to_owned()) else { return };
        let answer = self.answer(at, ctx);
        ctx.shared.helpers.run(move || {
            // What is unread here already does as well.
            if let Ok(fd) = fd
                && readable::bytes(&fd) == 0
                && let Err(e) = unread::plant(fd.as_fd())
            {
                tracing::debug!("an orderly end in place of a reset: {e}");
            }
            answer.give(Answer::ResetForced);
        });
    }

    fn shut_writes(&mut self, at: usize, unless_alone: bool) {
        let io = &self.locals[at].io;
        if let (Some(fd), false) = (&io.fd, unless_alone && io.is_alone()) {
            // ENOTCONN: its peer has gone already.
            let _ = shutdown(fd.as_raw_fd(), Shutdown::Write);
        }
    }

    fn watch_hangup(&mut self, at: usize, ctx: &mut Ctx) {
        let token = self.token(What::LocalHangup, at);
        let io = &mut self.locals[at].io;
        let fd = Rc::clone(io.fd.as_ref().expect("its sink is open"));
        io.ops.hangup = Some(ctx.engine.submit(Op::Hangup { fd }, token));
    }

    // ---- ends ----------------------------------------------------------------------------------------------------

    fn bury(&mut self, at: usize, ctx: &mut Ctx) {
        let local = self.locals.remove(at);
        let key = local.stream.key();
        // What a command was to read ends with its stream, also where nobody reads it: stdin is its caller's again. What it
        // wrote may still be on its way.
        for child in local.kin.children {
            let feeds = self.locals.of(child).is_some_and(|child| {
                child.stream.kind().is_some_and(|kind| kind.only_reads()) && child.kin.parent.as_deref() == Some(&key)
            });
            if feeds && self.mux.is_ours(child.id()) {
                self.reset(child, Errno::ECONNRESET, ctx);
            }
        }
    }

    pub(super) fn reset(&mut self, key: crate::mux::Key, errno: Errno, ctx: &mut Ctx) {
        self.mux.reset(key, errno);
        if let Some(at) = self.locals.find(key) {
            self.abort(at, ctx);
        }
    }

    pub(super) fn reset_at(&mut self, at: usize, errno: Errno, ctx: &mut Ctx) {
        self.reset(self.locals[at].stream.key(), errno, ctx);
    }

    /// The stream's end takes along what belongs to it, and what it announced and the peer has not taken up: its message
    /// may never have been delivered.
    pub(super) fn abort(&mut self, at: usize, ctx: &mut Ctx) {
        let local = &mut self.locals[at];
        let key = local.stream.key();
        local.stream.abort();
        let children = std::mem::take(&mut local.kin.children);
        let fills_for = local.kin.fills_for.take();
        self.drive(at, ctx);
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
}
