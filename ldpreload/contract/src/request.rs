//! Request and Verdict as bytes, little-endian.
//!
//! ```text
//!   Request   0       4         5    6       7   8            12
//!             ├ magic ┼ version ┼ op ┼ flags ┼ 0 ┼ name length ┼ name ...
//!   Verdict   0       4              8
//!             ├ magic ┼ code (i32)   ┤   0 = yes, > 0 = that errno, -1 = not remote
//! ```

use crate::{ADDRESS_MAX, HOST_PATH_MAX};

const MAGIC: [u8; 4] = *b"fsud";
const VERSION: u8 = 1;

pub const HEADER_LEN: usize = 12;
/// The longest request there is: an Adopt.
pub const REQUEST_MAX: usize = HEADER_LEN + HOST_PATH_MAX;
pub const VERDICT_LEN: usize = 8;

pub mod flags {
    /// The name is relative; an O_PATH fd of the caller's cwd follows the socket.
    pub const CWD: u8 = 1;
    pub const ALL: u8 = CWD;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Connect the socket that comes along to `name`, as the caller's `connect` gave it (abstract: from its NUL on).
    Connect = 1,
    /// The socket that comes along is connected already; open the host path `name` and attach it. For root alone.
    Adopt = 2,
    /// Datagrams from the socket that comes along are to go to `name`: a yes brings an O_PATH fd of the socket to send
    /// them to.
    SendTo = 3,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    pub op: Op,
    pub flags: u8,
    pub name: &'a [u8],
}

/// Bytes that no shim of this version sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl<'a> Request<'a> {
    /// Writes the request to the head of `out` and says how long it is; `None` when it does not fit or may not be.
    #[inline]
    pub fn encode(&self, out: &mut [u8]) -> Option<usize> {
        let name_len = u32::try_from(self.name.len()).ok()?;
        if self.name.is_empty() || self.name.len() > self.name_max() {
            return None;
        }
        let (head, rest) = out.split_first_chunk_mut::<HEADER_LEN>()?;
        let [m0, m1, m2, m3] = MAGIC;
        let [n0, n1, n2, n3] = name_len.to_le_bytes();
        *head = [m0, m1, m2, m3, VERSION, self.op as u8, self.flags, 0, n0, n1, n2, n3];
        for (to, from) in rest.get_mut(..self.name.len())?.iter_mut().zip(self.name) {
            *to = *from;
        }
        Some(HEADER_LEN + self.name.len())
    }

    /// Reads exactly one request: no byte may be missing, none may follow.
    #[inline]
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (head, name) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(Malformed)?;
        let [m0, m1, m2, m3, version, op, flags, zero, n0, n1, n2, n3] = *head;
        if [m0, m1, m2, m3] != MAGIC || version != VERSION || zero != 0 || flags & !flags::ALL != 0 {
            return Err(Malformed);
        }
        let op = match op {
            1 => Op::Connect,
            2 => Op::Adopt,
            3 => Op::SendTo,
            _ => return Err(Malformed),
        };
        let request = Self { op, flags, name };
        let declared = usize::try_from(u32::from_le_bytes([n0, n1, n2, n3])).map_err(|_| Malformed)?;
        if declared != name.len() || name.is_empty() || name.len() > request.name_max() {
            return Err(Malformed);
        }
        Ok(request)
    }

    #[inline]
    fn name_max(&self) -> usize {
        match self.op {
            Op::Connect | Op::SendTo => ADDRESS_MAX,
            Op::Adopt => HOST_PATH_MAX,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The caller's socket is connected; for SendTo, an fd comes with this.
    Connected,
    /// The far side's errno, or the daemon's own; always above 0. The socket was not touched.
    Refused(i32),
    /// Policy says that this name is not remote: the local kernel's answer stands.
    NotRemote,
}

impl Verdict {
    #[inline]
    pub fn encode(self) -> [u8; VERDICT_LEN] {
        let code: i32 = match self {
            Self::Connected => 0,
            Self::Refused(errno) => errno,
            Self::NotRemote => -1,
        };
        let [m0, m1, m2, m3] = MAGIC;
        let [c0, c1, c2, c3] = code.to_le_bytes();
        [m0, m1, m2, m3, c0, c1, c2, c3]
    }

    #[inline]
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let Ok([m0, m1, m2, m3, c0, c1, c2, c3]) = <[u8; VERDICT_LEN]>::try_from(bytes) else {
            return Err(Malformed);
        };
        if [m0, m1, m2, m3] != MAGIC {
            return Err(Malformed);
        }
        match i32::from_le_bytes([c0, c1, c2, c3]) {
            0 => Ok(Self::Connected),
            -1 => Ok(Self::NotRemote),
            // MAX_ERRNO, include/linux/err.h: what libc takes for an errno.
            errno @ 1..=4095 => Ok(Self::Refused(errno)),
            _ => Err(Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(request: &Request<'_>) -> Vec<u8> {
        let mut out = vec![0xee; REQUEST_MAX];
        let len = request.encode(&mut out).expect("it fits");
        out.truncate(len);
        out
    }

    #[test]
    fn requests_survive_the_way_there_and_back() {
        for (op, flags, name) in [
            (Op::Connect, 0, &b"/run/x.sock"[..]),
            (Op::Connect, flags::CWD, b"x"),
            (Op::Connect, 0, b"\0abstract\0with\0nuls"),
            (Op::Connect, 0, &[b'a'; ADDRESS_MAX]),
            (Op::SendTo, flags::CWD, &[b'a'; ADDRESS_MAX]),
            (Op::Adopt, 0, &[b'a'; HOST_PATH_MAX]),
        ] {
            let request = Request { op, flags, name };
            assert_eq!(Request::decode(&encoded(&request)), Ok(request));
        }
    }

    #[test]
    fn every_cut_and_every_extra_byte_of_a_request_is_malformed() {
        let whole = encoded(&Request { op: Op::Connect, flags: flags::CWD, name: b"some/path" });
        for cut in 0..whole.len() {
            assert_eq!(Request::decode(&whole[..cut]), Err(Malformed), "cut at {cut}");
        }
        let longer = [&whole[..], b"x"].concat();
        assert_eq!(Request::decode(&longer), Err(Malformed));
    }

    #[test]
    fn every_wrong_header_byte_is_malformed() {
        let whole = encoded(&Request { op: Op::Connect, flags: 0, name: b"/x" });
        for at in 0..HEADER_LEN {
            let mut wrong = whole.clone();
            wrong[at] ^= 0x80;
            assert_eq!(Request::decode(&wrong), Err(Malformed), "byte {at}");
        }
    }

    #[test]
    fn names_too_long_or_empty_are_neither_written_nor_read() {
        let mut out = vec![0; REQUEST_MAX + 10];
        for (op, name) in [
            (Op::Connect, vec![b'a'; ADDRESS_MAX + 1]),
            (Op::SendTo, vec![b'a'; ADDRESS_MAX + 1]),
            (Op::Adopt, vec![b'a'; HOST_PATH_MAX + 1]),
            (Op::Connect, vec![]),
        ] {
            assert_eq!(Request { op, flags: 0, name: &name }.encode(&mut out), None);
        }
        let mut adopt = encoded(&Request { op: Op::Adopt, flags: 0, name: &[b'a'; ADDRESS_MAX + 1] });
        adopt[5] = Op::Connect as u8;
        assert_eq!(Request::decode(&adopt), Err(Malformed));
    }

    #[test]
    fn no_request_is_written_to_too_small_a_buffer() {
        let request = Request { op: Op::Connect, flags: 0, name: b"/run/x" };
        let need = HEADER_LEN + request.name.len();
        for room in 0..need {
            assert_eq!(request.encode(&mut vec![0; room]), None, "{room} bytes of room");
        }
        assert_eq!(request.encode(&mut vec![0; need]), Some(need));
    }

    #[test]
    fn verdicts_survive_and_cut_or_impossible_ones_do_not() {
        for verdict in [Verdict::Connected, Verdict::NotRemote, Verdict::Refused(1), Verdict::Refused(4095)] {
            let bytes = verdict.encode();
            assert_eq!(Verdict::decode(&bytes), Ok(verdict));
            for cut in 0..bytes.len() {
                assert_eq!(Verdict::decode(&bytes[..cut]), Err(Malformed));
            }
        }
        assert_eq!(Verdict::decode(&Verdict::Refused(4096).encode()), Err(Malformed));
        assert_eq!(Verdict::decode(&Verdict::Refused(-2).encode()), Err(Malformed));
    }
}
