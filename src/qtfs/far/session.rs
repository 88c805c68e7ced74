//! The threads of one file link.
//!
//! ```text
//!   idle threads ──wait──▶ [ reading: one thread at a time ] ──request──▶ the same thread serves it and writes the reply
//!                                   ▲                                                    │
//!                                   └────────────────────────────────────────────────────┘
//! ```
//!
//! Whoever read a request serves it, so there is no queue: at most one frame a thread is in memory. The near side keeps
//! fewer requests unanswered than there are threads, so one is always left to read, and to answer PING while a disk
//! is slow. PING, FORGET and INTERRUPT are served by the reader before it hands the reading on.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::unistd::UnlinkatFlags;

use super::crew::Crew;
use super::locks::Target;
use super::sweeper;
use super::tree::{Answer, Fault, PREFIX, Served, Tree, body};
use crate::link::conn::Closer;
use crate::qtfs::abi::{self, InHeader, Lock, OutHeader, op};
use crate::qtfs::frames::{self, FrameReader, read_frame};
use crate::qtfs::wire::{self, HEADER_LEN, Header, Kind};
use crate::wire::codec::Decoder;
use crate::wire::{ProtocolError, WireResult, bad};

/// It closes files and nothing else.
const SWEEPER_STACK: usize = 64 << 10;

pub(super) struct Session {
    tree: Tree,
    reader: Mutex<FrameReader>,
    writer: Mutex<Box<dyn Write + Send>>,
    closer: Closer,
    over: AtomicBool,
    /// Threads that wait for the reading, or read.
    idle: AtomicUsize,
    crew: Crew,
    /// Who mounts, for the log and its measure.
    peer: String,
    name: String,
}

impl Session {
    pub(super) fn new(
        tree: Tree,
        reader: FrameReader,
        writer: Box<dyn Write + Send>,
        closer: Closer,
        threads: usize,
        (peer, name): (String, String),
    ) -> Arc<Self> {
        Arc::new(Self {
            tree,
            reader: Mutex::new(reader),
            writer: Mutex::new(writer),
            closer,
            over: AtomicBool::new(false),
            idle: AtomicUsize::new(0),
            crew: Crew::new(threads),
            peer,
            name,
        })
    }

    pub(super) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Serves until the link ends, on this thread and as many more as are needed. The thread must be prepared
    /// (`caller::prepare_thread`).
    pub(super) fn run(self: &Arc<Self>) {
        let sweeper = self.start_sweeper();
        self.work();
        // The others see the end as soon as they are done.
        self.tree.locks.close();
        self.crew.wait();
        self.tree.nodes.bell.end();
        if let Some(sweeper) = sweeper {
            sweeper.join().expect("never poisoned: panics abort");
        }
    }

    fn start_sweeper(self: &Arc<Self>) -> Option<JoinHandle<()>> {
        let session = self.clone();
        let body = move || sweeper::sweep(&session.tree.nodes);
        let started = std::thread::Builder::new().name("qtfs-sweep".into()).stack_size(SWEEPER_STACK).spawn(body);
        started
            .inspect_err(|e| {
                tracing::warn!(peer = self.peer, "{}: no thread to close unused files, which stay open: {e}", self.name)
            })
            .ok()
    }

    fn work(self: &Arc<Self>) {
        let mut buf = frames::buffer();
        while let Some(len) = self.next(&mut buf) {
            self.serve(&buf[..len]);
        }
        self.crew.leave();
    }

    /// Waits for the reading and takes one request; its length, or `None` when the link is over.
    fn next(self: &Arc<Self>, buf: &mut [u8]) -> Option<usize> {
        self.idle.fetch_add(1, Ordering::AcqRel);
        let next = {
            let mut reader = self.reader.lock().expect("never poisoned: panics abort");
            self.read_request(&mut reader, buf)
        };
        if self.idle.fetch_sub(1, Ordering::AcqRel) == 1 && next.is_some() {
            self.add_thread();
        }
        next
    }

    fn read_request(&self, reader: &mut FrameReader, buf: &mut [u8]) -> Option<usize> {
        while !self.over.load(Ordering::Acquire) {
            match read_frame(reader, buf).and_then(|frame| self.take(frame, buf)) {
                Ok(Some(len)) => return Some(len),
                Ok(None) => {}
                Err(e) => self.end(&e),
            }
        }
        None
    }

    /// Does what needs no thread of its own; gives back the length of a request that does.
    fn take(&self, frame: Option<(Kind, usize)>, buf: &[u8]) -> WireResult<Option<usize>> {
        let Some((kind, len)) = frame else {
            tracing::info!(peer = self.peer, "{}: the near side closed the link", self.name);
            self.over.store(true, Ordering::Release);
            return Ok(None);
        };
        let payload = &buf[..len];
        match kind {
            Kind::Request => {}
            Kind::Ping => {
                self.send(&wire::frame(Kind::Pong, payload));
                return Ok(None);
            }
            Kind::Retain => {
                let mut d = Decoder::new("Retain", payload);
                self.tree.nodes.retain(d.u64()?);
                return d.end().map(|()| None);
            }
            Kind::Pass => {
                let mut d = Decoder::new("Pass", payload);
                self.tree.nodes.pin(d.u64()?);
                return d.end().map(|()| None);
            }
            other => bad!("a frame of kind {other:?} in a mounted link"),
        }
        let (header, mut d) = InHeader::decode(payload)?;
        match header.opcode {
            op::FORGET => self.tree.nodes.forget(header.node, d.u64()?),
            op::BATCH_FORGET => {
                let (count, _) = (d.u32()?, d.u32()?);
                for _ in 0..count {
                    self.tree.nodes.forget(d.u64()?, d.u64()?);
                }
            }
            op::INTERRUPT => self.tree.locks.interrupt(d.u64()?),
            _ => return Ok(Some(len)),
        }
        Ok(None)
    }

    fn add_thread(self: &Arc<Self>) {
        if !self.crew.join() {
            return;
        }
        let session = self.clone();
        let body = move || match crate::sys::caller::prepare_thread() {
            Ok(()) => session.work(),
            Err(e) => {
                tracing::warn!(peer = session.peer, "{}: a request thread could not be set up: {e}", session.name);
                session.crew.leave();
            }
        };
        if std::thread::Builder::new().name("qtfs-far".into()).spawn(body).is_err() {
            self.crew.leave();
        }
    }

    fn end(&self, why: &ProtocolError) {
        if !self.over.swap(true, Ordering::AcqRel) {
            tracing::warn!(peer = self.peer, "{}: {why}", self.name);
        }
        self.closer.close();
    }

    fn send(&self, frame: &[u8]) {
        let written = self.writer.lock().expect("never poisoned: panics abort").write_all(frame);
        if let Err(e) = written
            && !self.over.swap(true, Ordering::AcqRel)
        {
            tracing::info!(peer = self.peer, "{}: the link broke: {e}", self.name);
            self.closer.close();
        }
    }

    fn serve(self: &Arc<Self>, frame: &[u8]) {
        let served = InHeader::decode(frame).map_err(Fault::from).map(|(header, d)| {
            let served = self.dispatch(&header, d);
            (header, served)
        });
        match served {
            Ok((header, Err(Fault::Protocol(e)))) => {
                self.end(&ProtocolError(format!("{} in a request of opcode {}", e.0, header.opcode)));
            }
            Ok((header, served)) => self.reply(header.unique, served),
            Err(Fault::Protocol(e)) => self.end(&e),
            Err(Fault::Errno(_)) => unreachable!("decoding a header has no errno"),
        }
    }

    fn reply(&self, unique: u64, served: Served) {
        match served {
            Ok(Answer::Reply(reply)) => self.send(&finished(reply, unique, 0)),
            Ok(Answer::Socket(reply, socket)) => {
                let reply = finished(reply, unique, 0);
                self.send(&wire::frame(Kind::SocketReply, &socket.encode(&reply[HEADER_LEN..])));
            }
            Ok(Answer::Later | Answer::Silent) => {}
            Err(Fault::Errno(e)) => self.send(&finished(vec![0; PREFIX], unique, -(e as i32))),
            Err(Fault::Protocol(_)) => unreachable!("ended the link already"),
        }
    }

    fn dispatch(self: &Arc<Self>, h: &InHeader, d: Decoder<'_>) -> Served {
        let tree = &self.tree;
        tree.permit(h.opcode, d.clone())?;
        match h.opcode {
            op::LOOKUP => tree.lookup(h, d),
            op::GETATTR => tree.getattr(h, d),
            op::STATX => tree.statx(h, d),
            op::SETATTR => tree.setattr(h, d),
            op::READLINK => tree.readlink(h),
            op::SYMLINK => tree.symlink(h, d),
            op::MKNOD => tree.mknod(h, d),
            op::MKDIR => tree.mkdir(h, d),
            op::UNLINK => tree.unlink(h, d, UnlinkatFlags::NoRemoveDir),
            op::RMDIR => tree.unlink(h, d, UnlinkatFlags::RemoveDir),
            op::RENAME => tree.rename(h, d, false),
            op::RENAME2 => tree.rename(h, d, true),
            op::LINK => tree.link(h, d),
            op::OPEN => tree.open(h, d),
            op::CREATE => tree.create(h, d),
            op::TMPFILE => tree.tmpfile(h, d),
            op::READ => tree.read(d),
            op::WRITE => tree.write(d),
            op::STATFS => tree.statfs(h),
            op::RELEASE | op::RELEASEDIR => tree.release(d),
            op::FLUSH => tree.flush(d),
            op::FSYNC | op::FSYNCDIR => tree.fsync(d),
            op::SETXATTR => tree.setxattr(h, d),
            op::GETXATTR => tree.getxattr(h, d),
            op::LISTXATTR => tree.listxattr(h, d),
            op::REMOVEXATTR => tree.removexattr(h, d),
            op::OPENDIR => tree.opendir(h),
            op::READDIR => tree.readdir(d, false),
            op::READDIRPLUS => tree.readdir(d, true),
            op::FALLOCATE => tree.fallocate(d),
            op::LSEEK => tree.lseek(d),
            op::COPY_FILE_RANGE => tree.copy_file_range(d, false),
            op::COPY_FILE_RANGE_64 => tree.copy_file_range(d, true),
            op::GETLK => tree.getlk(d),
            op::SETLK => self.setlk(h, d, false),
            op::SETLKW => self.setlk(h, d, true),
            op::FORGET | op::BATCH_FORGET | op::INTERRUPT => Ok(Answer::Silent),
            _ => Err(Errno::ENOSYS.into()),
        }
    }

    fn setlk(self: &Arc<Self>, h: &InHeader, mut d: Decoder<'_>, wait: bool) -> Served {
        let lock = Lock::decode(&mut d)?;
        let open = self.tree.files.get(lock.fh)?;
        let Some(target) = self.tree.locks.target(&open, &lock, lock.flags & abi::LK_FLOCK != 0)? else {
            return super::tree::empty();
        };
        match self.tree.locks.set(&target) {
            Ok(()) => super::tree::empty(),
            Err(Errno::EAGAIN) if wait => self.wait_for_lock(h.unique, target),
            Err(e) => Err(e.into()),
        }
    }

    fn wait_for_lock(self: &Arc<Self>, unique: u64, target: Target) -> Served {
        let session = self.clone();
        self.tree.locks.wait(unique, target, move |result| {
            session.reply(unique, result.map(|()| Answer::Reply(body().finish())).map_err(Fault::from));
        })?;
        Ok(Answer::Later)
    }
}

impl Tree {
    fn getlk(&self, mut d: Decoder<'_>) -> Served {
        let lock = Lock::decode(&mut d)?;
        let open = self.files.get(lock.fh)?;
        let found = self.locks.test(&open, &lock)?;
        let mut e = body();
        e.u64(found.start).u64(found.end).u32(found.kind).u32(found.pid);
        Ok(Answer::Reply(e.finish()))
    }
}

/// Fills in the room in front of a reply's body.
fn finished(mut reply: Vec<u8>, unique: u64, error: i32) -> Vec<u8> {
    let len = reply.len() - HEADER_LEN;
    reply[..HEADER_LEN].copy_from_slice(&Header { len, kind: Kind::Reply }.encode());
    let header = OutHeader { len: u32::try_from(len).expect("FILE_FRAME_MAX fits"), error, unique }.bytes();
    reply[HEADER_LEN..PREFIX].copy_from_slice(&header);
    reply
}
