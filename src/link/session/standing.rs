//! Who has links now, and whether that is still right: trust may end while they live.

use std::net::IpAddr;
use std::sync::Arc;

use super::node::Node;
use crate::auth::PublicKey;
use crate::link::worker::inbox::Cmd;
use crate::link::worker::peer::{Known, Peer};

/// Which peer's sessions are for the programs of this machine: others that are trusted may ask things of this machine, and
/// are asked for nothing.
#[derive(Debug, Default)]
pub(super) struct Expected {
    /// Where it is dialled; `None`: nobody is.
    at: Option<Vec<IpAddr>>,
    /// What it has shown there.
    key: Option<PublicKey>,
}

impl Expected {
    pub(super) fn at(&mut self, ips: impl Iterator<Item = IpAddr>) {
        let found: Vec<IpAddr> = ips.map(|ip| ip.to_canonical()).collect();
        // A name that has no address just now had the ones that it had.
        if !found.is_empty() || self.at.is_none() {
            self.at = Some(found);
        }
    }

    pub(super) fn learn(&mut self, key: Option<PublicKey>) {
        self.key = key;
    }

    pub(super) fn is(&self, peer: &Peer) -> bool {
        match (&self.at, self.key, peer.known.key) {
            (None, ..) | (.., None) => true,
            (_, Some(expected), Some(shown)) => expected == shown,
            (Some(at), None, _) => at.contains(&peer.addr.ip().to_canonical()),
        }
    }

    /// Where nobody is dialled, the only peer there is.
    pub(super) fn one_of<'a, S>(
        &self,
        mut sessions: impl Iterator<Item = &'a S> + Clone,
        peer: impl Fn(&S) -> &Arc<Peer>,
    ) -> Option<&'a S> {
        let first = sessions.find(|s| self.is(peer(s)))?;
        let key = peer(first).known.key;
        let alone = self.at.is_some() || sessions.all(|s| peer(s).known.key == key);
        if !alone {
            tracing::debug!("more than one peer, and `peer` of node.toml names none: programs here reach neither");
        }
        alone.then_some(first)
    }
}

impl Node {
    /// Ends every link whose key is trusted no longer.
    pub(super) fn recheck(&self) {
        let Some(authority) = self.access().authority() else { return };
        let fallen = |known: &Known| known.key.is_some_and(|key| !authority.still_trusts(&key));
        for (peer, pairs) in self.sessions_now() {
            if fallen(&peer.known) {
                tracing::warn!(%peer, "its key is not trusted any more: its session ends");
                for at in pairs {
                    at.inbox.push(Cmd::End { pair: at.pair, reason: "its key is not trusted any more".into() });
                }
            }
        }
        self.file_links().end_those(fallen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::hello::Role;

    fn peer(addr: &str, key: u8) -> Arc<Peer> {
        let known = Known { name: "x".into(), key: Some(PublicKey([key; 32])), bearer: None };
        Arc::new(Peer { known, addr: addr.parse().unwrap(), node: [0; 16], role: Role::Peer })
    }

    #[test]
    fn programs_reach_the_peer_that_is_dialled_and_no_other() {
        let (host, other) = (peer("10.0.0.1:1", 1), peer("10.0.0.2:1", 2));
        let mut expected = Expected::default();
        let chosen = |e: &Expected, of: &[Arc<Peer>]| e.one_of(of.iter(), |p| p).cloned();
        assert_eq!(chosen(&expected, std::slice::from_ref(&other)), Some(other.clone()), "the only one");
        assert_eq!(chosen(&expected, &[other.clone(), host.clone()]), None, "nobody says which");
        expected.at(["10.0.0.1".parse().unwrap()].into_iter());
        assert_eq!(chosen(&expected, &[other.clone(), host.clone()]), Some(host.clone()));
        assert_eq!(chosen(&expected, std::slice::from_ref(&other)), None);
        // Its key is known: it may come from elsewhere, and nobody else from there.
        expected.learn(Some(PublicKey([1; 32])));
        let moved = peer("10.0.0.9:1", 1);
        assert_eq!(chosen(&expected, &[peer("10.0.0.1:1", 3), moved.clone()]), Some(moved));
    }
}
