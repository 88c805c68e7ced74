//! Whom this machine trusts now, as one value: made by `Store::load`, never changed, replaced as a whole.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Attempt, TrustError};
use crate::auth::{KeyLine, PublicKey};
use crate::policy::{Machine, Network, PeerFile, Policy};

#[derive(Debug)]
pub struct TrustedPeer {
    /// The file's, and so the administrator's and not the peer's word.
    pub name: String,
    pub keys: Vec<KeyLine>,
    /// Empty: anywhere.
    pub addresses: Vec<Network>,
    pub policy: Policy,
    pub(super) file: PathBuf,
}

impl TrustedPeer {
    pub(super) fn new(name: String, file: PathBuf, parsed: PeerFile) -> Self {
        Self { name, keys: parsed.keys, addresses: parsed.addresses, policy: parsed.policy, file }
    }

    pub fn has_key(&self, key: &PublicKey) -> bool {
        self.keys.iter().any(|line| line.key == *key)
    }

    /// Whether a connection with this peer may have that address at its end.
    pub fn may_be_at(&self, ip: IpAddr) -> bool {
        self.addresses.is_empty() || self.addresses.iter().any(|network| network.holds(ip))
    }
}

#[derive(Debug, Default)]
pub struct Trusted {
    /// This machine's keys: host.key first, then one that a rotation has made. They are good only where both ends of a
    /// connection are on this machine, and `find` never finds them.
    pub own: Vec<PublicKey>,
    peers: Vec<Arc<TrustedPeer>>,
    by_key: HashMap<PublicKey, usize>,
    /// What narrows every peer.
    pub machine: Machine,
}

impl Trusted {
    pub(super) fn new(own: Vec<PublicKey>, peers: Vec<TrustedPeer>, machine: Machine) -> Attempt<Self> {
        let peers: Vec<Arc<TrustedPeer>> = peers.into_iter().map(Arc::new).collect();
        let mut by_key: HashMap<PublicKey, usize> = HashMap::new();
        for (at, peer) in peers.iter().enumerate() {
            let file = peer.file.display();
            for line in &peer.keys {
                if own.contains(&line.key) {
                    let what = "holds this machine's own key, which no other machine may have";
                    return Err(TrustError(format!(
                        "{file}: {what}; remove it, and make a new key where it came from"
                    )));
                }
                match by_key.insert(line.key, at) {
                    Some(other) if other == at => {
                        return Err(TrustError(format!("{file}: holds {} twice; remove one", line.key)));
                    }
                    Some(other) => {
                        let other = peers[other].file.display();
                        return Err(TrustError(format!(
                            "{other} and {file} both hold {}; one key is one peer",
                            line.key
                        )));
                    }
                    None => {}
                }
            }
        }
        Ok(Self { own, peers, by_key, machine })
    }

    pub fn find(&self, key: &PublicKey) -> Option<&Arc<TrustedPeer>> {
        self.by_key.get(key).map(|at| &self.peers[*at])
    }

    pub fn is_own(&self, key: &PublicKey) -> bool {
        self.own.contains(key)
    }

    pub fn named(&self, name: &str) -> Option<&Arc<TrustedPeer>> {
        self.peers.iter().find(|peer| peer.name == name)
    }

    pub fn peers(&self) -> &[Arc<TrustedPeer>] {
        &self.peers
    }

    /// Who may be at that address: whom to expect there, or an empty list if nobody trusted can be.
    pub fn at_address(&self, ip: IpAddr) -> Vec<&Arc<TrustedPeer>> {
        self.peers.iter().filter(|peer| peer.may_be_at(ip)).collect()
    }
}

/// The command that trusts this key and lets it do nothing here, to be typed as it is.
pub fn trust_command(key: PublicKey, ip: IpAddr) -> String {
    let from_address: String =
        ip.to_string().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let name = format!("peer-{from_address}");
    let line = KeyLine { key, name: name.clone() };
    format!("farside trust {name} '{line}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_one_for_a_shell_and_grants_nothing() {
        let said = trust_command(PublicKey([7; 32]), "fe80::1".parse().unwrap());
        assert!(said.starts_with("farside trust peer-fe80--1 'farside-ed25519 Bwc"), "{said}");
        assert!(said.ends_with("= peer-fe80--1'"), "{said}");
    }
}
