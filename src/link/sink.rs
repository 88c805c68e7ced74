//! A port's sink: what came from the peer, on its way to the fd.
//!
//! ```text
//!   stream:  pieces ───────────────▶ queue ─▶ one operation in flight ─▶ consumed
//!   record:  fragments ─▶ Assembly ─▶ queue ─▶ one sendmsg, whole      ─▶ consumed
//! ```

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use nix::sys::socket::{Shutdown, shutdown};

use super::ctx::Ctx;
use super::port::{Plant, Port, SourceState};
use crate::errno::{Errno, OsResult};
use crate::fdpass::PumpKind;
use crate::limits::{BULK_BATCH, FRAGMENTS_MAX, GATHER_MAX, MERGE_MAX, RECORD_MAX};
use crate::mux::{Key, Payload, Recipes};
use crate::ring::{Chunk, Done, Message, Op};
use crate::sys::closer;
use crate::sys::shared_file::SharedFile;

/// A piece on its way to the fd, and what it is charged besides its bytes.
pub(super) enum Item {
    Bytes {
        chunk: Chunk,
        overhead: u32,
    },
    /// fds belong to the first byte; their recipes are still to be followed.
    Recipes {
        recipes: Recipes,
        chunks: Vec<Chunk>,
        overhead: u32,
    },
    /// Bytes with fds, or a record: they leave together.
    Message {
        fds: Vec<OwnedFd>,
        chunks: Vec<Chunk>,
        overhead: u32,
    },
}

/// What a helper does before the next write, or in its place.
pub(super) enum Task {
    Rebuild(Recipes),
    Write(Arc<SharedFile>, Vec<u8>),
}

/// What a completed write did.
pub(super) enum Wrote {
    /// So many bytes and charges left the queue.
    Consumed(u32),
    Again,
    /// Nobody reads.
    Gone(Errno),
}

/// The record that is coming in, fragment by fragment. Its bytes are bounded by the window.
#[derive(Default)]
pub(super) struct Assembly {
    recipes: Option<Recipes>,
    chunks: Vec<Chunk>,
    /// What came in more fragments than a fair sender makes, copied together: no fragment may cost more than its bytes.
    rest: Vec<u8>,
    len: usize,
    overhead: u32,
}

impl Assembly {
    /// EMSGSIZE: longer than any record may be.
    fn add(&mut self, chunk: Chunk, recipes: Option<Recipes>, overhead: u32) -> Result<(), Errno> {
        self.len += chunk.len();
        self.overhead += overhead;
        if self.len > RECORD_MAX as usize {
            return Err(Errno::EMSGSIZE);
        }
        self.recipes = recipes.or(self.recipes.take());
        if chunk.is_empty() {
        } else if self.chunks.len() < FRAGMENTS_MAX {
            self.chunks.push(chunk);
        } else {
            self.rest.extend_from_slice(chunk.as_ref());
        }
        Ok(())
    }

    fn take(&mut self) -> Item {
        let Self { recipes, mut chunks, rest, overhead, .. } = std::mem::take(self);
        if !rest.is_empty() {
            chunks.push(Chunk::from_vec(rest));
        }
        match recipes {
            Some(recipes) => Item::Recipes { recipes, chunks, overhead },
            None => Item::Message { fds: Vec::new(), chunks, overhead },
        }
    }
}

/// What came before it was known whether the stream keeps records.
#[derive(Default)]
pub(super) struct Early(Vec<Arrival>);

struct Arrival {
    chunk: Chunk,
    record_end: bool,
    recipes: Option<Recipes>,
    overhead: u32,
}

impl Port {
    /// Bytes came for a stream that has no fd yet. Small ones are copied together, as behind a slow reader.
    fn take_early(&mut self, arrival: Arrival) {
        let Early(early) = &mut **self.early.get_or_insert_default();
        if early.len() >= GATHER_MAX
            && let Some(last) = early.last_mut()
            && !last.record_end
            && last.recipes.is_none()
            && arrival.recipes.is_none()
            && last.chunk.len() + arrival.chunk.len() <= MERGE_MAX
        {
            last.chunk = Chunk::from_vec([last.chunk.as_ref(), arrival.chunk.as_ref()].concat());
            last.record_end = arrival.record_end;
            last.overhead += arrival.overhead;
            return;
        }
        early.push(arrival);
    }

    /// There is an fd now.
    ///
    /// # Errors
    /// As `take_in`.
    pub(super) fn take_in_early(&mut self) -> Result<(), Errno> {
        for Arrival { chunk, record_end, recipes, overhead } in self.early.take().map_or_else(Vec::new, |early| early.0)
        {
            self.take_in(chunk, record_end, recipes, overhead)?;
        }
        Ok(())
    }

    /// Bytes came for the fd, and whether a record ends with them.
    ///
    /// # Errors
    /// EMSGSIZE: a record longer than any may be. EFBIG: more than the memory was to hold. EPROTO: fds for something that
    /// is no socket.
    pub(super) fn take_in(
        &mut self,
        chunk: Chunk,
        record_end: bool,
        recipes: Option<Recipes>,
        overhead: u32,
    ) -> Result<(), Errno> {
        self.used = true;
        if self.kind.is_none() {
            self.take_early(Arrival { chunk, record_end, recipes, overhead });
            return Ok(());
        }
        if recipes.is_some() && !self.is_socket() {
            return Err(Errno::EPROTO);
        }
        if let Some(PumpKind::Fill(fill)) = &mut self.kind {
            fill.take_in(chunk.len())?;
        }
        if let Some(share) = &mut self.share {
            share.add(chunk.len() as u64 + u64::from(overhead));
        }
        if self.keeps_records() {
            let assembly = self.assembly.get_or_insert_default();
            assembly.add(chunk, recipes, overhead)?;
            if record_end {
                self.queue.push_back(assembly.take());
            }
            return Ok(());
        }
        match recipes {
            Some(recipes) => self.queue.push_back(Item::Recipes { recipes, chunks: vec![chunk], overhead }),
            None => self.push_bytes(chunk, overhead),
        }
        Ok(())
    }

    /// Behind a slow reader small pieces are copied together: the window counts bytes, and each piece costs more.
    fn push_bytes(&mut self, chunk: Chunk, overhead: u32) {
        if self.queue.len() >= GATHER_MAX
            && let Some(Item::Bytes { chunk: last, overhead: before }) = self.queue.back_mut()
            && last.len() + chunk.len() <= MERGE_MAX
        {
            *last = Chunk::from_vec([last.as_ref(), chunk.as_ref()].concat());
            *before += overhead;
            return;
        }
        self.queue.push_back(Item::Bytes { chunk, overhead });
    }

    /// Starts the next write, if one can start. `heard`: whether the peer is to hear of so much having been written.
    /// Returns what a helper must do first, or in its place.
    pub(super) fn write_sink(&mut self, ctx: &mut Ctx, token: u64, heard: impl FnOnce(u32) -> bool) -> Option<Task> {
        if self.is_writing() || self.rebuilding || self.fills > 0 || self.sink_closed {
            return None;
        }
        if let Some(PumpKind::FileSink(file)) = &self.kind {
            let file = Arc::clone(file);
            return self.take_for_file().map(|bytes| Task::Write(file, bytes));
        }
        let fd = Rc::clone(self.fd.as_ref()?);
        let socket = self.is_socket();
        let op = match self.queue.pop_front()? {
            Item::Recipes { recipes, chunks, overhead } => {
                let wanted = recipes.clone();
                self.queue.push_front(Item::Recipes { recipes, chunks, overhead });
                self.rebuilding = true;
                return Some(Task::Rebuild(wanted));
            }
            Item::Message { fds, chunks, overhead } => {
                self.in_flight = overhead;
                let mut message = Box::new(Message::from(chunks));
                message.fds = fds;
                message.record = self.keeps_records();
                message.credentials = self.speaks_as;
                Op::Send { fd, message }
            }
            Item::Bytes { chunk, overhead } => {
                self.in_flight = overhead;
                match self.queue.front() {
                    next if socket && (matches!(next, Some(Item::Bytes { .. })) || self.speaks_as.is_some()) => {
                        Op::Send { fd, message: self.gather(chunk) }
                    }
                    _ if socket => Op::SendChunk { fd, chunk },
                    _ => Op::Write { fd, chunk, terminal: self.terminal },
                }
            }
        };
        self.sink_quiet = match &op {
            // Nothing waits for its end: no more bytes, no close, and no credit.
            Op::SendChunk { chunk, .. } if self.queue.is_empty() && !self.fin => {
                let len = u32::try_from(chunk.len()).expect("a chunk is a frame's, or less");
                !heard(len + self.in_flight)
            }
            _ => false,
        };
        self.sink_op = Some(match self.sink_quiet {
            true => ctx.engine.submit_quietly(op, token),
            false => ctx.engine.submit(op, token),
        });
        None
    }

    /// Whether a write is in flight, or a helper is at it.
    fn is_writing(&self) -> bool {
        self.sink_op.is_some() || self.writing.is_some()
    }

    /// The pieces that are there, as one for a file. A stream to a file brings no fds.
    fn take_for_file(&mut self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < BULK_BATCH
            && let Some(Item::Bytes { chunk, overhead }) = self.queue.pop_front()
        {
            self.in_flight += overhead;
            bytes.extend_from_slice(chunk.as_ref());
        }
        self.writing = (!bytes.is_empty()).then(|| u32::try_from(bytes.len()).expect("little more than a batch"));
        self.writing.map(|_| bytes)
    }

    /// A helper has written to the file.
    pub(super) fn on_file_written(&mut self, result: Result<(), Errno>) -> Wrote {
        let Some(count) = self.writing.take().filter(|_| !self.sink_closed) else { return Wrote::Again };
        let taken = count + std::mem::take(&mut self.in_flight);
        result.map_or_else(Wrote::Gone, |()| Wrote::Consumed(taken))
    }

    fn gather(&mut self, first: Chunk) -> Box<Message> {
        let mut chunks = vec![first];
        while chunks.len() < GATHER_MAX
            && let Some(Item::Bytes { .. }) = self.queue.front()
            && let Some(Item::Bytes { chunk, overhead }) = self.queue.pop_front()
        {
            self.in_flight += overhead;
            chunks.push(chunk);
        }
        let mut message = Box::new(Message::from(chunks));
        message.credentials = self.speaks_as;
        message
    }

    /// The fds that the front message waits for have been made.
    pub(super) fn on_fds(&mut self, fds: Vec<OwnedFd>) {
        let Some(Item::Recipes { chunks, overhead, .. }) = self.queue.pop_front() else {
            unreachable!("the recipes stay in front while they are followed");
        };
        self.queue.push_front(Item::Message { fds, chunks, overhead });
    }

    pub(super) fn on_sink_done(&mut self, done: Done, ctx: &mut Ctx, token: u64) -> Wrote {
        self.sink_op = None;
        self.sink_quiet = false;
        if self.sink_closed {
            return Wrote::Again;
        }
        let count = match (done.op, done.result) {
            // There is room again, or an error that the next try tells.
            (Op::Poll { .. }, _) => {
                let op = *self.stalled.take().expect("what waited for room");
                self.sink_op = Some(ctx.engine.submit(op, token));
                return Wrote::Again;
            }
            // The fd was made non-blocking by its program: wait for room, then go on with what is left.
            (op, Err(Errno::EAGAIN | Errno::EINTR)) => {
                let fd = Rc::clone(self.fd.as_ref().expect("the sink is open"));
                self.stalled = Some(Box::new(op));
                self.sink_op = Some(ctx.engine.submit(Op::Poll { fd, events: libc::POLLOUT }, token));
                return Wrote::Again;
            }
            (_, Err(errno)) => return Wrote::Gone(errno),
            (op, Ok(count)) => {
                self.sink_op = rest_of(op, count as usize).map(|rest| ctx.engine.submit(rest, token));
                count
            }
        };
        let taken = match self.sink_op {
            Some(_) => count,
            None => count + std::mem::take(&mut self.in_flight),
        };
        if let Some(share) = &mut self.share {
            share.sub(u64::from(taken));
        }
        Wrote::Consumed(taken)
    }

    /// After FIN, when all is written: memory that was being filled is made whole, for that stream's message.
    pub(super) fn finish_fill(&mut self) -> Option<(Key, OsResult<()>)> {
        let (Some(PumpKind::Fill(fill)), Some(fd)) = (&self.kind, &self.fd) else { return None };
        let done = self.fin && !self.sink_closed && self.queue.is_empty() && self.sink_op.is_none();
        if done { self.fills_for.take().map(|carrier| (*carrier, fill.finish(&**fd))) } else { None }
    }

    /// After FIN, when all is written: the program sees the end. Returns whether that has just happened.
    pub(super) fn close_sink_if_done(&mut self) -> bool {
        let idle = self.queue.is_empty() && !self.is_writing();
        let planting = matches!(self.plant, Plant::Later | Plant::Wanted | Plant::Working);
        if !self.fin || self.sink_closed || !idle || planting || self.fd.is_none() {
            return false;
        }
        // When both directions have ended over there, it was a close: other holders of a shared socket must not feel it.
        // One that nobody else holds is shut down by its close; a helper that takes fds out of it holds another number of it.
        let ours = self.fd.as_ref().is_some_and(|fd| Rc::strong_count(fd) == 1) && !self.looks.has_seen_fds();
        let closes = self.plant == Plant::Done || (self.source == SourceState::Ended && (self.shared || ours));
        if let (true, false, Some(fd)) = (self.is_socket(), closes, &self.fd) {
            // ENOTCONN: its peer has gone already.
            let _ = shutdown(fd.as_raw_fd(), Shutdown::Write);
        }
        self.drop_sink();
        true
    }

    /// Nothing more is written here. Returns the recipes that nobody will follow: the streams they announce wait for a
    /// verdict.
    pub(super) fn drop_sink(&mut self) -> Vec<Recipes> {
        self.sink_closed = true;
        self.share = None;
        self.stalled = None;
        let partial = self.assembly.take().and_then(|assembly| assembly.recipes);
        let early = self.early.take().map_or_else(Vec::new, |early| early.0);
        let early = early.into_iter().filter_map(|arrival| arrival.recipes);
        let queue: VecDeque<Item> = std::mem::take(&mut self.queue);
        if self.source == SourceState::Ended {
            self.fd = None;
        }
        let recipes = queue.into_iter().filter_map(|item| match item {
            Item::Recipes { recipes, .. } => Some(recipes),
            Item::Message { fds, .. } => {
                closer::close(fds);
                None
            }
            Item::Bytes { .. } => None,
        });
        recipes.chain(partial).chain(early).collect()
    }
}

/// What is left of a write after `count` bytes.
fn rest_of(op: Op, count: usize) -> Option<Op> {
    match op {
        Op::SendChunk { fd, mut chunk } => {
            chunk.advance(count);
            (!chunk.is_empty()).then_some(Op::SendChunk { fd, chunk })
        }
        Op::Write { fd, mut chunk, terminal } => {
            chunk.advance(count);
            (!chunk.is_empty()).then_some(Op::Write { fd, chunk, terminal })
        }
        Op::Send { fd, mut message } => {
            message.advance(count);
            (message.left() > 0).then_some(Op::Send { fd, message })
        }
        op => unreachable!("a sink has no {op:?}"),
    }
}
