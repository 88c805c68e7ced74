//! What any bytes at all may do to the decoders: give a value or an error, never a panic, and never another value when
//! they come in other pieces.

use std::sync::OnceLock;

use farside::auth::{Handshake, Progress, SecretKey, Tls, voucher};
use farside::qtfs::wire as files;
use farside::udsproxyd::wire::ConnectRequest;
use farside::wire::frame::Header;
use farside::wire::hello::Hello;
use farside::wire::parser::{Parser, Step};
use farside::wire::recipe::{decode_all, encode_all};
use farside_contract::{Request, Verdict};
use farside_supervisor_contract::{Order, Plan, Report};

/// The first byte says which decoder gets the rest.
pub fn try_bytes(input: &[u8]) {
    let Some((which, bytes)) = input.split_first() else { return };
    match which % 8 {
        0 => hello(bytes),
        1 => recipes(bytes),
        2 => connect(bytes),
        3 => asked(bytes),
        4 => file_frames(bytes),
        5 => before_a_key_is_known(bytes),
        _ => frames(bytes, usize::from(*which)),
    }
}

fn hello(bytes: &[u8]) {
    let Ok(Some(hello)) = Hello::decode(bytes) else { return };
    let again = Hello::decode(&hello.encode()).expect("our own HELLO").expect("a whole one");
    assert_eq!((again.node, again.session, again.workers), (hello.node, hello.session, hello.workers));
}

/// What the door takes from anybody: a handshake, and a word for it.
fn before_a_key_is_known(bytes: &[u8]) {
    static TLS: OnceLock<Tls> = OnceLock::new();
    let tls = TLS.get_or_init(|| Tls::new(&SecretKey::generate()).expect("a key"));
    let mut out = Vec::new();
    let handshake = Handshake::listener(tls).expect("a listener");
    assert!(!matches!(handshake.on_bytes(bytes, &mut out), Ok(Progress::Done(_))), "nobody has proven a key");
    assert!(voucher::redeem(bytes, &[7; 32]).is_err(), "nobody has signed it");
}

fn recipes(bytes: &[u8]) {
    let Some((count, bytes)) = bytes.split_first() else { return };
    if let Ok(all) = decode_all(bytes, usize::from(*count)) {
        assert_eq!(encode_all(&all), bytes, "one value has one encoding");
    }
}

fn connect(bytes: &[u8]) {
    if let Ok(request) = ConnectRequest::decode(bytes) {
        assert_eq!(request.encode(), bytes, "one value has one encoding");
    }
}

fn asked(bytes: &[u8]) {
    if let Ok(request) = Request::decode(bytes) {
        let mut again = vec![0; bytes.len()];
        assert_eq!(request.encode(&mut again), Some(bytes.len()));
        assert_eq!(again, bytes, "one value has one encoding");
    }
    if let Ok(verdict) = Verdict::decode(bytes) {
        assert_eq!(verdict.encode(), bytes);
    }
    supervised(bytes);
}

/// What a supervisor and its daemon tell each other.
fn supervised(bytes: &[u8]) {
    if let Ok(report) = Report::decode(bytes) {
        assert_eq!(report.encode(), bytes);
    }
    if let Ok(order) = Order::decode(bytes) {
        assert_eq!(order.encode(), bytes);
    }
    if let Ok(plan) = Plan::decode(bytes) {
        assert_eq!(plan.programs.count(), plan.programs.len());
        assert_eq!(plan.argv.chain(plan.env).count(), plan.argv.len() + plan.env.len());
        assert_eq!(plan.fds.iter().count(), plan.fds.len());
    }
}

fn file_frames(bytes: &[u8]) {
    if let Some(head) = bytes.first_chunk() {
        let _ = files::Header::decode(head);
    }
    if let Ok(mount) = files::Mount::decode(bytes) {
        assert_eq!(mount.encode(), bytes);
    }
    if let Ok(mounted) = files::Mounted::decode(bytes) {
        files::Mounted::decode(&mounted.encode()).expect("what we said ourselves");
    }
    if let Ok((socket, reply)) = files::HostSocket::decode(bytes) {
        assert_eq!(socket.encode(reply), bytes);
    }
}

/// One frame as it came out, its parts put together.
type Frame = (Header, Vec<u8>);

/// The frames of `bytes` that come in pieces of `size`, and whether they ended in an error.
pub fn cut(bytes: &[u8], size: usize) -> (Vec<Frame>, bool) {
    let mut parser = Parser::default();
    let mut out: Vec<Frame> = Vec::new();
    for piece in bytes.chunks(size.max(1)) {
        let mut rest = piece;
        loop {
            match parser.step(rest) {
                Err(_) => return (out, true),
                Ok(Step::More) => break,
                Ok(Step::Control { used, header, body }) => {
                    assert_eq!(body.len(), header.len as usize);
                    out.push((header, body));
                    rest = &rest[used..];
                }
                Ok(Step::Data { skip, take, header, first, last }) => {
                    if first {
                        out.push((header, Vec::new()));
                    }
                    let frame = out.last_mut().expect("a first part comes first");
                    frame.1.extend_from_slice(&rest[skip..skip + take]);
                    assert_eq!(last, frame.1.len() == header.len as usize, "the last part is the last");
                    rest = &rest[skip + take..];
                }
            }
        }
    }
    (out, false)
}

fn frames(bytes: &[u8], size: usize) {
    let whole = cut(bytes, bytes.len());
    assert!(whole.0.iter().all(|(header, _)| Header::decode(&header.encode()) == Ok(*header)));
    for size in [1, 2, 15, 16, 17, size] {
        assert_eq!(cut(bytes, size), whole, "in pieces of {size}");
    }
}
