//! A far side without its node: accepts file links on a socket, answers their HELLOs, serves them.

#![allow(dead_code, reason = "each test program uses its part")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use farside::config::{Access, Export};
use farside::link::conn::{Conn, tune};
use farside::qtfs::far::{Exports, serve};
use farside::wire::frame::{HEADER_LEN, Header};
use farside::wire::hello::{Hello, Lane, Role, Verdict};

pub(crate) struct Far {
    pub(crate) addr: SocketAddr,
    links: Arc<Mutex<Vec<TcpStream>>>,
    open: Arc<Mutex<bool>>,
}

pub(crate) fn export(path: &Path, access: Access) -> Export {
    Export { path: path.into(), access }
}

impl Far {
    pub(crate) fn start(addr: &str, exports: Exports) -> Self {
        let listener = TcpListener::bind(addr).expect("an address to listen on");
        let addr = listener.local_addr().unwrap();
        let exports = Arc::new(exports);
        let far = Self { addr, links: Arc::default(), open: Arc::new(Mutex::new(true)) };
        let (links, open) = (far.links.clone(), far.open.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.expect("accept");
                if !*open.lock().unwrap() {
                    continue;
                }
                links.lock().unwrap().push(stream.try_clone().unwrap());
                let exports = exports.clone();
                std::thread::spawn(move || match greet(stream) {
                    Ok(conn) => {
                        if let Err(e) = serve(conn, exports) {
                            eprintln!("far: {e}");
                        }
                    }
                    Err(e) => eprintln!("far: {e}"),
                });
            }
        });
        far
    }

    /// Cuts every link; while closed, new ones are dropped.
    pub(crate) fn cut(&self, reopen: bool) {
        *self.open.lock().unwrap() = reopen;
        for link in self.links.lock().unwrap().drain(..) {
            let _ = link.shutdown(std::net::Shutdown::Both);
        }
    }

    pub(crate) fn reopen(&self) {
        *self.open.lock().unwrap() = true;
    }
}

pub(crate) fn hello() -> Hello {
    Hello {
        role: Role::Files,
        lane: Lane::Bulk,
        verdict: Verdict::Ok,
        node: [1; 16],
        session: 0,
        index: 0,
        workers: 1,
        initial_window: 0,
        record_max: 0,
        features: 0,
        name: "test".into(),
        reason: String::new(),
    }
}

fn greet(mut stream: TcpStream) -> Result<Conn, String> {
    let addr = stream.peer_addr().map_err(|e| e.to_string())?;
    tune(&stream, Role::Files, Lane::Bulk).map_err(|e| e.to_string())?;
    let mut head = [0; HEADER_LEN];
    stream.read_exact(&mut head).map_err(|e| e.to_string())?;
    let len = Header::decode(&head).map_err(|e| e.to_string())?.len as usize;
    let mut whole = head.to_vec();
    whole.resize(HEADER_LEN + len.min(4096), 0);
    stream.read_exact(&mut whole[HEADER_LEN..]).map_err(|e| e.to_string())?;
    let peer = Hello::decode(&whole).map_err(|e| e.to_string())?.ok_or("a HELLO cut short")?;
    stream.write_all(&hello().encode()).map_err(|e| e.to_string())?;
    Ok(Conn::new(stream, peer, addr))
}
