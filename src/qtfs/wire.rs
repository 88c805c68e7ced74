//! What travels on a file link behind the two HELLOs.
//!
//! ```text
//!   near                                far
//!     Mount(version, path, ro, base) ──▶
//!                                    ◀── Mounted(errno, text | ro, inflight, root)
//!     Request(FUSE in-frame)         ──▶          at most `inflight` unanswered, lock waits apart
//!                                    ◀── Reply(FUSE out-frame), in any order
//!                                    ◀── SocketReply(type, host path, FUSE out-frame)
//!     Retain(node)                   ──▶          the kernel knows a node once more than it was told
//!     Pass(node)                     ──▶          an open file of it is passed to a program of the far side
//!     Ping                           ◀─▶ Pong
//! ```
//!
//! A frame is `u32 length of the payload, u8 kind, 3 zero bytes`, then the payload. FUSE structs are the same on every
//! little-endian 64-bit machine and travel as they are, but for open flags, which have other values on aarch64:
//! they travel as `open_flags`.

use crate::limits::{FILE_FRAME_MAX, PATH_MAX};
use crate::wire::codec::{Decoder, Encoder};
use crate::wire::{WireResult, bad};

/// Grows when the meaning of any byte below changes.
pub const VERSION: u16 = 2;
pub const HEADER_LEN: usize = 8;
/// Set in the `unique` of requests that the near side makes itself, to see whether an inode is still there: they are no
/// use of it. The kernel's are small and even.
pub const OWN_REQUEST: u64 = 1 << 63;
const TEXT_MAX: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Mount = 1,
    Mounted = 2,
    Request = 3,
    Reply = 4,
    SocketReply = 5,
    Retain = 6,
    Ping = 7,
    Pong = 8,
    Pass = 9,
}

/// A frame's header, checked: `len` is at most `FILE_FRAME_MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub len: usize,
    pub kind: Kind,
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        assert!(self.len <= FILE_FRAME_MAX, "our own frames keep the limit");
        let len = u32::try_from(self.len).expect("FILE_FRAME_MAX fits");
        let mut out = [0; HEADER_LEN];
        out[..4].copy_from_slice(&len.to_le_bytes());
        out[4] = self.kind as u8;
        out
    }

    pub fn decode(b: &[u8; HEADER_LEN]) -> WireResult<Self> {
        let kind = match b[4] {
            1 => Kind::Mount,
            2 => Kind::Mounted,
            3 => Kind::Request,
            4 => Kind::Reply,
            5 => Kind::SocketReply,
            6 => Kind::Retain,
            7 => Kind::Ping,
            8 => Kind::Pong,
            9 => Kind::Pass,
            n => bad!("a file frame of kind {n}"),
        };
        let len = u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize;
        if len > FILE_FRAME_MAX {
            bad!("a file frame of {len} bytes");
        }
        Ok(Self { len, kind })
    }
}

/// `payload` with its header in front.
pub fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_LEN + payload.len());
    out.extend_from_slice(&Header { len: payload.len(), kind }.encode());
    out.extend_from_slice(payload);
    out
}

/// Which directory of the host the near side wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Absolute, as typed.
    pub path: Vec<u8>,
    pub read_only: bool,
    /// Node ids and file handles of this link are above it: those of an earlier link are then unknown here, never another's.
    pub base: u64,
}

impl Mount {
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new();
        e.u16(VERSION).u8(self.read_only.into()).u64(self.base).bytes(&self.path);
        e.finish()
    }

    pub fn decode(payload: &[u8]) -> WireResult<Self> {
        let mut d = Decoder::new("Mount", payload);
        let version = d.u16()?;
        if version != VERSION {
            bad!("the peer speaks file protocol {version}, this node {VERSION}; install the same release on both");
        }
        let read_only = flag(&mut d)?;
        let base = d.u64()?;
        let path = d.bytes(PATH_MAX)?.to_vec();
        d.end()?;
        if base > BASE_MAX {
            bad!("Mount with base {base:#x}");
        }
        Ok(Self { path, read_only, base })
    }
}

/// The largest `Mount::base`: above it 2^48 numbers are left, and the top bit stays free for the near side's own nodes.
pub const BASE_MAX: u64 = (1 << 63) - (1 << 48);

/// The far side's verdict on `Mount`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mounted {
    Yes {
        /// Writes end with EROFS, whatever was asked.
        read_only: bool,
        /// How many requests may be unanswered.
        inflight: u16,
        /// The root's file type and permissions.
        mode: u32,
        /// Names this link to the machine that serves it, when one of its files crosses as an fd.
        token: [u8; 16],
    },
    No {
        errno: i32,
        text: String,
    },
}

impl Mounted {
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new();
        match self {
            Self::Yes { read_only, inflight, mode, token } => {
                e.u8(1).u8((*read_only).into()).u16(*inflight).u32(*mode).raw(token);
            }
            Self::No { errno, text } => {
                // A character that is cut in two is decoded leniently.
                let text = &text.as_bytes()[..text.len().min(TEXT_MAX)];
                e.u8(0).u32(errno.cast_unsigned()).bytes(text);
            }
        }
        e.finish()
    }

    pub fn decode(payload: &[u8]) -> WireResult<Self> {
        let mut d = Decoder::new("Mounted", payload);
        let mounted = if flag(&mut d)? {
            let (read_only, inflight, mode) = (flag(&mut d)?, d.u16()?, d.u32()?);
            Self::Yes { read_only, inflight, mode, token: d.raw(16)?.try_into().expect("16 bytes were asked") }
        } else {
            let errno = d.u32()?.cast_signed();
            let text = String::from_utf8_lossy(d.bytes(TEXT_MAX)?);
            Self::No { errno, text: text.chars().map(|c| if c.is_control() { '?' } else { c }).collect() }
        };
        d.end()?;
        if matches!(mounted, Self::Yes { inflight: 0, .. }) {
            bad!("Mounted that allows no request");
        }
        Ok(mounted)
    }
}

/// What a host process listens with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SocketType {
    Stream = 1,
    Datagram = 2,
    SeqPacket = 5,
}

impl SocketType {
    pub fn from_number(n: u8) -> Option<Self> {
        match n {
            1 => Some(Self::Stream),
            2 => Some(Self::Datagram),
            5 => Some(Self::SeqPacket),
            _ => None,
        }
    }
}

/// The front of a SocketReply: this entry is a socket that a host process is bound to now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSocket {
    pub kind: SocketType,
    /// Where the inode is on the host, as the kernel there names it.
    pub path: Vec<u8>,
}

impl HostSocket {
    pub fn encode(&self, reply: &[u8]) -> Vec<u8> {
        let mut e = Encoder::new();
        e.u8(self.kind as u8).bytes(&self.path).raw(reply);
        e.finish()
    }

    /// The socket, and the FUSE reply behind it.
    pub fn decode(payload: &[u8]) -> WireResult<(Self, &[u8])> {
        let mut d = Decoder::new("SocketReply", payload);
        let n = d.u8()?;
        let Some(kind) = SocketType::from_number(n) else { bad!("SocketReply with socket type {n}") };
        let path = d.bytes(PATH_MAX)?.to_vec();
        let front = payload.len() - d.len();
        Ok((Self { kind, path }, &payload[front..]))
    }
}

fn flag(d: &mut Decoder<'_>) -> WireResult<bool> {
    match d.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        n => bad!("{n} where yes or no belongs"),
    }
}

/// open(2) flags with one value on every machine.
pub mod open_flags {
    use nix::fcntl::OFlag;

    /// The lowest two bits: O_RDONLY, O_WRONLY, O_RDWR, which agree everywhere.
    pub const ACCESS: u32 = 3;
    pub const APPEND: u32 = 1 << 2;
    pub const TRUNC: u32 = 1 << 3;
    pub const EXCL: u32 = 1 << 4;
    pub const SYNC: u32 = 1 << 5;
    pub const DSYNC: u32 = 1 << 6;
    pub const NOATIME: u32 = 1 << 7;
    /// Known but not used by the far side: its buffers are not aligned, and the near kernel has no cache for it to pass by.
    pub const DIRECT: u32 = 1 << 8;
    pub const NONBLOCK: u32 = 1 << 9;

    fn pairs() -> [(u32, OFlag); 8] {
        [
            (APPEND, OFlag::O_APPEND),
            (TRUNC, OFlag::O_TRUNC),
            (EXCL, OFlag::O_EXCL),
            (SYNC, OFlag::O_SYNC),
            (DSYNC, OFlag::O_DSYNC),
            (NOATIME, OFlag::O_NOATIME),
            (DIRECT, OFlag::O_DIRECT),
            (NONBLOCK, OFlag::O_NONBLOCK),
        ]
    }

    /// What is not listed above (O_LARGEFILE, O_CLOEXEC, O_NOFOLLOW, ...) has done its work on the near side.
    pub fn to_wire(native: u32) -> u32 {
        let flags = OFlag::from_bits_retain(native.cast_signed());
        pairs().iter().filter(|(_, f)| flags.contains(*f)).fold(native & ACCESS, |w, (bit, _)| w | bit)
    }

    pub fn from_wire(wire: u32) -> OFlag {
        let access = OFlag::from_bits_retain((wire & ACCESS).cast_signed());
        pairs().iter().filter(|(bit, _)| wire & bit != 0).fold(access, |f, (_, flag)| f | *flag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_and_a_long_one_is_refused() {
        let header = Header { len: 77, kind: Kind::SocketReply };
        assert_eq!(Header::decode(&header.encode()), Ok(header));
        let mut bytes = header.encode();
        bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Header::decode(&bytes).is_err());
    }

    #[test]
    fn mount_and_its_verdicts_survive_and_every_cut_is_refused() {
        let mount = Mount { path: b"/a".to_vec(), read_only: true, base: 5 << 48 };
        let bytes = mount.encode();
        assert_eq!(Mount::decode(&bytes), Ok(mount));
        for cut in 0..bytes.len() {
            assert!(Mount::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let verdicts = [
            Mounted::Yes { read_only: false, inflight: 15, mode: 0o40755, token: [3; 16] },
            Mounted::No { errno: 13, text: "no".into() },
        ];
        for mounted in verdicts {
            let bytes = mounted.encode();
            assert_eq!(Mounted::decode(&bytes), Ok(mounted));
            for cut in 0..bytes.len() {
                assert!(Mounted::decode(&bytes[..cut]).is_err(), "cut at {cut}");
            }
        }
    }

    #[test]
    fn a_base_that_would_overflow_is_refused() {
        let mount = Mount { path: b"/a".to_vec(), read_only: true, base: u64::MAX };
        assert!(Mount::decode(&mount.encode()).is_err());
    }

    #[test]
    fn a_socket_reply_keeps_its_fuse_frame() {
        let socket = HostSocket { kind: SocketType::SeqPacket, path: b"/run/x".to_vec() };
        let bytes = socket.encode(b"reply");
        assert_eq!(HostSocket::decode(&bytes), Ok((socket, &b"reply"[..])));
    }

    #[test]
    fn open_flags_are_the_same_after_the_journey() {
        use nix::fcntl::OFlag;
        let all = OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_TRUNC | OFlag::O_SYNC | OFlag::O_NOATIME | OFlag::O_DIRECT;
        let wire = open_flags::to_wire((all | OFlag::O_LARGEFILE | OFlag::O_CLOEXEC).bits().cast_unsigned());
        assert_eq!(open_flags::from_wire(wire), all);
        // O_SYNC contains O_DSYNC's bit; the other way round it must not appear.
        let wire = open_flags::to_wire(OFlag::O_DSYNC.bits().cast_unsigned());
        assert_eq!(open_flags::from_wire(wire), OFlag::O_DSYNC);
        assert!(wire < 1 << 10, "no native value above the named bits");
    }
}
