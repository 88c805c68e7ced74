//! The two directions of the relay: requests from /dev/fuse, replies from the link.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::errno::Errno;

use super::link::Pending;
use super::{Dialled, Near, dial_mount, opens};
use crate::limits::{FILE_FRAME_MAX, REDIAL_FIRST_MS, REDIAL_MAX_MS};
use crate::qtfs::abi::{self, ENTRY, InHeader, OUT_HEADER, OutHeader, ROOT, op, open_flags_at};
use crate::qtfs::frames::{self, FrameReader, read_frame};
use crate::qtfs::wire::{HEADER_LEN, HostSocket, Kind, OWN_REQUEST, open_flags};
use crate::sys::file::Stat;
use crate::sys::kick::Kickable;
use crate::sys::mount_ioctl;
use crate::wire::codec::{Decoder, Encoder};
use crate::wire::{WireResult, bad};

/// The hidden directory's node id; the far side's ids stay below (`wire::BASE_MAX`).
const HIDDEN: u64 = 1 << 63;

/// What becomes of a request.
enum Verdict {
    Forward,
    /// Answered here, or nothing to answer.
    Done,
    Fail(Errno),
}

impl Near {
    /// One of the threads that read requests; ends with the mount.
    pub(super) fn read_device(self: &Arc<Self>) {
        self.readers.lock().expect("never poisoned: panics abort").push(Kickable::this_thread());
        let mut buf = vec![0; HEADER_LEN + FILE_FRAME_MAX];
        while !self.is_over() {
            match self.device.read(&mut buf[HEADER_LEN..], &self.over) {
                Ok(Some(len)) => self.on_request(&mut buf[..HEADER_LEN + len]),
                Ok(None) => break,
                Err(e) => {
                    tracing::error!("{}: {e}", self.spec.target.display());
                    break;
                }
            }
        }
        self.finish();
    }

    fn on_request(&self, buf: &mut [u8]) {
        let frame = &mut buf[HEADER_LEN..];
        let Ok((header, d)) = InHeader::decode(frame) else {
            tracing::error!("the kernel sent {} bytes that are no request", frame.len());
            return;
        };
        let verdict = match header.node {
            HIDDEN => self.on_hidden(&header),
            _ => self.judge(&header, d),
        };
        match verdict {
            Verdict::Done => {}
            Verdict::Fail(errno) => self.device.fail(header.unique, errno),
            Verdict::Forward => {
                translate_flags(header.opcode, frame);
                match header.opcode {
                    op::OPEN | op::OPENDIR => self.opens.on_open(header.node),
                    op::RELEASE | op::RELEASEDIR => self.opens.on_closed(header.node),
                    op::SETLK | op::SETLKW => self.opens.on_lock(header.node),
                    _ => {}
                }
                let pending = Pending { opcode: header.opcode, node: header.node };
                if let Err(errno) = self.link.send(buf, header.unique, pending) {
                    self.fail(header.unique, pending, errno);
                }
            }
        }
    }

    fn judge(&self, h: &InHeader, mut d: Decoder<'_>) -> Verdict {
        match h.opcode {
            op::INIT => match self.device.negotiate(&mut d) {
                Ok(answer) => self.device.answer(h.unique, &answer),
                Err(e) => {
                    tracing::error!("{e}");
                    return Verdict::Fail(Errno::EPROTO);
                }
            },
            op::IOCTL => match self.identify(h, &mut d) {
                Some(answer) => self.device.answer(h.unique, &answer),
                // Their numbers and structs differ between machines, and no regular file needs one.
                None => return Verdict::Fail(Errno::ENOTTY),
            },
            op::DESTROY => self.device.answer(h.unique, &[]),
            op::NOTIFY_REPLY => {}
            op::FLUSH if !self.opens.was_locked(h.node) => self.device.answer(h.unique, &[]),
            op::LOOKUP if h.node == ROOT && self.is_hidden(&mut d) => self.device.answer(h.unique, &hidden_entry()),
            _ => return Verdict::Forward,
        }
        Verdict::Done
    }

    /// The one ioctl of a mount: what the far side calls this file.
    fn identify(&self, h: &InHeader, d: &mut Decoder<'_>) -> Option<Vec<u8>> {
        let (_handle, _flags, request, _argument) = (d.u64().ok()?, d.u32().ok()?, d.u32().ok()?, d.u64().ok()?);
        let (_in_size, out_size) = (d.u32().ok()?, d.u32().ok()?);
        if request != mount_ioctl::REQUEST || (out_size as usize) < mount_ioctl::ANSWER_LEN {
            return None;
        }
        // Before whoever asks can close the file.
        self.link.tell(Kind::Pass, &h.node.to_le_bytes());
        let token = *self.token.lock().expect("never poisoned: panics abort");
        let mut answer = Encoder::new();
        // fuse_ioctl_out: result, flags, in_iovs, out_iovs; then the data.
        answer.u32(0).u32(0).u32(0).u32(0).raw(&mount_ioctl::answer(token, h.node));
        Some(answer.finish())
    }

    fn is_hidden(&self, d: &mut Decoder<'_>) -> bool {
        let name = self.hidden_name.lock().expect("never poisoned: panics abort");
        name.as_ref().is_some_and(|n| abi::name(d).is_ok_and(|asked| asked.to_bytes() == n.as_bytes()))
    }

    /// The hidden directory is empty for everyone and takes what `Aliases` binds.
    fn on_hidden(&self, h: &InHeader) -> Verdict {
        match h.opcode {
            op::GETATTR => {
                let mut e = Encoder::new();
                abi::attr_out(&mut e, &hidden_stat(), HIDDEN);
                self.device.answer(h.unique, &e.finish());
            }
            op::LOOKUP => return Verdict::Fail(Errno::ENOENT),
            op::MKNOD => {
                let Some(entry) = self.aliases.expected() else { return Verdict::Fail(Errno::EPERM) };
                // The kernel hears of the node once more than the far side said.
                self.link.tell(Kind::Retain, &entry[..8]);
                self.device.answer(h.unique, &entry);
            }
            opcode if op::is_silent(opcode) => {}
            op::GETXATTR | op::LISTXATTR => return Verdict::Fail(Errno::ENODATA),
            _ => return Verdict::Fail(Errno::EPERM),
        }
        Verdict::Done
    }

    /// The thread that reads the link, for as long as the mount lives. The first link is up already.
    pub(super) fn supervise(self: &Arc<Self>, first: FrameReader) {
        let mut reader = Some(first);
        while let Some(mut from) = reader.take() {
            let why = self.read_link(&mut from);
            let lost = self.link.down();
            self.aliases.clear();
            if !self.is_over() {
                tracing::error!("{}: {why}; requests get EIO until the host is back", self.spec.target.display());
            }
            for (unique, pending) in lost.iter().filter(|(unique, _)| unique & OWN_REQUEST == 0) {
                self.fail(*unique, *pending, Errno::EIO);
            }
            reader = self.redial().map(|Dialled { reader, writer, closer, inflight, token, .. }| {
                *self.token.lock().expect("never poisoned: panics abort") = token;
                self.link.up(writer, closer, usize::from(inflight));
                reader
            });
        }
    }

    fn redial(&self) -> Option<Dialled> {
        let mut pause = Duration::from_millis(REDIAL_FIRST_MS);
        while !self.is_over() {
            std::thread::sleep(pause);
            let epoch = self.epoch.fetch_add(1, Ordering::AcqRel) + 1;
            match dial_mount(&self.spec, epoch) {
                Ok(dialled) => {
                    tracing::info!("{}: the host is back", self.spec.target.display());
                    return Some(dialled);
                }
                Err(e) => tracing::debug!("{}: {e}", self.spec.target.display()),
            }
            pause = (pause * 2).min(Duration::from_millis(REDIAL_MAX_MS));
        }
        None
    }

    /// Handles frames until the link ends; why it did.
    fn read_link(&self, reader: &mut FrameReader) -> String {
        let mut buf = frames::buffer();
        loop {
            let (kind, len) = match read_frame(reader, &mut buf) {
                Ok(Some(found)) => found,
                Ok(None) => return "the host closed the link".into(),
                Err(e) => return e.to_string(),
            };
            self.link.heard();
            if let Err(e) = self.on_frame(kind, &mut buf[..len]) {
                return e.to_string();
            }
        }
    }

    fn on_frame(&self, kind: Kind, payload: &mut [u8]) -> WireResult<()> {
        match kind {
            Kind::Pong => Ok(()),
            Kind::Reply => self.on_reply(payload),
            Kind::SocketReply => {
                let (socket, reply) = HostSocket::decode(payload)?;
                let (header, _) = OutHeader::decode(reply)?;
                match self.link.answered(header.unique) {
                    Some(p) if p.opcode == op::LOOKUP => self.aliases.hold(&self.device, socket, reply),
                    Some(p) => bad!("a socket in reply to opcode {}", p.opcode),
                    None => {}
                }
                Ok(())
            }
            other => bad!("a frame of kind {other:?} from the host"),
        }
    }

    fn on_reply(&self, reply: &mut [u8]) -> WireResult<()> {
        let (header, _) = OutHeader::decode(reply)?;
        let Some(pending) = self.link.answered(header.unique) else { return Ok(()) };
        if header.unique & OWN_REQUEST != 0 {
            self.on_sweep(pending, &header, reply);
            return Ok(());
        }
        if header.error != 0 {
            self.not_opened(pending);
            self.device.reply(reply);
            return Ok(());
        }
        match pending.opcode {
            op::OPEN => {
                self.mark_open(reply, OUT_HEADER + 8);
                self.device.reply(&opens::end_attributes(pending.node));
            }
            op::OPENDIR => self.device.reply(&opens::end_attributes(pending.node)),
            op::CREATE | op::TMPFILE => {
                self.mark_open(reply, OUT_HEADER + ENTRY + 8);
                if let Some(node) = opens::entry_node(reply) {
                    self.opens.on_open(node);
                    self.device.reply(&opens::end_attributes(node));
                }
            }
            op::LOOKUP => {
                self.forget_dead_socket(reply);
                self.opens.mark_lookup(reply);
            }
            _ => {}
        }
        self.device.reply(reply);
        Ok(())
    }

    fn fail(&self, unique: u64, pending: Pending, errno: Errno) {
        self.not_opened(pending);
        self.device.fail(unique, errno);
    }

    fn not_opened(&self, pending: Pending) {
        if matches!(pending.opcode, op::OPEN | op::OPENDIR) {
            self.opens.on_closed(pending.node);
        }
    }

    fn mark_open(&self, reply: &mut [u8], at: usize) {
        if let Some(flags) = reply.get_mut(at..at + 4) {
            flags.copy_from_slice(&self.device.open_answer().to_le_bytes());
        }
    }

    /// A socket that no host process is bound to (any more) has no listener here.
    fn forget_dead_socket(&self, reply: &[u8]) {
        let field = |at: usize| reply.get(at..).and_then(|b| b.first_chunk::<4>()).map(|b| u32::from_le_bytes(*b));
        let mode = field(OUT_HEADER + ENTRY - 28);
        if mode.is_some_and(|m| m & libc::S_IFMT == libc::S_IFSOCK)
            && let Some(node) = reply.get(OUT_HEADER..).and_then(|b| b.first_chunk())
        {
            self.aliases.remove(u64::from_le_bytes(*node));
        }
    }

    /// Asks for each alias whether its inode is still there.
    pub(super) fn sweep(&self) {
        for node in self.aliases.nodes() {
            let unique = OWN_REQUEST | node;
            if self.link.is_pending(unique) {
                continue;
            }
            let mut buf = vec![0; HEADER_LEN];
            buf.extend_from_slice(&InHeader::encode(op::GETATTR, unique, node, &[0; 16]));
            // Down: there are no aliases then.
            let _ = self.link.send(&mut buf, unique, Pending { opcode: op::GETATTR, node });
        }
    }

    fn on_sweep(&self, pending: Pending, header: &OutHeader, reply: &[u8]) {
        // attr_out: 16 bytes, then nlink 64 bytes into the attributes.
        let nlink = reply.get(OUT_HEADER + 16 + 64..).and_then(|b| b.first_chunk()).map(|b| u32::from_le_bytes(*b));
        if header.error != 0 || nlink == Some(0) {
            self.aliases.remove(pending.node);
        }
    }
}

/// Puts the request's open flags into the values that every machine knows.
fn translate_flags(opcode: u32, frame: &mut [u8]) {
    if let Some(field) = open_flags_at(opcode).and_then(|at| frame.get_mut(at..at + 4)) {
        let native = u32::from_ne_bytes(*field.first_chunk().expect("four bytes"));
        field.copy_from_slice(&open_flags::to_wire(native).to_le_bytes());
    }
}

fn hidden_stat() -> Stat {
    Stat {
        mode: libc::S_IFDIR | 0o700,
        nlink: 2,
        uid: 0,
        gid: 0,
        ino: HIDDEN,
        size: 0,
        blocks: 0,
        blksize: 4096,
        dev_major: 0,
        dev_minor: 0,
        rdev_major: 0,
        rdev_minor: 0,
        atime: (0, 0),
        mtime: (0, 0),
        ctime: (0, 0),
        btime: None,
        attributes: 0,
        attributes_mask: 0,
        mount_id: 0,
    }
}

fn hidden_entry() -> Vec<u8> {
    let mut e = Encoder::new();
    abi::entry(&mut e, HIDDEN, &hidden_stat(), HIDDEN);
    e.finish()
}
