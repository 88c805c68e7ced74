//! What a peer may do here, as its services ask it: for each thing anew, so that a change holds from the next one on.

use std::sync::Arc;

use super::{Trusted, TrustedPeer};
use crate::auth::PublicKey;

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

impl Trusted {
    pub fn standing_of(self: &Arc<Self>, key: &PublicKey) -> Standing {
        match self.find(key) {
            _ if self.is_own(key) => Standing::Everything,
            Some(peer) => Standing::Peer(Arc::clone(self), Arc::clone(peer)),
            None => Standing::Nothing,
        }
    }
}
