//! `raw_link ADDR PORT`: a link whose frames somebody else makes. Proves this machine's key, and then carries bytes between
//! the link and a socket that is its stdin and stdout, as they come.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use farside::auth::{Handshake, Opened, Progress, Tls};
use farside::trust::Store;

fn main() {
    let [addr, port] = std::env::args().skip(1).collect::<Vec<_>>().try_into().expect("ADDR PORT");
    let key = Store::of_this_machine().host_key().expect("a key");
    let tls = Tls::new(&key.secret).expect("a key for TLS");
    let mut link = TcpStream::connect(format!("{addr}:{port}")).expect("a connection");
    let mut handshake = Handshake::dialler(&tls).expect("a handshake");
    let (mut buffer, mut got) = (vec![0; 64 << 10], 0);
    let done = loop {
        let mut out = Vec::new();
        let step = handshake.on_bytes(&buffer[..got], &mut out).expect("a handshake");
        link.write_all(&out).expect("to be heard");
        match step {
            Progress::Done(done) => break done,
            Progress::More(more) => handshake = more,
        }
        got = link.read(&mut buffer).expect("an answer");
    };
    let (mut sealer, mut opener) = (done.sealer, done.opener);
    let mut sending = link.try_clone().expect("a second handle");
    // The one half that ends first does not end the other: what the daemon says to the last words is heard.
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = std::io::stdin().read(&mut buffer) {
            let mut out = Vec::new();
            sealer.seal([&buffer[..count]], &mut out).expect("to be sealed");
            if sending.write_all(&out).is_err() {
                break;
            }
        }
        let _ = sending.shutdown(Shutdown::Write);
    });
    let mut sealed = done.rest;
    let mut out = std::io::stdout();
    loop {
        while let Ok(Opened::Record { used, plain }) = opener.open(&mut sealed) {
            if out.write_all(&sealed[plain]).and_then(|()| out.flush()).is_err() {
                return;
            }
            sealed.drain(..used);
        }
        match link.read(&mut buffer) {
            Ok(count @ 1..) => sealed.extend_from_slice(&buffer[..count]),
            _ => return,
        }
    }
}
