//! What the near side asks of the far side, as the payload of an OPEN frame, and what that says with its yes, as the
//! payload of the ACCEPT.
//!
//! ```text
//!   ConnectRequest  ├ kind u8 ┼ flags u8 ┼ uid u32 ┼ gid u32 ┼ n u32 ┼ n groups, u32 each ┼ name: u32 length + bytes ┤
//!   Listener        ├ uid u32 ┼ gid u32 ┤, or nothing where there is none (a datagram socket)
//! ```

use crate::limits::{CALLER_GROUPS_MAX, HOST_PATH_MAX, OPEN_MAX};
use crate::sys::thread_identity::Identity;
use crate::sys::unix::{NAME_MAX, SocketKind};
use crate::wire::codec::{Decoder, Encoder};
use crate::wire::{WireResult, bad};

/// Kind and flags, uid, gid, two lengths.
const FIXED_LEN: usize = 2 + 4 + 4 + 4 + 4;
const _: () = assert!(FIXED_LEN + 4 * CALLER_GROUPS_MAX + HOST_PATH_MAX <= OPEN_MAX as usize);

const NONBLOCKING: u8 = 1;
const NAMED: u8 = 2;

/// Connect a new socket of this kind to this name, as this caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectRequest {
    pub kind: SocketKind,
    /// An absolute path of the far machine, or an abstract name from its NUL on.
    pub name: Vec<u8>,
    pub caller: Identity,
    /// The caller's socket does not block: a full backlog is EAGAIN instead of a wait.
    pub nonblocking: bool,
    /// The caller's datagram socket has a name, so that it can be answered: the far socket gets one too.
    pub named: bool,
}

impl ConnectRequest {
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.caller.groups.len() <= CALLER_GROUPS_MAX, "the near side bounds the groups");
        assert!(check_name(&self.name).is_ok(), "the near side checks the name");
        let kind = match self.kind {
            SocketKind::Stream => 1,
            SocketKind::SeqPacket => 2,
            SocketKind::Datagram => 3,
        };
        let mut out = Encoder::new();
        let flag = |set, bit| if set { bit } else { 0 };
        out.u8(kind).u8(flag(self.nonblocking, NONBLOCKING) | flag(self.named, NAMED));
        out.u32(self.caller.uid).u32(self.caller.gid);
        out.u32(u32::try_from(self.caller.groups.len()).expect("checked above"));
        for group in &self.caller.groups {
            out.u32(*group);
        }
        out.bytes(&self.name);
        out.finish()
    }

    pub fn decode(bytes: &[u8]) -> WireResult<Self> {
        let mut from = Decoder::new("a connect request", bytes);
        let kind = match from.u8()? {
            1 => SocketKind::Stream,
            2 => SocketKind::SeqPacket,
            3 => SocketKind::Datagram,
            n => bad!("a connect request for sockets of kind {n}"),
        };
        let flags = from.u8()?;
        if flags & !(NONBLOCKING | NAMED) != 0 {
            bad!("a connect request with flags {flags:#x}");
        }
        let (uid, gid) = (from.u32()?, from.u32()?);
        let count = from.u32()? as usize;
        if count > CALLER_GROUPS_MAX {
            bad!("a connect request with {count} groups where {CALLER_GROUPS_MAX} are the most");
        }
        let mut groups = Vec::with_capacity(count);
        for _ in 0..count {
            groups.push(from.u32()?);
        }
        let name = from.bytes(HOST_PATH_MAX)?.to_vec();
        from.end()?;
        check_name(&name)?;
        let caller = Identity { uid, gid, groups };
        Ok(Self { kind, name, caller, nonblocking: flags & NONBLOCKING != 0, named: flags & NAMED != 0 })
    }
}

/// Who listens at the far socket: what SO_PEERCRED shows a caller of its own machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    pub uid: u32,
    pub gid: u32,
}

impl Listener {
    pub fn encode(self) -> Vec<u8> {
        let mut out = Encoder::new();
        out.u32(self.uid).u32(self.gid);
        out.finish()
    }

    /// `None`: nothing was said.
    pub fn decode(bytes: &[u8]) -> WireResult<Option<Self>> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let mut from = Decoder::new("a listener", bytes);
        let (uid, gid) = (from.u32()?, from.u32()?);
        from.end()?;
        // To setresuid(2) it would mean: as before.
        if [uid, gid].contains(&u32::MAX) {
            bad!("a listener of uid {uid}, gid {gid}");
        }
        Ok(Some(Self { uid, gid }))
    }
}

/// Whether the far side can be asked for this name at all.
pub fn check_name(name: &[u8]) -> WireResult<()> {
    match name {
        [0, _, ..] if name.len() <= NAME_MAX => Ok(()),
        // One byte of PATH_MAX is its NUL.
        [b'/', rest @ ..] if name.len() < HOST_PATH_MAX && !rest.contains(&0) => Ok(()),
        _ => bad!("a socket name that is neither an absolute path nor an abstract name"),
    }
}

/// A socket's name for a log line: `@` for an abstract one's NUL, nothing that moves a terminal's cursor.
pub fn printable(name: &[u8]) -> String {
    let (sign, rest) = if let [0, rest @ ..] = name { ("@", rest) } else { ("", name) };
    format!("{sign}{}", rest.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(groups: usize, name: &[u8]) -> ConnectRequest {
        let named = name.len() % 2 == 1;
        let groups = (0..groups).map(|n| u32::try_from(n).unwrap()).collect();
        ConnectRequest {
            kind: SocketKind::SeqPacket,
            name: name.to_vec(),
            caller: Identity { uid: 64_055, gid: 107, groups },
            nonblocking: true,
            named,
        }
    }

    #[test]
    fn requests_survive_the_way_and_the_largest_fits_an_open() {
        for (groups, len) in [(0, 2), (3, 50), (CALLER_GROUPS_MAX, HOST_PATH_MAX - 1)] {
            let mut name = vec![b'x'; len];
            name[0] = b'/';
            let asked = request(groups, &name);
            let bytes = asked.encode();
            assert!(bytes.len() <= OPEN_MAX as usize);
            assert_eq!(ConnectRequest::decode(&bytes), Ok(asked));
        }
        let asked = request(1, b"\0abstract\0too");
        assert_eq!(ConnectRequest::decode(&asked.encode()), Ok(asked));
    }

    #[test]
    fn every_cut_and_every_extra_byte_is_refused() {
        let bytes = request(3, b"/run/x.sock").encode();
        for cut in 0..bytes.len() {
            assert!(ConnectRequest::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        assert!(ConnectRequest::decode(&[&bytes[..], b"x"].concat()).is_err());
    }

    #[test]
    fn wild_values_are_refused() {
        let bytes = request(1, b"/x").encode();
        for (at, value) in [(0, 0), (0, 4), (1, 4), (10, 0xff), (12, 1), (13, 0xff)] {
            let mut wrong = bytes.clone();
            wrong[at] = value;
            assert!(ConnectRequest::decode(&wrong).is_err(), "byte {at} = {value}");
        }
    }

    #[test]
    fn a_listener_survives_the_way_and_anything_else_is_refused() {
        let listener = Listener { uid: 64_055, gid: 107 };
        let bytes = listener.encode();
        assert_eq!((Listener::decode(&bytes), Listener::decode(b"")), (Ok(Some(listener)), Ok(None)));
        for wrong in [&bytes[..7], &[&bytes[..], b"x"].concat(), &[0xff; 8], &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]] {
            assert!(Listener::decode(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn only_absolute_paths_and_abstract_names_are_asked_for() {
        for name in [&b""[..], b"relative", b"\0", b"/a\0b", &[b'/'; HOST_PATH_MAX], &[0; NAME_MAX + 1]] {
            assert!(check_name(name).is_err());
        }
    }
}
