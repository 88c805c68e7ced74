//! Who is at the other end of a session, and what is done with the streams that it opens.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use super::helpers::Helpers;
use super::inbox::Pending;
use crate::auth::{Bearer, PublicKey};
use crate::wire::hello::Role;

/// Who is at the other end, as proven. Without TLS nobody is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The name under which it is trusted here.
    pub name: String,
    pub key: Option<PublicKey>,
    /// It acts for this user of that machine alone, by that machine's word.
    pub bearer: Option<Bearer>,
}

impl Known {
    /// In plaintext anybody is whoever it says.
    #[cfg(feature = "plaintext")]
    pub(in crate::link) fn unproven() -> Self {
        Self { name: String::new(), key: None, bearer: None }
    }
}

/// Who is at the other end of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The name under which its key is trusted here, and the key.
    pub known: Known,
    pub addr: SocketAddr,
    pub node: [u8; 16],
    pub role: Role,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.known.name, self.addr)
    }
}

/// A stream that the peer opened. Decide by `stream.attach` or `stream.refuse`, on a helper if that may take time.
#[derive(Debug)]
pub struct Incoming {
    pub service: u16,
    pub request: Vec<u8>,
    pub peer: Arc<Peer>,
    pub stream: Pending,
    pub helpers: Helpers,
}

/// What a node does with streams that a peer opens. Called on a worker: it must not block.
pub trait Handler: Send + Sync {
    fn on_open(&self, incoming: Incoming);

    /// Whether a peer that no program here is to reach may have a session, to ask for things. Must not block.
    ///
    /// # Errors
    /// Nothing that it may ask for is here; the line goes to the peer, and to the log.
    fn admits(&self, _peer: &Peer) -> Result<(), String> {
        Ok(())
    }
}
