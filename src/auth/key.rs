//! Ed25519 keys: the public half as a value, the secret half as one that is not seen.

use std::fmt;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::sys::secret::Secret;

pub const PUBLIC_LEN: usize = 32;

/// SubjectPublicKeyInfo of RFC 8410 in front of the 32 bytes: what TLS calls a raw public key.
const SPKI_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
pub const SPKI_LEN: usize = SPKI_HEAD.len() + PUBLIC_LEN;

/// How much of a fingerprint a log line shows, and the least that names a key to `farside revoke`: 12 letters of six
/// bits, which nobody meets by accident and few on purpose.
pub const SHORT_LEN: usize = "SHA256:".len() + 12;

/// A machine's name for the mathematics: what its peer must prove to have the other half of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; PUBLIC_LEN]);

impl PublicKey {
    /// `SHA256:` and the digest of the 32 bytes in base64 without padding, as OpenSSH shows its keys.
    pub fn fingerprint(&self) -> String {
        let digest = digest::digest(&digest::SHA256, &self.0);
        format!("SHA256:{}", STANDARD_NO_PAD.encode(digest))
    }

    /// As a certificate of RFC 7250, SubjectPublicKeyInfo in DER.
    pub fn spki_der(&self) -> [u8; SPKI_LEN] {
        let mut out = [0; SPKI_LEN];
        out[..SPKI_HEAD.len()].copy_from_slice(&SPKI_HEAD);
        out[SPKI_HEAD.len()..].copy_from_slice(&self.0);
        out
    }

    /// # Errors
    /// Anything but an Ed25519 key in its only encoding.
    pub fn from_spki_der(der: &[u8]) -> Result<Self, KeyError> {
        let bytes = der.strip_prefix(&SPKI_HEAD).ok_or(KeyError::NotEd25519)?;
        Self::from_bytes(bytes)
    }

    /// # Errors
    /// Another length, or a key that proves nothing.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let key = Self(bytes.try_into().map_err(|_| KeyError::Length(bytes.len()))?);
        if key.has_small_order() { Err(KeyError::SmallOrder) } else { Ok(key) }
    }

    /// The eight points of small order and their other encodings, the sign left aside. Signatures by them can be made by
    /// anybody; nobody has such a key but by a bad copy (all zeroes) or a bad intent.
    fn has_small_order(&self) -> bool {
        let mut bytes = self.0;
        bytes[31] &= 0x7f;
        let (first, middle, last) = (bytes[0], &bytes[1..31], bytes[31]);
        let low = middle.iter().all(|b| *b == 0) && last == 0 && first <= 1;
        let high = middle.iter().all(|b| *b == 0xff) && last == 0x7f && first >= 0xec;
        low || high || ORDER_EIGHT.contains(&bytes)
    }
}

/// The y coordinates of the points of order eight.
const ORDER_EIGHT: [[u8; 32]; 2] = [
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf,
        0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20,
        0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ],
];

/// Short, for logs: the beginning of the fingerprint.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fingerprint()[..SHORT_LEN])
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyError {
    Length(usize),
    NotEd25519,
    SmallOrder,
    /// The text or bytes of a secret key; no detail, which might hold some of it.
    Secret,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(len) => write!(f, "a key is {PUBLIC_LEN} bytes and not {len}"),
            Self::NotEd25519 => f.write_str("not an Ed25519 key"),
            Self::SmallOrder => f.write_str("a key that proves nothing, since anybody can sign for it"),
            Self::Secret => f.write_str("not an Ed25519 secret key in PKCS#8"),
        }
    }
}

impl std::error::Error for KeyError {}

/// The half that stays on its machine: PKCS#8 v2 of RFC 5958, which holds the public half too.
///
/// The bytes are in pages that are locked and in no core dump. aws-lc's own copies are not: `sys::dumpable` is for those.
pub struct SecretKey {
    der: Secret,
    public: PublicKey,
}

impl SecretKey {
    /// From the kernel's randomness.
    pub fn generate() -> Self {
        let pair = Ed25519KeyPair::generate().expect("the kernel gives random numbers");
        Self::of_pair(&pair).expect("a pair that was just made")
    }

    /// # Errors
    /// Not a secret key, or one whose two halves do not belong together.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_pkcs8(der).map_err(|_| KeyError::Secret)?;
        Self::of_pair(&pair)
    }

    fn of_pair(pair: &Ed25519KeyPair) -> Result<Self, KeyError> {
        let document = pair.to_pkcs8().map_err(|_| KeyError::Secret)?;
        let public = PublicKey::from_bytes(pair.public_key().as_ref())?;
        let der = Secret::copy_of(document.as_ref()).expect("a page of memory");
        Ok(Self { der, public })
    }

    /// PKCS#8 v2, for rustls and for the key file.
    pub fn pkcs8_der(&self) -> &[u8] {
        &self.der
    }

    pub fn public(&self) -> PublicKey {
        self.public
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_key_survives_its_der_and_no_other_bytes_are_one() {
        let key = SecretKey::generate();
        let again = SecretKey::from_pkcs8(key.pkcs8_der()).unwrap();
        assert_eq!((again.public(), again.pkcs8_der()), (key.public(), key.pkcs8_der()));
        assert_ne!(SecretKey::generate().public(), key.public());
        let mut other = key.pkcs8_der().to_vec();
        *other.last_mut().unwrap() ^= 1;
        for wrong in [&other[..], &key.pkcs8_der()[..40], b"", &key.public().0] {
            assert_eq!(SecretKey::from_pkcs8(wrong).unwrap_err(), KeyError::Secret);
        }
    }

    #[test]
    fn nothing_secret_is_shown() {
        let key = SecretKey::generate();
        assert_eq!(format!("{key:?}"), format!("SecretKey(of {})", key.public()));
    }

    #[test]
    fn a_fingerprint_is_the_digest_of_the_bytes() {
        let key = PublicKey([7; 32]);
        // printf BASE64 | base64 -d | openssl dgst -sha256 -binary | base64
        assert_eq!(key.fingerprint(), "SHA256:S7Bvjk46dxXSAdVz0KpCN2LlXavWGiwCJ4+lbMbSlOA");
        assert_eq!(key.to_string(), "SHA256:S7Bvjk46dxXS");
    }

    #[test]
    fn spki_is_there_and_back_and_nothing_else() {
        let key = SecretKey::generate().public();
        let der = key.spki_der();
        assert_eq!(PublicKey::from_spki_der(&der), Ok(key));
        let longer = [&der[..], &[0]].concat();
        for wrong in [&der[1..], &der[..40], &longer[..], b""] {
            assert!(PublicKey::from_spki_der(wrong).is_err());
        }
    }

    #[test]
    fn keys_that_anybody_can_sign_for_are_none() {
        let [one, two] = ORDER_EIGHT;
        let mut top = [0xff; 32];
        top[0] = 0xec;
        for bytes in [[0; 32], one, two, top] {
            let mut other = bytes;
            other[31] ^= 0x80;
            for bytes in [bytes, other] {
                assert_eq!(PublicKey::from_bytes(&bytes), Err(KeyError::SmallOrder));
            }
        }
        assert_eq!(PublicKey::from_bytes(&[1; 31]), Err(KeyError::Length(31)));
    }
}
