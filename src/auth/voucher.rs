//! A machine's word for a program of its own that may not have the machine's key: «this is my user N, with these rights».
//!
//! ```text
//!   rexec ── TLS with a key of its own ──▶ far node          binding: both ends of this connection know it, nobody else
//!     └─ binding ─▶ local daemon: who asks? ─▶ Voucher, signed with the machine's key ─▶ HELLO ─▶ far node
//! ```
//!
//! It is good for one connection and no other, so it needs no clock, and a copy of it is worth nothing. What it says of
//! the user the local kernel has said; the far node believes that, and not what the program says of itself.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};

use super::key::{PUBLIC_LEN, PublicKey, SecretKey};
use crate::limits::CALLER_GROUPS_MAX;
use crate::wire::codec::{Decoder, Encoder};
use crate::wire::{ProtocolError, WireResult, bad};

/// What both ends of one connection can compute, and nobody else.
pub type Binding = [u8; 32];

/// So that no other signature of the key is taken for this, nor this for another.
const PURPOSE: &[u8] = b"farside voucher 1\0";
const SIGNATURE_LEN: usize = 64;
/// Key, signature, the fixed part and the groups.
pub const VOUCHER_MAX: usize = PUBLIC_LEN + SIGNATURE_LEN + 64 + 4 * CALLER_GROUPS_MAX;

/// The user that a machine vouches for, as its kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// Capability sets, capabilities(7), as bit masks.
    pub inheritable: u64,
    pub permitted: u64,
    pub bounding: u64,
    pub ambient: u64,
    pub no_new_privs: bool,
}

impl Bearer {
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new();
        e.u32(self.uid).u32(self.gid);
        e.u64(self.inheritable).u64(self.permitted).u64(self.bounding).u64(self.ambient);
        e.u8(u8::from(self.no_new_privs));
        e.u32(u32::try_from(self.groups.len()).expect("at most CALLER_GROUPS_MAX"));
        for group in &self.groups {
            e.u32(*group);
        }
        e.finish()
    }

    pub fn decode(bytes: &[u8]) -> WireResult<Self> {
        let mut d = Decoder::new("voucher", bytes);
        let bearer = Self {
            uid: d.u32()?,
            gid: d.u32()?,
            inheritable: d.u64()?,
            permitted: d.u64()?,
            bounding: d.u64()?,
            ambient: d.u64()?,
            no_new_privs: d.u8()? != 0,
            groups: {
                let count = d.u32()? as usize;
                if count > CALLER_GROUPS_MAX {
                    bad!("a voucher with {count} groups");
                }
                (0..count).map(|_| d.u32()).collect::<WireResult<_>>()?
            },
        };
        d.end()?;
        Ok(bearer)
    }
}

fn message(binding: &Binding, body: &[u8]) -> Vec<u8> {
    [PURPOSE, binding, body].concat()
}

/// The word of the machine that has `key`, for whoever holds the connection with that binding.
///
/// # Panics
/// With more than CALLER_GROUPS_MAX groups.
pub fn vouch(key: &SecretKey, binding: &Binding, bearer: &Bearer) -> Vec<u8> {
    assert!(bearer.groups.len() <= CALLER_GROUPS_MAX, "whoever asked the kernel has bounded them");
    let body = bearer.encode();
    let pair = Ed25519KeyPair::from_pkcs8(key.pkcs8_der()).expect("a secret key is a key pair");
    let signature = pair.sign(&message(binding, &body));
    [&key.public().0[..], signature.as_ref(), &body].concat()
}

/// Whose word it is, and for whom. Whether that machine is trusted is another question.
///
/// # Errors
/// It was not signed by that key, or not for this connection.
pub fn redeem(voucher: &[u8], binding: &Binding) -> WireResult<(PublicKey, Bearer)> {
    let mut d = Decoder::new("voucher", voucher);
    let by = PublicKey::from_bytes(d.raw(PUBLIC_LEN)?).map_err(|e| ProtocolError(format!("voucher: {e}")))?;
    let signature = d.raw(SIGNATURE_LEN)?;
    let body = d.rest();
    let key = UnparsedPublicKey::new(&ED25519, by.0);
    if key.verify(&message(binding, body), signature).is_err() {
        bad!("a voucher that {by} has not signed for this connection");
    }
    Ok((by, Bearer::decode(body)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(groups: usize) -> Bearer {
        Bearer {
            uid: 64055,
            gid: 107,
            groups: (0..u32::try_from(groups).unwrap()).collect(),
            inheritable: 1,
            permitted: 2,
            bounding: u64::MAX,
            ambient: 4,
            no_new_privs: true,
        }
    }

    #[test]
    fn a_voucher_says_who_and_by_whom() {
        let key = SecretKey::generate();
        for groups in [0, 2, CALLER_GROUPS_MAX] {
            let voucher = vouch(&key, &[7; 32], &bearer(groups));
            assert!(voucher.len() <= VOUCHER_MAX);
            assert_eq!(redeem(&voucher, &[7; 32]), Ok((key.public(), bearer(groups))));
        }
    }

    #[test]
    fn it_is_good_for_one_connection_and_no_byte_of_it_may_change() {
        let key = SecretKey::generate();
        let voucher = vouch(&key, &[7; 32], &bearer(1));
        assert!(redeem(&voucher, &[8; 32]).is_err());
        for at in 0..voucher.len() {
            let mut other = voucher.clone();
            other[at] ^= 1;
            assert!(redeem(&other, &[7; 32]).is_err(), "byte {at}");
            assert!(redeem(&voucher[..at], &[7; 32]).is_err(), "cut at {at}");
        }
    }
}
