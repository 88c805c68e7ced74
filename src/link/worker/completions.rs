//! Reports completions and helpers' results to streams.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{MsgFlags, recv};

use super::ctx::Ctx;
use super::inbox::{Answer, Found};
use super::io::Wrote;
use super::pair::Pair;
use super::token::What;
use crate::errno::{Errno, OsError, OsResult, Step};
use crate::fdpass::{Keeps, Mode};
use crate::mux::{Key, Payload};
use crate::ring::{Chunk, Done, Filling, Op};
use crate::stream::Progress;
use crate::sys::{closer, fd_edge, readable, record_end};

impl Pair {
    pub(super) fn on_local_done(&mut self, what: What, at: usize, done: Done, ctx: &mut Ctx) {
        match what {
            What::LocalHangup => self.on_hangup_done(at, &done),
            What::LocalSource => self.on_source_done(at, done, ctx),
            _ => self.on_sink_done(at, done, ctx),
        }
        self.drive(at, ctx);
    }

    pub(super) fn on_answer(&mut self, local: (usize, Key), answer: Answer, ctx: &mut Ctx) {
        match answer {
            Answer::Described(result) => self.on_described(local, result, ctx),
            Answer::Rebuilt(made) => self.on_rebuilt(local, made, ctx),
            Answer::FileRead(result) => self.on_file_read(local, result, ctx),
            Answer::FileWritten(result) => self.on_file_written(local, result, ctx),
            Answer::ResetForced => self.on_reset_forced(local, ctx),
        }
    }

    // ---- source --------------------------------------------------------------------------------------------------

    fn on_source_done(&mut self, at: usize, done: Done, ctx: &mut Ctx) {
        let local = &mut self.locals[at];
        local.io.ops.source = None;
        if !local.stream.source.on_done() {
            return closer::close(done.fds);
        }
        match (done.op, done.result) {
            (Op::Poll { .. }, Ok(_)) => local.stream.source.on_ready(),
            (Op::Accept { .. }, Ok(_)) => {
                local.stream.source.on_brought();
                done.fds.into_iter().for_each(|fd| self.on_client(at, fd, ctx));
            }
            (Op::Peek { into, .. }, Ok(count)) => {
                local.io.keep(into);
                if done.control_lost && (count > 0 || local.stream.keeps_records()) {
                    return self.on_fds_ahead(at, count as usize, ctx);
                }
                local.stream.source.on_seen(count);
            }
            (Op::Measure { fd }, Ok(0)) => match record_end::has_ended(&*fd) {
                Ok(true) => self.on_eof(at, false),
                Ok(false) => local.stream.source.on_measured(0),
                Err(errno) => self.on_read_failed(at, errno, ctx),
            },
            (Op::Measure { .. }, Ok(len)) if len > self.mux.agreed().record_max => {
                let (peer, id, most) = (&self.peer, local.stream.key().id(), self.mux.agreed().record_max);
                tracing::warn!(%peer, "stream {id}: a record of {len} bytes, above {most}");
                self.reset_at(at, Errno::EMSGSIZE, ctx);
            }
            (Op::Measure { .. }, Ok(len)) => local.stream.source.on_measured(len),
            (Op::Recv { .. } | Op::Read { .. }, Ok(_)) if done.control_lost || done.record_cut => {
                closer::close(done.fds);
                self.on_read_failed(at, Errno::EMSGSIZE, ctx);
            }
            (Op::Recv { into, max, .. } | Op::Read { into, max, .. }, Ok(count)) => {
                self.on_bytes(at, (into, count as usize, max), done.fds, ctx);
            }
            (Op::Peek { .. }, Err(Errno::EAGAIN)) => local.stream.source.on_unseen(),
            (_, Err(Errno::EAGAIN | Errno::EINTR | Errno::ECANCELED)) => local.stream.source.on_nothing(),
            // A terminal whose other end is gone.
            (Op::Read { .. }, Err(Errno::EIO)) => self.on_eof(at, false),
            (_, Err(errno)) => self.on_read_failed(at, errno, ctx),
            (op, Ok(_)) => unreachable!("a source has no {op:?}"),
        }
    }

    fn on_bytes(
        &mut self,
        at: usize,
        (mut into, count, max): (Filling, usize, usize),
        fds: Vec<OwnedFd>,
        ctx: &mut Ctx,
    ) {
        let local = &mut self.locals[at];
        let chunk = into.cut(count);
        let filled = into.spare() == 0;
        local.io.keep(into);
        if !fds.is_empty() {
            return self.on_fds_with(at, chunk, fds, ctx);
        }
        // A record was measured: one of no bytes is none the less one.
        let record = local.stream.keeps_records();
        if count == 0 && !record {
            return self.on_eof(at, false);
        }
        local.stream.source.on_bytes(count, max, filled);
        self.mux.on_read(local.stream.key(), chunk, record, None, ctx.now_us);
    }

    /// `unread`: its program left something unread.
    pub(super) fn on_eof(&mut self, at: usize, unread: bool) {
        let local = &mut self.locals[at];
        let gone = local.io.is_gone(local.stream.kind());
        local.stream.on_eof(unread, gone);
    }

    fn on_read_failed(&mut self, at: usize, errno: Errno, ctx: &mut Ctx) {
        let local = &mut self.locals[at];
        let (peer, id, kind) = (&self.peer, local.stream.key().id(), local.stream.kind().expect("it was read"));
        match errno {
            Errno::ECONNRESET if kind.keeps_records() && local.stream.source.on_reset_records() => {}
            // Its peer closed with something unread. What came before is still on its way, so the end is an ordered one.
            Errno::ECONNRESET if kind.is_socket() => self.on_eof(at, true),
            Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ECONNABORTED if kind.is_listener() => {
                tracing::warn!(%peer, "stream {id}: accept: no fd to be had");
                local.stream.source.on_want_of_fds();
            }
            errno => {
                tracing::warn!(%peer, "stream {id}: read: {}", errno.desc());
                self.reset_at(at, errno, ctx);
            }
        }
    }

    /// A read brought fds with its first byte.
    fn on_fds_with(&mut self, at: usize, chunk: Chunk, fds: Vec<OwnedFd>, ctx: &mut Ctx) {
        if closer::is_choked() {
            closer::close(fds);
            return self.refuse_fds(at, ctx);
        }
        let bytes = chunk.as_ref().to_vec();
        self.describe(at, ctx, move || Ok(Found { before: Vec::new(), bytes, fds }));
    }

    /// There are fds with the next bytes, of which at most `max` are to be taken: a helper finds the place.
    fn on_fds_ahead(&mut self, at: usize, max: usize, ctx: &mut Ctx) {
        // A record is peeked at for no other reason.
        if closer::is_choked() || self.locals[at].stream.keeps_records() {
            return self.refuse_fds(at, ctx);
        }
        let fd = self.locals[at].io.fd.as_ref().expect("the source is open").as_fd().try_clone_to_owned();
        self.describe(at, ctx, move || {
            let taken = fd_edge::take(&fd.step("dup")?, max).map_err(|e| OsError::new("recvmsg", e))?;
            Ok(Found { before: taken.before, bytes: taken.with, fds: taken.fds })
        });
    }

    /// Files that came before can't be closed: until they are, no stream may bring more.
    fn refuse_fds(&mut self, at: usize, ctx: &mut Ctx) {
        let id = self.locals[at].stream.key().id();
        tracing::warn!(peer = %self.peer, "stream {id} ends: it brings fds, and too many can't be closed");
        self.reset_at(at, Errno::ETOOMANYREFS, ctx);
    }

    /// A helper has read from a regular file; no bytes: its end.
    pub(super) fn on_file_read(&mut self, (at, key): (usize, Key), result: Result<Vec<u8>, Errno>, ctx: &mut Ctx) {
        let Some(local) = self.locals.at((at, key)).filter(|local| local.stream.source.is_with_helper()) else {
            return;
        };
        match result {
            Ok(bytes) if bytes.is_empty() => self.on_eof(at, false),
            Ok(bytes) => {
                local.stream.source.on_brought();
                self.mux.on_read(key, Chunk::from_vec(bytes), false, None, ctx.now_us);
            }
            Err(errno) => self.on_read_failed(at, errno, ctx),
        }
        self.drive(at, ctx);
    }

    /// Whether a source that is to finish has anything left.
    pub(super) fn see_what_is_left(&mut self, at: usize) {
        let local = &mut self.locals[at];
        if local.io.fd.as_ref().is_some_and(|fd| readable::bytes(&**fd) > 0) {
            local.stream.source.on_left();
        } else {
            self.on_eof(at, false);
        }
    }

    // ---- sink ----------------------------------------------------------------------------------------------------

    fn on_sink_done(&mut self, at: usize, done: Done, ctx: &mut Ctx) {
        let token = self.token(What::LocalSink, at);
        let local = &mut self.locals[at];
        let goes_on = !local.stream.sink.is_closed();
        let taken = match local.io.on_written(done, goes_on, ctx, token) {
            Wrote::Part(count) => local.stream.sink.on_written(count, Progress::Part),
            Wrote::All(count) => local.stream.sink.on_written(count, Progress::All),
            Wrote::Failed(errno) if local.stream.sink.on_failed() => return self.on_deaf(at, errno, ctx),
            Wrote::Failed(_) => None,
        };
        if let Some(count) = taken {
            self.mux.on_consumed(local.stream.key(), count, ctx.now_us);
        }
    }

    /// A helper has written to a regular file.
    pub(super) fn on_file_written(&mut self, (at, key): (usize, Key), result: Result<(), Errno>, ctx: &mut Ctx) {
        let Some(local) = self.locals.at((at, key)) else { return };
        let Some(taken) = local.stream.sink.on_file_written() else { return };
        match result {
            Ok(()) => self.mux.on_consumed(key, taken, ctx.now_us),
            Err(errno) => self.on_deaf(at, errno, ctx),
        }
        self.drive(at, ctx);
    }

    fn on_deaf(&mut self, at: usize, errno: Errno, ctx: &mut Ctx) {
        let local = &mut self.locals[at];
        tracing::debug!(peer = %self.peer, "stream {}: nobody reads: {}", local.stream.key().id(), errno.desc());
        let kind = local.stream.kind();
        if let Err(errno) = local.stream.on_deaf(errno, || local.io.is_gone(kind)) {
            self.reset_at(at, errno, ctx);
        }
    }

    // ---- both ----------------------------------------------------------------------------------------------------

    fn on_hangup_done(&mut self, at: usize, done: &Done) {
        let local = &mut self.locals[at];
        local.io.ops.hangup = None;
        let gone = local.stream.on_hangup_done(done.result.is_ok());
        if let (true, Some(fd)) = (gone, &local.io.fd) {
            let unread = matches!(recv(fd.as_raw_fd(), &mut [0], MsgFlags::MSG_DONTWAIT), Err(Errno::ECONNRESET));
            local.stream.on_hung_up(unread);
        }
    }

    /// A helper has done what it could to make the close a reset.
    pub(super) fn on_reset_forced(&mut self, (at, key): (usize, Key), ctx: &mut Ctx) {
        if let Some(local) = self.locals.at((at, key)) {
            local.stream.on_reset_forced();
            self.drive(at, ctx);
        }
    }

    /// The memory has its bytes, or never will.
    pub(super) fn finish_fill(&mut self, at: usize, ctx: &mut Ctx) {
        let local = &mut self.locals[at];
        let (Keeps::Fill(fill), Some(fd)) = (&local.io.keeps, &local.io.fd) else { return };
        let result = fill.finish(&**fd);
        let Some(carrier) = local.kin.fills_for.take() else { return };
        let Some(at) = self.locals.find(*carrier) else { return };
        match result {
            Ok(()) => {
                self.locals[at].stream.sink.on_filled();
                self.drive(at, ctx);
            }
            Err(e) => {
                tracing::warn!(peer = %self.peer, "stream {} ends: {e}", carrier.id());
                self.reset_at(at, e.errno, ctx);
            }
        }
    }

    /// Has a helper look at what came with fds.
    fn describe(&mut self, at: usize, ctx: &Ctx, take: impl FnOnce() -> OsResult<Found<OwnedFd>> + Send + 'static) {
        let local = &mut self.locals[at];
        local.stream.source.on_fds();
        let (maker, on_refusal) = (Arc::clone(&ctx.shared.maker), local.kin.on_refusal);
        let answer = self.answer(at, ctx);
        ctx.shared.helpers.run(move || {
            answer.give(Answer::Described(take().and_then(|Found { before, bytes, fds }| {
                let fds = fds.into_iter().map(|fd| (fd, Mode::Passed)).collect();
                Ok(Found { before, bytes, fds: maker.describe(fds, on_refusal)? })
            })));
        });
    }
}
