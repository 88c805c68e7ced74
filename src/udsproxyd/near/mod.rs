//! The near side: serves libudsproxy.so and our own mount helper on a local socket.
//!
//! ```text
//!   accept ──▶ ask: who, what ──▶ view: which host path ──▶ policy ──▶ FarSide::connect
//!                                                                          │ yes
//!       verdict ◀── FarStream::attach ◀── private: the caller's socket is connected here
//! ```
//!
//! Each thread of the pool accepts an asker and serves it to its end. A caller's socket is not touched before the far
//! side has said yes, so a refused one is good for another try; and nothing is connected for an asker that has gone.

mod abstract_name;
mod ask;
mod binder;
mod control;
mod datagrams;
mod exports;
mod mounts;
mod outlets;
mod path;
mod private;
mod server;
mod view;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;

pub use exports::Export;
pub use server::{Handle, Server};

use crate::errno::{Errno, OsResult};
use crate::sys::unix::SocketKind;
use crate::trust::Users;
use crate::udsproxyd::policy::Policy;
use crate::udsproxyd::wire::{ConnectRequest, Listener};

/// The far side, as far as this room knows it.
pub trait FarSide: Send + Sync {
    /// Connects over there, and waits for the verdict until `deadline`. The errno is what the caller gets.
    fn connect(&self, request: &ConnectRequest, deadline: Instant) -> Result<Box<dyn FarStream>, Errno>;
}

/// Ends a stream that is attached; harmless when it has ended.
pub type End = Box<dyn FnOnce(Errno) + Send>;

/// A connection that the far side has made. Dropped unattached, it is closed over there.
pub trait FarStream: Send {
    /// From now on the bytes of `local` and of the far connection are one stream. `local` is the other end of the
    /// caller's socket: blocking, close-on-exec. What is returned ends that stream.
    fn attach(self: Box<Self>, local: OwnedFd, kind: SocketKind) -> OsResult<End>;

    /// Whoever listens over there, if known: what the caller's SO_PEERCRED shows. Otherwise it shows this daemon.
    fn listener(&self) -> Option<Listener> {
        None
    }
}

#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; its directory is made (0700) if missing, and must be ours alone.
    pub socket: PathBuf,
    /// Who may ask. With others than root the directory is 0711 and the socket 0666, and SO_PEERCRED decides.
    pub users: Users,
    pub policy: Policy,
    /// Far sockets at local paths.
    pub exports: Vec<Export>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            socket: farside_contract::SOCKET_PATH.into(),
            users: Users::default(),
            policy: Policy::open(),
            exports: Vec::new(),
        }
    }
}
