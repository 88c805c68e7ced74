//! What a peer may do here, as its services ask it: for each thing anew, so that a change holds from the next one on.

use std::sync::Arc;

use super::{Trusted, TrustedPeer};
use crate::auth::PublicKey;
use crate::policy::Service;

/// By the key that was proven; none in plaintext.
pub type Rights = Arc<dyn Fn(Option<PublicKey>) -> Standing + Send + Sync>;

#[derive(Debug, Clone)]
pub enum Standing {
    /// This machine itself.
    Everything,
    /// What its file says, narrowed by this machine's lists.
    Peer(Arc<Trusted>, Arc<TrustedPeer>),
    /// Its key is trusted no longer.
    Nothing,
}

impl Standing {
    /// Whether anything of that service may be asked for: before a place, a thread or a file is spent on it. Touches no
    /// file, so that a worker may ask.
    ///
    /// # Errors
    /// Why not, in a line for this machine's log.
    pub fn admits(&self, service: Service) -> Result<(), String> {
        match self {
            Self::Everything => Ok(()),
            Self::Peer(_, peer) => peer.policy.admits(service).map_err(|denied| denied.to_string()),
            Self::Nothing => Err("its key is not trusted any more".into()),
        }
    }
}

impl Trusted {
    pub fn standing_of(self: &Arc<Self>, key: &PublicKey) -> Standing {
        match self.find(key) {
            _ if self.is_own(key) => Standing::Everything,
            Some(peer) => Standing::Peer(Arc::clone(self), Arc::clone(peer)),
            None => Standing::Nothing,
        }
    }
}
