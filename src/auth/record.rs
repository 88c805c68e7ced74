//! TLS 1.3 records once the handshake is done: sealed from scattered bytes, opened where they lie.
//!
//! ```text
//!   slices ──copied once──▶ Sealer ──▶ records ═══▶ Opener: opened in place ──▶ which bytes are plaintext
//!                             ╰──────── Keys: rustls' key schedule, for KeyUpdate (RFC 8446, 4.6.3) ────╯
//! ```
//!
//! rustls made the keys; here are only their order (one sequence number each way, RFC 8446, 5.3) and the record's head.
//! rustls' connection object would copy each way: it opens into a buffer of its own, and seals into one before it copies
//! into ours. Records are opened by its own AEAD object, where they lie; that object would allocate for each record that it
//! seals, and so AWS-LC, which it calls for this, is called here.
//!
//! Pure: bytes in, bytes out. A direction that has failed once is not used again.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use aws_lc_rs::aead::{self, AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, UnboundKey};
use rustls::client::ClientConnectionData;
use rustls::crypto::cipher::{AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, Nonce};
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{ConnectionTrafficSecrets, ContentType, ProtocolVersion, Tls13CipherSuite};

use crate::limits::{KEY_UPDATE_RECORDS, RECORD_PLAIN_MAX};
use crate::wire::{ProtocolError, WireResult, bad};

/// Content type, version and length: RFC 8446, 5.1.
pub const RECORD_HEAD: usize = 5;
/// The longest record: 2^14 bytes, their content type, padding and tag (RFC 8446, 5.2).
pub const RECORD_MAX: usize = RECORD_HEAD + (16 << 10) + 256;

/// What makes the next keys of both directions.
struct Keys {
    suite: &'static Tls13CipherSuite,
    schedule: Mutex<Schedule>,
    /// The peer has asked for a KeyUpdate of ours: it goes before our next data.
    asked: AtomicBool,
}

pub(super) enum Schedule {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Keys {
    fn next(&self, sending: bool) -> WireResult<ConnectionTrafficSecrets> {
        let mut schedule = self.schedule.lock().expect("no holder panics: panic is abort");
        let next = match (&mut *schedule, sending) {
            (Schedule::Client(c), true) => c.update_tx_secret(),
            (Schedule::Client(c), false) => c.update_rx_secret(),
            (Schedule::Server(c), true) => c.update_tx_secret(),
            (Schedule::Server(c), false) => c.update_rx_secret(),
        };
        next.map(|(_, secrets)| secrets).map_err(|e| ProtocolError(format!("key update: {e}")))
    }

    fn decrypter(&self, secrets: ConnectionTrafficSecrets) -> WireResult<Box<dyn MessageDecrypter>> {
        let (_, key, iv) = parts(secrets)?;
        Ok(self.suite.aead_alg.decrypter(key, iv))
    }
}

fn parts(secrets: ConnectionTrafficSecrets) -> WireResult<(&'static aead::Algorithm, AeadKey, Iv)> {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => Ok((&AES_128_GCM, key, iv)),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => Ok((&AES_256_GCM, key, iv)),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => Ok((&CHACHA20_POLY1305, key, iv)),
        _ => bad!("a cipher that was never offered"),
    }
}

/// Where sealed records go.
pub trait Room {
    /// The next `len` bytes of it, which will all be written.
    fn take(&mut self, len: usize) -> &mut [u8];
}

impl Room for Vec<u8> {
    fn take(&mut self, len: usize) -> &mut [u8] {
        let start = self.len();
        self.resize(start + len, 0);
        &mut self[start..]
    }
}

/// One key of our direction.
struct Seal {
    key: LessSafeKey,
    iv: Iv,
}

impl Seal {
    fn new(secrets: ConnectionTrafficSecrets) -> WireResult<Self> {
        let (algorithm, key, iv) = parts(secrets)?;
        let Ok(key) = UnboundKey::new(algorithm, key.as_ref()) else { bad!("a key of another length") };
        Ok(Self { key: LessSafeKey::new(key), iv })
    }

    /// One record, RFC 8446, 5.2: its head is what is authenticated with it, its type is sealed behind the data.
    fn record(&self, number: u64, typ: ContentType, plain: &[&[u8]], out: &mut impl Room) -> WireResult<()> {
        let len = plain.iter().map(|part| part.len()).sum::<usize>();
        assert!(len <= RECORD_PLAIN_MAX, "cut by the caller");
        let sealed = len + 1 + TAG;
        let [high, low] = u16::try_from(sealed).expect("2^14 and a little").to_be_bytes();
        let head = [ContentType::ApplicationData.into(), 3, 3, high, low];
        let room = out.take(RECORD_HEAD + sealed);
        let (start, room) = room.split_at_mut(RECORD_HEAD);
        start.copy_from_slice(&head);
        let (data, tag) = room.split_at_mut(len + 1);
        let mut at = 0;
        for part in plain {
            data[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        data[len] = typ.into();
        let nonce = aead::Nonce::assume_unique_for_key(Nonce::new(&self.iv, number).0);
        let Ok(made) = self.key.seal_in_place_separate_tag(nonce, Aad::from(head), data) else {
            bad!("a record can't be sealed");
        };
        tag.copy_from_slice(made.as_ref());
        Ok(())
    }
}

/// Of all three ciphers.
const TAG: usize = 16;

/// The two directions of one connection, from what its handshake has left: sequence number and secrets, out and in.
pub(super) fn directions(
    suite: &'static Tls13CipherSuite,
    schedule: Schedule,
    out: (u64, ConnectionTrafficSecrets),
    into: (u64, ConnectionTrafficSecrets),
) -> WireResult<(Sealer, Opener)> {
    let keys = Arc::new(Keys { suite, schedule: Mutex::new(schedule), asked: AtomicBool::new(false) });
    let sealer = Sealer { seal: Seal::new(out.1)?, next: out.0, renew_at: KEY_UPDATE_RECORDS, keys: Arc::clone(&keys) };
    let opener = Opener { aead: keys.decrypter(into.1)?, next: into.0, keys };
    Ok((sealer, opener))
}

/// Our direction.
pub struct Sealer {
    seal: Seal,
    /// Sequence number of the next record under this key.
    next: u64,
    /// At which one a new key is due.
    renew_at: u64,
    keys: Arc<Keys>,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sealer(record {})", self.next)
    }
}

impl Sealer {
    /// Seals `plain`, in order, into as few records as they fit.
    ///
    /// # Errors
    /// Nothing may be sent any more.
    pub fn seal<'a>(&mut self, plain: impl IntoIterator<Item = &'a [u8]>, out: &mut impl Room) -> WireResult<()> {
        if self.next >= self.renew_at || self.keys.asked.swap(false, Ordering::Relaxed) {
            self.renew(out)?;
        }
        let mut waiting: [&[u8]; SLICES] = [&[]; SLICES];
        let (mut count, mut bytes) = (0, 0);
        for mut slice in plain {
            while !slice.is_empty() {
                let (now, later) = slice.split_at(slice.len().min(RECORD_PLAIN_MAX - bytes));
                waiting[count] = now;
                count += 1;
                bytes += now.len();
                slice = later;
                if bytes == RECORD_PLAIN_MAX || count == SLICES {
                    self.record(ContentType::ApplicationData, &waiting[..count], out)?;
                    (count, bytes) = (0, 0);
                }
            }
        }
        if bytes > 0 {
            self.record(ContentType::ApplicationData, &waiting[..count], out)?;
        }
        Ok(())
    }

    /// close_notify, RFC 8446, 6.1: nothing follows.
    ///
    /// # Errors
    /// As `seal`.
    pub fn say_end(&mut self, out: &mut impl Room) -> WireResult<()> {
        self.record(ContentType::Alert, &[&[1, 0]], out)
    }

    fn record(&mut self, typ: ContentType, plain: &[&[u8]], out: &mut impl Room) -> WireResult<()> {
        self.seal.record(self.next, typ, plain, out)?;
        self.next += 1;
        Ok(())
    }

    /// Says KeyUpdate under the old key, and goes on with the new one.
    fn renew(&mut self, out: &mut impl Room) -> WireResult<()> {
        self.record(ContentType::Handshake, &[&KEY_UPDATE], out)?;
        self.seal = Seal::new(self.keys.next(true)?)?;
        self.next = 0;
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn renew_every(&mut self, records: u64) {
        self.renew_at = records;
    }
}

/// So many pieces a record, and none is allocated for them: small frames of 16 KiB are as many heads and payloads.
const SLICES: usize = 128;

/// key_update(24), three bytes of length, update_not_requested(0): RFC 8446, 4.6.3.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// What the first bytes of the input are.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened {
    /// A part of a record; it will have `want` bytes, as far as that is known yet.
    Part { want: usize },
    /// A record of `used` bytes, which are done with; `plain` of them are data now, perhaps none.
    Record { used: usize, plain: Range<usize> },
    /// close_notify: nothing follows.
    End,
}

/// The peer's direction.
pub struct Opener {
    aead: Box<dyn MessageDecrypter>,
    next: u64,
    keys: Arc<Keys>,
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Opener(record {})", self.next)
    }
}

impl Opener {
    /// Opens the record at the head of `bytes`, in place.
    ///
    /// # Errors
    /// It is no record of the peer's, or none that may be here: the connection must end.
    pub fn open(&mut self, bytes: &mut [u8]) -> WireResult<Opened> {
        let Some(&[typ, _, _, high, low]) = bytes.first_chunk::<RECORD_HEAD>() else {
            return Ok(Opened::Part { want: RECORD_HEAD });
        };
        let used = RECORD_HEAD + usize::from(u16::from_be_bytes([high, low]));
        if ContentType::from(typ) != ContentType::ApplicationData {
            bad!("a TLS record of type {typ} in the clear");
        }
        if used > RECORD_MAX {
            bad!("a TLS record of {used} bytes");
        }
        let Some(payload) = bytes.get_mut(RECORD_HEAD..used) else { return Ok(Opened::Part { want: used }) };
        let sealed = InboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, payload);
        let opened = self.aead.decrypt(sealed, self.next).map_err(|e| ProtocolError(format!("open a record: {e}")))?;
        self.next += 1;
        let (typ, plain) = (opened.typ, opened.payload);
        match typ {
            ContentType::ApplicationData => {
                return Ok(Opened::Record { used, plain: RECORD_HEAD..RECORD_HEAD + plain.len() });
            }
            ContentType::Handshake => self.on_handshake(plain)?,
            ContentType::Alert => match plain {
                [_, 0] => return Ok(Opened::End),
                other => bad!("the peer ends the connection: TLS alert {:?}", other.get(1)),
            },
            other => bad!("a TLS record of inner type {other:?}"),
        }
        Ok(Opened::Record { used, plain: RECORD_HEAD..RECORD_HEAD })
    }

    /// Nobody sends tickets here: only a KeyUpdate may come, alone in its record (RFC 8446, 5.1).
    fn on_handshake(&mut self, message: &[u8]) -> WireResult<()> {
        let asked = match message {
            [24, 0, 0, 1, 0] => false,
            [24, 0, 0, 1, 1] => true,
            _ => bad!("a TLS handshake message of type {:?} behind the handshake", message.first()),
        };
        self.aead = self.keys.decrypter(self.keys.next(false)?)?;
        self.next = 0;
        if asked {
            self.keys.asked.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}
