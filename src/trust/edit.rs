//! Whom to trust, and whom no more: changes of peers' files that keep what people wrote.

use super::guarded::{Dir, Guard};
use super::store::{PEERS, Store, read_peer};
use super::trusted::Trusted;
use super::{Attempt, TrustError};
use crate::auth::key::SHORT_LEN;
use crate::auth::{KeyLine, check_name};
use crate::policy::{Grants, Network, PeerFile, new_file, with_keys};

#[derive(Debug, Clone, Default)]
pub struct TrustOrder {
    /// `None`: a new peer may do nothing here, and of a known one nothing changes.
    pub grants: Option<Grants>,
    /// Beside the keys that the peer has.
    pub add: bool,
    /// In the place of the keys that the peer has.
    pub replace: bool,
    pub addresses: Vec<Network>,
    /// What a new file keeps from the peer even where it grants all sockets.
    pub own_services: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    New,
    /// Its policy was written anew.
    Rewritten,
    /// One more key, or another one; its policy is what it was.
    Key,
    /// It was so before.
    Nothing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revoked {
    /// The peer is gone; its file is kept under a name that nobody reads.
    Peer {
        kept_as: String,
    },
    Key {
        line: KeyLine,
        left: usize,
    },
}

impl Store {
    /// # Errors
    /// Not without being told: a known peer's other key, or a policy in the place of one that there is.
    pub fn trust(&self, name: &str, line: &KeyLine, order: &TrustOrder) -> Attempt<Added> {
        check_name(name).map_err(|e| TrustError(e.to_string()))?;
        let dir = self.make_dir()?;
        let _alone = dir.lock()?;
        self.belongs_to_nobody_else(name, line)?;
        let peers = dir.make_sub(PEERS)?;
        let (file, path) = (format!("{name}.toml"), self.peer_path(name));
        let services: Vec<&str> = order.own_services.iter().map(String::as_str).collect();
        let grants = order.grants.clone().unwrap_or_default();
        let anew = |keys: &[KeyLine]| new_file(keys, &order.addresses, &grants, &services);
        let Some(text) = peers.read(&file, Guard::Own)? else {
            peers.create(&file, &anew(std::slice::from_ref(line)))?;
            return Ok(Added::New);
        };
        let shown = path.display();
        let mut keys = PeerFile::parse(&path, &text)?.keys;
        let known = keys.iter().any(|own| own.key == line.key);
        let settings = order.grants.is_some() || !order.addresses.is_empty();
        if order.replace && settings {
            peers.write(&file, &anew(std::slice::from_ref(line)))?;
            return Ok(Added::Rewritten);
        }
        if settings && *text == anew(std::slice::from_ref(line)) {
            return Ok(Added::Nothing);
        }
        if settings {
            let what = "is trusted already, and its policy stays as it is";
            return Err(TrustError(format!("{name} {what}: edit {shown}, or say --replace to have it written anew")));
        }
        match (order.replace, order.add, known) {
            (true, ..) if keys == [line.clone()] => return Ok(Added::Nothing),
            (true, ..) => keys = vec![line.clone()],
            (false, _, true) => return Ok(Added::Nothing),
            (false, true, false) => keys.push(line.clone()),
            (false, false, false) => {
                let what = format!("{name} is trusted with another key, {}", keys[0].key);
                let how = "say --add if both are good for now, --replace if only the new one is";
                return Err(TrustError(format!("{what}; {how}, or choose another name")));
            }
        }
        peers.write(&file, &with_keys(&path, &text, &keys)?)?;
        Ok(Added::Key)
    }

    fn belongs_to_nobody_else(&self, name: &str, line: &KeyLine) -> Attempt<()> {
        let trusted: Trusted = self.load()?;
        if trusted.is_own(&line.key) {
            let what = "this is this machine's own key, which it trusts by itself, on this machine alone";
            return Err(TrustError(format!("{what}; take the line that `farside key` prints on the other machine")));
        }
        match trusted.find(&line.key) {
            Some(peer) if peer.name != name => Err(TrustError(format!(
                "{} is {}'s key already ({}); one key is one peer",
                line.key,
                peer.name,
                self.peer_path(&peer.name).display()
            ))),
            _ => Ok(()),
        }
    }

    /// Without a fingerprint the whole peer, whatever is in its file: that must always be possible.
    ///
    /// # Errors
    /// There is no such peer, or no such key of it, or it would be its last.
    pub fn revoke(&self, name: &str, fingerprint: Option<&str>) -> Attempt<Revoked> {
        check_name(name).map_err(|e| TrustError(e.to_string()))?;
        let nobody = || TrustError(format!("{name} is not trusted; `farside peers` lists who is"));
        let dir = Dir::open(&self.dir)?.ok_or_else(nobody)?;
        let _alone = dir.lock()?;
        let peers = dir.sub(PEERS)?.ok_or_else(nobody)?;
        let file = format!("{name}.toml");
        if !peers.names()?.contains(&file) {
            return Err(nobody());
        }
        let Some(fingerprint) = fingerprint else {
            let kept_as = format!("{file}.revoked");
            peers.rename(&file, &kept_as)?;
            return Ok(Revoked::Peer { kept_as });
        };
        let text = peers.read(&file, Guard::Own)?.ok_or_else(nobody)?;
        let keys = read_peer(&peers, name)?.ok_or_else(nobody)?.keys;
        let meant = |line: &KeyLine| {
            let own = line.key.fingerprint();
            own == fingerprint || (fingerprint.len() >= SHORT_LEN && own.starts_with(fingerprint))
        };
        let (gone, left): (Vec<_>, Vec<_>) = keys.into_iter().partition(meant);
        let [line] = &gone[..] else {
            return Err(TrustError(format!("{name} has no key {fingerprint}; `farside peers` lists its keys")));
        };
        if left.is_empty() {
            return Err(TrustError(format!("that is {name}'s only key; `farside revoke {name}` ends all trust in it")));
        }
        peers.write(&file, &with_keys(&self.peer_path(name), &text, &left)?)?;
        Ok(Revoked::Key { line: line.clone(), left: left.len() })
    }
}
