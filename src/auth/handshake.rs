//! The TLS 1.3 handshake in which both ends prove a raw public key (RFC 7250): bytes in, bytes out.
//!
//! ```text
//!   dialler   ClientHello ──▶                          ──▶ Certificate (its key), CertificateVerify, Finished
//!   listener              ◀── ServerHello ... Finished
//!                 on_bytes until Established: the peer's key, and the two directions of records
//! ```
//!
//! Any Ed25519 key that proves itself gets through here: whether it is trusted, and for what, is asked behind it, where
//! a no can be said in words. Nothing of the peer's is kept longer than HANDSHAKE_MAX bytes.
//!
//! No tickets, no resumption, no early data: each connection proves both keys anew, and a recorded one is worth nothing.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, ClientConnectionData, Resumption, UnbufferedClientConnection};
use rustls::crypto::aws_lc_rs as provided;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage, ServerConnectionData, UnbufferedServerConnection,
};
use rustls::sign::CertifiedKey;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedConnectionCommon, UnbufferedStatus};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, ConnectionTrafficSecrets, DigitallySignedStruct, DistinguishedName, Error,
    ExtractedSecrets, ServerConfig, SignatureScheme, SupportedCipherSuite,
};

use super::key::{PublicKey, SecretKey};
use super::record::{Opener, Schedule, Sealer, directions};
use super::voucher::Binding;
use crate::limits::HANDSHAKE_MAX;

/// Keeps our handshake from being taken for, or answered by, another protocol's (RFC 7301).
const ALPN: &[u8] = b"farside/1";

/// Why there is no connection; one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandshakeError(pub String);

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for HandshakeError {}

impl From<Error> for HandshakeError {
    fn from(e: Error) -> Self {
        let text = match e {
            Error::InvalidMessage(_) => "the first bytes are no TLS; is this a farside node?".into(),
            Error::AlertReceived(alert) => format!("the other end refuses the handshake: {alert:?}"),
            other => format!("TLS handshake: {other}"),
        };
        Self(text)
    }
}

/// This machine's key, ready for handshakes.
#[derive(Clone)]
pub struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// # Errors
    /// The key is none.
    pub fn new(key: &SecretKey) -> Result<Self, HandshakeError> {
        let provider = Arc::new(provider());
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.pkcs8_der().to_vec()));
        let signer = provider.key_provider.load_private_key(der)?;
        let shown = CertificateDer::from(key.public().spki_der().to_vec());
        let shown = Arc::new(CertifiedKey::new(vec![shown], signer));
        let judge = Arc::new(AnyEd25519(provider.signature_verification_algorithms));
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&judge) as _)
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::clone(&shown))));
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        client.enable_secret_extraction = true;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(judge)
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(shown)));
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.enable_secret_extraction = true;
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }
}

/// AES-128-GCM first: it is the fastest where the processor has AES, and no weaker in practice. The key exchange is
/// rustls' own choice: X25519 with ML-KEM-768, so that what is recorded today stays secret, or X25519.
fn provider() -> CryptoProvider {
    use provided::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256};
    CryptoProvider {
        cipher_suites: vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256],
        ..provided::default_provider()
    }
}

fn key_of(spki: &[u8]) -> Result<PublicKey, Error> {
    PublicKey::from_spki_der(spki).map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))
}

/// What both sides ask of a key: that it is one, and that whoever shows it has it.
#[derive(Debug)]
struct AnyEd25519(WebPkiSupportedAlgorithms);

impl AnyEd25519 {
    fn signed(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.0)
    }
}

fn only_tls13<T>() -> Result<T, Error> {
    Err(Error::General("TLS 1.2 is not spoken here".into()))
}

impl ServerCertVerifier for AnyEd25519 {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        key_of(key).map(|_| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        only_tls13()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for AnyEd25519 {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        key_of(key).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        only_tls13()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Both keys are proven.
#[derive(Debug)]
pub struct Established {
    pub peer: PublicKey,
    /// Of this connection alone, and the same at both ends.
    pub binding: Binding,
    pub sealer: Sealer,
    pub opener: Opener,
    /// Data that came with the peer's last flight, opened already.
    pub early: Vec<u8>,
    /// What came behind that: a record that is not whole yet.
    pub rest: Vec<u8>,
}

/// rustls' two kinds of connection, as one.
trait Half: std::ops::Deref<Target = UnbufferedConnectionCommon<Self::Data>> + Sized {
    type Data;
    const DIALS: bool;

    fn step<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    fn finish(self) -> Result<(ExtractedSecrets, Schedule), Error>;
}

impl Half for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    const DIALS: bool = true;

    fn step<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn finish(self) -> Result<(ExtractedSecrets, Schedule), Error> {
        self.dangerous_into_kernel_connection().map(|(secrets, kernel)| (secrets, Schedule::Client(kernel)))
    }
}

impl Half for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    const DIALS: bool = false;

    fn step<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn finish(self) -> Result<(ExtractedSecrets, Schedule), Error> {
        self.dangerous_into_kernel_connection().map(|(secrets, kernel)| (secrets, Schedule::Server(kernel)))
    }
}

enum Side {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// How far a handshake is.
#[derive(Debug)]
pub enum Progress {
    More(Handshake),
    Done(Established),
}

/// One connection's handshake, as far as it has come.
pub struct Handshake {
    side: Side,
    incoming: Vec<u8>,
    early: Vec<u8>,
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handshake({} bytes waiting)", self.incoming.len())
    }
}

impl Handshake {
    pub fn dialler(tls: &Tls) -> Result<Self, HandshakeError> {
        // No name is sent or checked: the key alone says who it is.
        let nobody = ServerName::try_from("farside").expect("a name");
        let client = UnbufferedClientConnection::new(Arc::clone(&tls.client), nobody)?;
        Ok(Self::new(Side::Client(Box::new(client))))
    }

    pub fn listener(tls: &Tls) -> Result<Self, HandshakeError> {
        let server = UnbufferedServerConnection::new(Arc::clone(&tls.server))?;
        Ok(Self::new(Side::Server(Box::new(server))))
    }

    fn new(side: Side) -> Self {
        Self { side, incoming: Vec::new(), early: Vec::new() }
    }

    /// Takes what has come (at first, for a dialler, nothing), and appends to `out` what is to be sent: after an error
    /// too, since the peer is told by an alert.
    ///
    /// # Errors
    /// What the peer did wrong.
    pub fn on_bytes(mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Progress, HandshakeError> {
        if self.incoming.len() + bytes.len() > HANDSHAKE_MAX {
            return Err(HandshakeError(format!("a handshake of more than {HANDSHAKE_MAX} bytes")));
        }
        self.incoming.extend_from_slice(bytes);
        let done = match &mut self.side {
            Side::Client(half) => drive(half.as_mut(), &mut self.incoming, &mut self.early, out)?,
            Side::Server(half) => drive(half.as_mut(), &mut self.incoming, &mut self.early, out)?,
        };
        if !done {
            return Ok(Progress::More(self));
        }
        let Self { side, incoming: rest, early } = self;
        let (peer, binding, (sealer, opener)) = match side {
            Side::Client(half) => both_ways(*half)?,
            Side::Server(half) => both_ways(*half)?,
        };
        Ok(Progress::Done(Established { peer, binding, sealer, opener, early, rest }))
    }
}

/// Goes on until more must come (false) or both keys are proven (true).
fn drive<H: Half>(
    half: &mut H,
    incoming: &mut Vec<u8>,
    early: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<bool, HandshakeError> {
    loop {
        let UnbufferedStatus { discard, state } = half.step(incoming);
        let mut done = None;
        let failed = match state {
            Ok(ConnectionState::EncodeTlsData(flight)) => encode(flight, out).err(),
            // It is in `out`: whoever called us sends it.
            Ok(ConnectionState::TransmitTlsData(flight)) => {
                flight.done();
                None
            }
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    early.extend_from_slice(record?.payload);
                }
                None
            }
            Ok(ConnectionState::BlockedHandshake) => {
                done = Some(false);
                None
            }
            Ok(ConnectionState::WriteTraffic(_)) => {
                done = Some(true);
                None
            }
            Ok(other) => return Err(HandshakeError(format!("TLS handshake: {other:?} where none may be"))),
            Err(e) => Some(e),
        };
        incoming.drain(..discard);
        if let Some(e) = failed {
            last_words(half, incoming, out);
            return Err(e.into());
        }
        if let Some(done) = done {
            return Ok(done);
        }
    }
}

fn encode<Data>(mut flight: EncodeTlsData<'_, Data>, out: &mut Vec<u8>) -> Result<(), Error> {
    let at = out.len();
    let room = match flight.encode(&mut []) {
        Err(EncodeError::InsufficientSize(missing)) => missing.required_size,
        _ => 0,
    };
    out.resize(at + room, 0);
    flight.encode(&mut out[at..]).map(drop).map_err(|e| Error::General(e.to_string()))
}

/// The alert that tells the peer what it did. rustls remembers places in what has come: it must see the same bytes again.
fn last_words<H: Half>(half: &mut H, incoming: &mut [u8], out: &mut Vec<u8>) {
    if let UnbufferedStatus { state: Ok(ConnectionState::EncodeTlsData(alert)), .. } = half.step(incoming) {
        // Without it the peer sees the connection end.
        let _ = encode(alert, out);
    }
}

/// The peer's key, and what the records are sealed and opened with.
fn both_ways<H: Half>(half: H) -> Result<(PublicKey, Binding, (Sealer, Opener)), HandshakeError> {
    let shown = half.peer_certificates().and_then(<[_]>::first).ok_or(Error::NoCertificatesPresented)?;
    let peer = key_of(shown)?;
    let Some(SupportedCipherSuite::Tls13(suite)) = half.negotiated_cipher_suite() else { return Ok(only_tls13()?) };
    if half.alpn_protocol() != Some(ALPN) {
        return Err(HandshakeError("it is TLS, but no farside node".into()));
    }
    let (secrets, schedule) = half.finish()?;
    let (first, second) = if H::DIALS { (&secrets.tx.1, &secrets.rx.1) } else { (&secrets.rx.1, &secrets.tx.1) };
    let binding = binding(first, second);
    let both = directions(suite, schedule, secrets.tx, secrets.rx).map_err(|e| HandshakeError(e.0))?;
    Ok((peer, binding, both))
}

/// A digest of the first traffic keys, the dialler's and then the listener's: they come from both ends' key shares and
/// from everything that was said, so no two connections have the same, and the digest does not give them away. (rustls
/// has exporters, RFC 8446, 7.5, but not for connections driven as these are.)
fn binding(dialler: &ConnectionTrafficSecrets, listener: &ConnectionTrafficSecrets) -> Binding {
    let mut digest = digest::Context::new(&digest::SHA256);
    digest.update(b"farside binding 1\0");
    for secrets in [dialler, listener] {
        if let ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } = secrets
        {
            digest.update(key.as_ref());
            digest.update(iv.as_ref());
        }
    }
    digest.finish().as_ref().try_into().expect("SHA-256 is 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::super::record::{Opened, RECORD_HEAD};
    use super::*;

    fn tls() -> (SecretKey, Tls) {
        let key = SecretKey::generate();
        let tls = Tls::new(&key).unwrap();
        (key, tls)
    }

    /// Both ends, with the bytes between them cut into pieces of `size`.
    fn pair(size: usize) -> (Established, Established) {
        let ((near_key, near), (far_key, far)) = (tls(), tls());
        let mut to_far = Vec::new();
        let mut to_near = Vec::new();
        let begun = Handshake::dialler(&near).unwrap().on_bytes(&[], &mut to_far).unwrap();
        let (mut near, mut far) = (begun, Progress::More(Handshake::listener(&far).unwrap()));
        for _ in 0..100_000 {
            let moved = to_far.drain(..size.min(to_far.len())).collect::<Vec<_>>();
            far = step(far, &moved, &mut to_near);
            let moved = to_near.drain(..size.min(to_near.len())).collect::<Vec<_>>();
            near = step(near, &moved, &mut to_far);
            if let (Progress::Done(_), Progress::Done(_)) = (&near, &far) {
                break;
            }
        }
        let (Progress::Done(near), Progress::Done(far)) = (near, far) else { panic!("it ends") };
        assert_eq!((near.peer, far.peer), (far_key.public(), near_key.public()));
        assert_eq!(near.binding, far.binding);
        (near, far)
    }

    fn step(at: Progress, bytes: &[u8], out: &mut Vec<u8>) -> Progress {
        match at {
            Progress::More(h) if !bytes.is_empty() => h.on_bytes(bytes, out).unwrap(),
            other => other,
        }
    }

    fn sealed(from: &mut Established, plain: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        from.sealer.seal(plain.iter().copied(), &mut out).unwrap();
        out
    }

    fn opened(to: &mut Established, mut bytes: Vec<u8>) -> Vec<u8> {
        let mut out = Vec::new();
        while !bytes.is_empty() {
            match to.opener.open(&mut bytes).unwrap() {
                Opened::Record { used, plain } => {
                    out.extend_from_slice(&bytes[plain]);
                    bytes.drain(..used);
                }
                other => panic!("{other:?}"),
            }
        }
        out
    }

    #[test]
    fn both_keys_are_proven_however_the_bytes_come() {
        for size in [1, 7, 100, 1 << 20] {
            let (mut near, mut far) = pair(size);
            let bytes = sealed(&mut near, &[b"head", b"", b"body"]);
            assert_eq!(opened(&mut far, bytes), b"headbody");
            let bytes = sealed(&mut far, &[b"answer"]);
            assert_eq!(opened(&mut near, bytes), b"answer");
        }
    }

    #[test]
    fn no_two_connections_have_the_same_binding() {
        assert_ne!(pair(1 << 20).0.binding, pair(1 << 20).0.binding);
    }

    #[test]
    fn what_is_longer_than_a_record_comes_in_several() {
        let (mut near, mut far) = pair(1 << 20);
        let long: Vec<u8> = (0..100_000u32).map(|n| n.to_le_bytes()[0]).collect();
        let bytes = sealed(&mut near, &[&long[..70_000], &long[70_000..]]);
        assert!(bytes.len() > long.len() + 6 * RECORD_HEAD);
        assert_eq!(opened(&mut far, bytes), long);
    }

    #[test]
    fn keys_are_renewed_in_both_directions_and_nobody_notices() {
        let (mut near, mut far) = pair(1 << 20);
        near.sealer.renew_every(3);
        far.sealer.renew_every(2);
        for round in 0..20u8 {
            let bytes = sealed(&mut near, &[&[round; 100]]);
            assert_eq!(opened(&mut far, bytes), [round; 100]);
            let bytes = sealed(&mut far, &[&[round; 50]]);
            assert_eq!(opened(&mut near, bytes), [round; 50]);
        }
    }

    #[test]
    fn a_record_that_was_changed_cut_or_sent_twice_is_refused() {
        let (mut near, mut far) = pair(1 << 20);
        let whole = sealed(&mut near, &[b"once"]);
        for cut in 0..whole.len() {
            let part = far.opener.open(&mut whole[..cut].to_vec()).unwrap();
            assert!(matches!(part, Opened::Part { want } if want > cut), "cut at {cut}");
        }
        assert_eq!(opened(&mut far, whole.clone()), b"once");
        assert!(far.opener.open(&mut whole.clone()).is_err(), "a record sent twice");
        let (mut near, mut far) = pair(1 << 20);
        let mut changed = sealed(&mut near, &[b"once"]);
        changed[RECORD_HEAD] ^= 1;
        assert!(far.opener.open(&mut changed).is_err());
    }

    #[test]
    fn a_recorded_connection_is_worth_nothing() {
        let ((_, near), (_, far)) = (tls(), tls());
        let (mut to_far, mut to_near, mut recorded) = (Vec::new(), Vec::new(), Vec::new());
        let Progress::More(dialler) = Handshake::dialler(&near).unwrap().on_bytes(&[], &mut to_far).unwrap() else {
            panic!("the listener has not spoken yet")
        };
        recorded.append(&mut to_far);
        let first = Handshake::listener(&far).unwrap().on_bytes(&recorded, &mut to_near).unwrap();
        dialler.on_bytes(&to_near, &mut to_far).unwrap();
        let second_flight = to_far;
        let Progress::More(first) = first else { panic!("the dialler's key is still to be proven") };
        assert!(matches!(first.on_bytes(&second_flight, &mut Vec::new()), Ok(Progress::Done(_))));
        // The same bytes to another connection of the same listener.
        let Progress::More(again) = Handshake::listener(&far).unwrap().on_bytes(&recorded, &mut Vec::new()).unwrap()
        else {
            panic!("the dialler's key is still to be proven")
        };
        assert!(again.on_bytes(&second_flight, &mut Vec::new()).is_err());
    }

    #[test]
    fn a_refused_handshake_with_bytes_left_is_an_error_and_no_more() {
        // Found by fuzzing: two records of handshake, the second of which is none.
        let bytes = [0x16, 3, 3, 0, 0, 0x19, 0xca, 5];
        let long: Vec<u8> = bytes.into_iter().chain((0..60u8).map(|n| n.wrapping_mul(37))).collect();
        let (_, far) = tls();
        for cut in 0..long.len() {
            let _ = Handshake::listener(&far).unwrap().on_bytes(&long[..cut], &mut Vec::new());
        }
        let record = [&[0x16, 3, 1, 0, 4, 1, 0, 0, 40][..], &[0x16, 3, 1, 0, 2, 7, 7], &[0xff; 20]].concat();
        for cut in 0..record.len() {
            let _ = Handshake::listener(&far).unwrap().on_bytes(&record[..cut], &mut Vec::new());
        }
    }

    #[test]
    fn garbage_is_named_and_answered_by_an_alert() {
        let (_, far) = tls();
        let mut out = Vec::new();
        let said = Handshake::listener(&far).unwrap().on_bytes(b"GET / HTTP/1.1\r\n\r\n", &mut out).unwrap_err();
        assert!(said.0.contains("no TLS"), "{said}");
        let long = vec![0x16; HANDSHAKE_MAX + 1];
        assert!(Handshake::listener(&far).unwrap().on_bytes(&long, &mut out).is_err());
    }
}
