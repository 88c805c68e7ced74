//! A far side whose links a test can cut: a node that serves files and nothing else.

#![allow(dead_code, reason = "each test program uses its part")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use farside::config::{Access, Export};
use farside::errno::Errno;
use farside::fdpass::Maker;
use farside::link::conn::{Closer, Conn};
use farside::link::{Door, FileServer, Handler, Incoming, Node, NodeOptions};
use farside::qtfs::far::{Exports, serve};
use farside::ring::Wish;
use farside::trust::Standing;
use farside::wire::hello::{Hello, Lane, Role, Verdict};

use crate::own_key;

pub(crate) struct Far {
    pub(crate) addr: SocketAddr,
    files: Arc<Files>,
    node: Node,
}

struct Files {
    exports: Arc<Exports>,
    links: Mutex<Vec<Closer>>,
    open: Mutex<bool>,
}

impl FileServer for Files {
    fn serve(&self, conn: Conn) {
        if !*self.open.lock().unwrap() {
            return;
        }
        self.links.lock().unwrap().push(conn.closer().unwrap());
        if let Err(e) = serve(conn, &self.exports, &Standing::Everything) {
            eprintln!("far: {e}");
        }
    }
}

struct Nothing;

impl Handler for Nothing {
    fn on_open(&self, incoming: Incoming) {
        incoming.stream.refuse(Errno::EOPNOTSUPP);
    }
}

pub(crate) fn export(path: &Path, access: Access) -> Export {
    Export { path: path.into(), access }
}

impl Far {
    pub(crate) fn start(addr: &str, exports: Exports) -> Self {
        let files = Arc::new(Files { exports: Arc::new(exports), links: Mutex::default(), open: Mutex::new(true) });
        let node = Node::start(NodeOptions {
            workers: 1,
            engine: Wish::Auto,
            access: own_key::access(),
            handler: Arc::new(Nothing),
            files: Some(Arc::clone(&files) as Arc<dyn FileServer>),
            grace: Duration::ZERO,
            fds: Maker::default(),
        });
        let node = node.expect("a node");
        let door = Door::bind(addr, node.clone()).expect("an address to listen on");
        let addr = door.addresses()[0];
        door.open().unwrap();
        Self { addr, files, node }
    }

    /// Cuts every link; while closed, new ones are dropped.
    pub(crate) fn cut(&self, reopen: bool) {
        *self.files.open.lock().unwrap() = reopen;
        self.files.links.lock().unwrap().drain(..).for_each(|link| link.close());
    }

    pub(crate) fn reopen(&self) {
        *self.files.open.lock().unwrap() = true;
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        self.node.leave(Duration::ZERO);
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
        voucher: Vec::new(),
    }
}
