//! The 16-byte header of every frame on a link.
//!
//! ```text
//!   0        4     5      6      8         12        16
//!   ├─ len ──┼type─┼flags─┼─aux──┼─ stream ─┼─ credit ─┤ payload of len bytes ...
//! ```
//!
//! All little-endian. `credit` of any stream frame is absolute: "so many bytes, counted from the stream's birth and
//! modulo 2^32, I let you have sent me"; a repeated or late one does no harm.

use super::{WireResult, bad};
use crate::limits::BULK_FRAME_MAX;

pub const HEADER_LEN: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    Hello = 1,
    /// Asks the other end of this link for a PONG; `credit` is echoed.
    Ping = 2,
    Pong = 3,
    /// No new streams from now on; the old ones finish.
    GoAway = 4,
    /// A new stream: aux = service, payload = the service's request. DATA may follow at once.
    Open = 5,
    /// The verdict yes on OPEN, or on a stream announced by a recipe; payload = what the service says with it.
    Accept = 6,
    /// The stream ends now, both ways: aux = errno. Also the verdict no.
    Reset = 7,
    /// Bytes of the stream; flags FIN, EOR, HAS_FDS (aux = how many).
    Data = 8,
    /// Nothing but `credit` (and READ_CLOSED).
    Credit = 9,
    /// Recipes of the fds that the next DATA frame mentions; MORE: the encoding goes on in the next RECIPE.
    Recipe = 10,
    /// This direction's last frame on LAT: the next ones come on BULK.
    Move = 11,
    /// This direction's last frame on BULK: the next ones come on LAT.
    MoveBack = 12,
    /// So much has come on a lane: aux = the lane, payload = how many bytes since the session's birth. Only where RESUME is
    /// agreed (`features.rs`).
    Ack = 13,
    /// The first frame, each way, of a link that goes on with a lane: payload as of Ack. Without one: behind it the lane goes
    /// on, perhaps in the middle of a frame.
    Resume = 14,
}

impl FrameType {
    /// Whether it is about the link it comes on. All others are the lane's, whichever link carries them: they are counted,
    /// and said again on the next link if this one is lost.
    pub fn is_of_link(self) -> bool {
        matches!(self, Self::Ping | Self::Pong | Self::Ack | Self::Resume)
    }
}

pub mod flags {
    /// DATA: the sender has nothing more to say.
    pub const FIN: u8 = 1;
    /// DATA: the record ends here.
    pub const EOR: u8 = 2;
    /// RECIPE: the encoding goes on in the next RECIPE frame.
    pub const MORE: u8 = 4;
    /// DATA: fds belong to the first byte; their recipes have come already.
    pub const HAS_FDS: u8 = 8;
    /// CREDIT: nobody reads this stream any more; the sender's program gets EPIPE.
    pub const READ_CLOSED: u8 = 16;
    /// CREDIT with READ_CLOSED: the program closed its socket with something unread, which is a reset for its peer.
    pub const UNREAD: u8 = 32;
    pub const ALL: u8 = FIN | EOR | MORE | HAS_FDS | READ_CLOSED | UNREAD;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub len: u32,
    pub kind: FrameType,
    pub flags: u8,
    pub aux: u16,
    pub stream: u32,
    pub credit: u32,
}

impl Header {
    pub fn new(kind: FrameType, stream: u32) -> Self {
        Self { len: 0, kind, flags: 0, aux: 0, stream, credit: 0 }
    }

    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0..4].copy_from_slice(&self.len.to_le_bytes());
        out[4] = self.kind as u8;
        out[5] = self.flags;
        out[6..8].copy_from_slice(&self.aux.to_le_bytes());
        out[8..12].copy_from_slice(&self.stream.to_le_bytes());
        out[12..16].copy_from_slice(&self.credit.to_le_bytes());
        out
    }

    pub fn decode(b: &[u8; HEADER_LEN]) -> WireResult<Self> {
        let kind = match b[4] {
            1 => FrameType::Hello,
            2 => FrameType::Ping,
            3 => FrameType::Pong,
            4 => FrameType::GoAway,
            5 => FrameType::Open,
            6 => FrameType::Accept,
            7 => FrameType::Reset,
            8 => FrameType::Data,
            9 => FrameType::Credit,
            10 => FrameType::Recipe,
            11 => FrameType::Move,
            12 => FrameType::MoveBack,
            13 => FrameType::Ack,
            14 => FrameType::Resume,
            n => bad!("a frame of type {n}"),
        };
        let header = Self {
            len: u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            kind,
            flags: b[5],
            aux: u16::from_le_bytes([b[6], b[7]]),
            stream: u32::from_le_bytes([b[8], b[9], b[10], b[11]]),
            credit: u32::from_le_bytes([b[12], b[13], b[14], b[15]]),
        };
        if header.len > BULK_FRAME_MAX {
            bad!("a frame of {} bytes where {BULK_FRAME_MAX} are the most", header.len);
        }
        if header.flags & !flags::ALL != 0 {
            bad!("flags {:#x} in a {kind:?} frame", header.flags);
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_way_there_and_back() {
        let h =
            Header { len: 77, kind: FrameType::Data, flags: flags::FIN, aux: 513, stream: 0xdead_beef, credit: 0x0102 };
        assert_eq!(Header::decode(&h.encode()), Ok(h));
    }

    #[test]
    fn unknown_types_flags_and_lengths_are_refused() {
        let good = Header::new(FrameType::Credit, 1).encode();
        for (at, value) in [(4, 0), (4, 15), (4, 255), (5, 0x80), (3, 1)] {
            let mut b = good;
            b[at] = value;
            assert!(Header::decode(&b).is_err(), "byte {at} = {value}");
        }
    }
}
