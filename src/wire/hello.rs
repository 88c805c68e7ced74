//! HELLO: the first frame of every TCP connection, both ways; nothing else is read before it.
//!
//! ```text
//!   dialer                         listener
//!     HELLO(role, session, ...) ──▶
//!                               ◀── HELLO(verdict)     anything but Ok ends the connection
//!     frames of the role        ◀─▶ frames of the role
//! ```
//!
//! The dialer sends nothing behind its HELLO until the answer has come, so neither side reads past it.

use super::codec::{Decoder, Encoder, clip};
use super::features;
use super::frame::{FrameType, HEADER_LEN, Header};
use super::{WireResult, bad};
use crate::limits::HELLO_MAX;

pub const VERSION: u16 = 4;
const MAGIC: &[u8; 8] = b"farside\0";
const NAME_MAX: usize = 64;
const REASON_MAX: usize = 256;

/// What the connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A link of the one session between two nodes.
    Peer,
    /// A link of a session of its own, for one command: rexec without a local node.
    Client,
    /// A file link: one mount's requests, in a framing of its own.
    Files,
}

/// Which of a link pair's two connections this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Small frames and control.
    Lat,
    /// Big streams.
    Bulk,
}

impl Lane {
    pub const ALL: [Lane; 2] = [Lane::Lat, Lane::Bulk];

    pub fn index(self) -> usize {
        self as usize
    }
}

/// The listener's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    /// Another session between these two nodes survives; not an error.
    Duplicate,
    /// Refused, and the reason says why.
    Refused,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub role: Role,
    pub lane: Lane,
    pub verdict: Verdict,
    /// Random, one per process: tells two births of one machine's node apart.
    pub node: [u8; 16],
    /// Chosen by the dialer; all links of a session carry it.
    pub session: u64,
    /// Which link pair of the session, from 0.
    pub index: u16,
    /// The sender's worker threads; a session has max(both) link pairs.
    pub workers: u16,
    /// What a stream may send before the receiver's first word about credit.
    pub initial_window: u32,
    /// The largest record the sender of this HELLO takes.
    pub record_max: u32,
    /// Bits of optional behaviour; unknown ones are ignored.
    pub features: u64,
    /// The sender's host name, for logs.
    pub name: String,
    /// With `Refused`: why. With `Files`: nothing.
    pub reason: String,
    /// The word of the machine whose program dials with a key of its own, `auth/voucher.rs`; else empty.
    pub voucher: Vec<u8>,
}

impl Hello {
    /// Whether this link goes on with a lane of a session that is there.
    pub fn resumes(&self) -> bool {
        self.features & features::RESUMES != 0
    }

    /// The frame, header included.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Encoder::new();
        body.raw(MAGIC).u16(VERSION);
        body.u8(self.role as u8).u8(self.lane as u8).u8(self.verdict as u8);
        body.raw(&self.node).u64(self.session).u16(self.index).u16(self.workers);
        body.u32(self.initial_window).u32(self.record_max).u64(self.features);
        body.bytes(clip(&self.name, NAME_MAX)).bytes(clip(&self.reason, REASON_MAX));
        body.bytes(&self.voucher);
        let body = body.finish();
        let len = u32::try_from(body.len()).expect("a HELLO is short");
        let mut out = Header { len, ..Header::new(FrameType::Hello, 0) }.encode().to_vec();
        out.extend_from_slice(&body);
        assert!(out.len() <= HELLO_MAX, "the fields' limits add up to less than HELLO_MAX");
        out
    }

    /// `None` while the frame is not whole. More bytes than the frame are an error: nobody may speak before the answer.
    pub fn decode(bytes: &[u8]) -> WireResult<Option<Self>> {
        let Some((head, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let header = match Header::decode(head) {
            Ok(h) if h.kind == FrameType::Hello => h,
            _ => bad!("the first bytes are no HELLO; is this a farside node?"),
        };
        let len = header.len as usize;
        if len + HEADER_LEN > HELLO_MAX {
            bad!("a HELLO of {len} bytes");
        }
        if rest.len() < len {
            return Ok(None);
        }
        if rest.len() > len {
            bad!("{} bytes behind the HELLO", rest.len() - len);
        }
        Self::decode_body(rest).map(Some)
    }

    fn decode_body(body: &[u8]) -> WireResult<Self> {
        let mut d = Decoder::new("HELLO", body);
        if d.raw(MAGIC.len())? != MAGIC {
            bad!("HELLO without the magic");
        }
        let version = d.u16()?;
        if version != VERSION {
            bad!("the peer speaks protocol version {version}, this node {VERSION}; install the same release on both");
        }
        let role = match d.u8()? {
            0 => Role::Peer,
            1 => Role::Client,
            2 => Role::Files,
            n => bad!("HELLO with role {n}"),
        };
        let lane = match d.u8()? {
            0 => Lane::Lat,
            1 => Lane::Bulk,
            n => bad!("HELLO with lane {n}"),
        };
        let verdict = match d.u8()? {
            0 => Verdict::Ok,
            1 => Verdict::Duplicate,
            2 => Verdict::Refused,
            n => bad!("HELLO with verdict {n}"),
        };
        let hello = Self {
            role,
            lane,
            verdict,
            node: d.raw(16)?.try_into().expect("16 bytes were asked"),
            session: d.u64()?,
            index: d.u16()?,
            workers: d.u16()?,
            initial_window: d.u32()?,
            record_max: d.u32()?,
            features: d.u64()?,
            name: printable(d.bytes(NAME_MAX)?),
            reason: printable(d.bytes(REASON_MAX)?),
            voucher: d.bytes(HELLO_MAX)?.to_vec(),
        };
        d.end()?;
        Ok(hello)
    }
}

/// The peer's words go to our log: no control characters.
fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::wire) fn hello() -> Hello {
        Hello {
            role: Role::Client,
            lane: Lane::Bulk,
            verdict: Verdict::Refused,
            node: [7; 16],
            session: 0x0102_0304_0506_0708,
            index: 3,
            workers: 4,
            initial_window: 65536,
            record_max: 1 << 20,
            features: 5,
            name: "dpü".into(),
            reason: "no".into(),
            voucher: vec![1, 2, 3],
        }
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        let bytes = hello().encode();
        assert_eq!(Hello::decode(&bytes), Ok(Some(hello())));
    }

    #[test]
    fn every_cut_is_incomplete_and_every_surplus_is_refused() {
        let mut bytes = hello().encode();
        for cut in 0..bytes.len() {
            assert_eq!(Hello::decode(&bytes[..cut]), Ok(None), "cut at {cut}");
        }
        bytes.push(0);
        assert!(Hello::decode(&bytes).is_err());
    }

    #[test]
    fn another_protocol_is_told_apart() {
        let said = Hello::decode(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap_err();
        assert!(said.0.contains("no HELLO"), "{said}");
        let mut bytes = hello().encode();
        bytes[HEADER_LEN + 8] = 9;
        let said = Hello::decode(&bytes).unwrap_err();
        assert!(said.0.contains("version 9"), "{said}");
    }

    #[test]
    fn control_characters_of_the_peer_never_reach_a_log() {
        let mut h = hello();
        h.name = "a\x1b[31m\n".into();
        let got = Hello::decode(&h.encode()).unwrap().unwrap();
        assert_eq!(got.name, "a?[31m?");
    }
}
