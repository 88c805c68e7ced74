//! TLS 1.3 records once the handshake is done: sealed from scattered bytes, opened where they lie.
//!
//! ```text
//!   slices ──copied once──▶ Sealer ──▶ records ═══▶ Opener: opened in place ──▶ which bytes are plaintext
//!                             ╰──────── Keys: rustls' key schedule, for KeyUpdate (RFC 8446, 4.6.3) ────╯
//! ```
//!
//! rustls made the keys, and its own AEAD objects do the work; here are only their order (one sequence number each way,
//! RFC 8446, 5.3) and the record's head. rustls' connection object would copy each way: it opens into a buffer of its
//! own, and seals into one before it copies into ours.
//!
//! Pure: bytes in, bytes out. A direction that has failed once is not used again.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustls::client::ClientConnectionData;
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, MessageEncrypter, OutboundChunks, OutboundPlainMessage,
};
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
    fn next(&self, sending: bool) -> WireResult<(AeadKey, Iv)> {
        let mut schedule = self.schedule.lock().expect("no holder panics: panic is abort");
        let next = match (&mut *schedule, sending) {
            (Schedule::Client(c), true) => c.update_tx_secret(),
            (Schedule::Client(c), false) => c.update_rx_secret(),
            (Schedule::Server(c), true) => c.update_tx_secret(),
            (Schedule::Server(c), false) => c.update_rx_secret(),
        };
        next.map_err(|e| ProtocolError(format!("key update: {e}"))).and_then(|(_, secrets)| parts(secrets))
    }
}

fn parts(secrets: ConnectionTrafficSecrets) -> WireResult<(AeadKey, Iv)> {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => Ok((key, iv)),
        _ => bad!("a cipher that was never offered"),
    }
}

/// The two directions of one connection, from what its handshake has left: sequence number and secrets, out and in.
pub(super) fn directions(
    suite: &'static Tls13CipherSuite,
    schedule: Schedule,
    out: (u64, ConnectionTrafficSecrets),
    into: (u64, ConnectionTrafficSecrets),
) -> WireResult<(Sealer, Opener)> {
    let keys = Arc::new(Keys { suite, schedule: Mutex::new(schedule), asked: AtomicBool::new(false) });
    let (key, iv) = parts(out.1)?;
    let sealer = Sealer {
        aead: suite.aead_alg.encrypter(key, iv),
        next: out.0,
        renew_at: KEY_UPDATE_RECORDS,
        keys: Arc::clone(&keys),
    };
    let (key, iv) = parts(into.1)?;
    let opener = Opener { aead: suite.aead_alg.decrypter(key, iv), next: into.0, keys };
    Ok((sealer, opener))
}

/// Our direction.
pub struct Sealer {
    aead: Box<dyn MessageEncrypter>,
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
    /// Seals `plain`, in order, into as few records as they fit, and gives each to `out`.
    ///
    /// # Errors
    /// Nothing may be sent any more.
    pub fn seal<'a>(
        &mut self,
        plain: impl IntoIterator<Item = &'a [u8]>,
        mut out: impl FnMut(Vec<u8>),
    ) -> WireResult<()> {
        if self.next >= self.renew_at || self.keys.asked.swap(false, Ordering::Relaxed) {
            out(self.renew()?);
        }
        let mut waiting: Vec<&[u8]> = Vec::new();
        let mut bytes = 0;
        for mut slice in plain {
            while !slice.is_empty() {
                let (now, later) = slice.split_at(slice.len().min(RECORD_PLAIN_MAX - bytes));
                waiting.push(now);
                bytes += now.len();
                slice = later;
                if bytes == RECORD_PLAIN_MAX {
                    out(self.record(ContentType::ApplicationData, &waiting)?);
                    waiting.clear();
                    bytes = 0;
                }
            }
        }
        if bytes > 0 {
            out(self.record(ContentType::ApplicationData, &waiting)?);
        }
        Ok(())
    }

    fn record(&mut self, typ: ContentType, plain: &[&[u8]]) -> WireResult<Vec<u8>> {
        let payload = OutboundChunks::new(plain);
        let message = OutboundPlainMessage { typ, version: ProtocolVersion::TLSv1_2, payload };
        let sealed = self.aead.encrypt(message, self.next).map_err(|e| ProtocolError(format!("seal a record: {e}")))?;
        self.next += 1;
        Ok(sealed.encode())
    }

    /// Says KeyUpdate under the old key, and goes on with the new one.
    fn renew(&mut self) -> WireResult<Vec<u8>> {
        let said = self.record(ContentType::Handshake, &[&KEY_UPDATE])?;
        let (key, iv) = self.keys.next(true)?;
        self.aead = self.keys.suite.aead_alg.encrypter(key, iv);
        self.next = 0;
        Ok(said)
    }

    #[cfg(test)]
    pub(crate) fn renew_every(&mut self, records: u64) {
        self.renew_at = records;
    }
}

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
        let (key, iv) = self.keys.next(false)?;
        self.aead = self.keys.suite.aead_alg.decrypter(key, iv);
        self.next = 0;
        if asked {
            self.keys.asked.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}
