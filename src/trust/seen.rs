//! When each peer was last here: a small file for each below /var/lib, written by daemons and read by `farside peers`.

use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::guarded::{Dir, Guard};
use super::{Attempt, TrustError};
use crate::auth::{PublicKey, check_name};

/// Another place for what daemons of this machine leave for its programs, for tests and for more than one set of daemons.
pub const RUN_DIR_ENV: &str = "FARSIDE_RUN_DIR";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub at: SystemTime,
    pub address: IpAddr,
    pub fingerprint: String,
}

pub fn dir() -> PathBuf {
    std::env::var_os(RUN_DIR_ENV)
        .map_or_else(|| "/var/lib/farside-peers".into(), |dir| PathBuf::from(dir).join("peers"))
}

/// A session of that peer has come up, or ends.
///
/// # Errors
/// The directory cannot be made or written; nothing depends on it.
pub fn note(dir: &Path, name: &str, address: IpAddr, key: PublicKey, now: SystemTime) -> Attempt<()> {
    check_name(name).map_err(|e| TrustError(e.to_string()))?;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|e| TrustError(format!("make {}: {e}", dir.display())))?;
    let Some(dir) = Dir::open(dir)? else { return Err(TrustError(format!("{}: went away", dir.display()))) };
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    dir.write(name, &format!("{seconds} {} {}\n", address.to_canonical(), key.fingerprint()))
}

/// `None`: never since the machine started, or the note cannot be used.
pub fn last(dir: &Path, name: &str) -> Option<Seen> {
    check_name(name).ok()?;
    let text = Dir::open(dir).ok()??.read(name, Guard::Own).ok()??;
    let [seconds, address, fingerprint] = text.split_ascii_whitespace().collect::<Vec<_>>()[..] else { return None };
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds.parse().ok()?))?;
    Some(Seen { at, address: address.parse().ok()?, fingerprint: fingerprint.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_here_is_known_afterwards() {
        let dir = crate::sys::tempdir::PrivateDir::new("seen").unwrap();
        let (key, ip) = (PublicKey([7; 32]), "::ffff:10.0.0.1".parse().unwrap());
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        assert_eq!(last(&dir.path().join("p"), "dpu"), None);
        note(&dir.path().join("p"), "dpu", ip, key, now).unwrap();
        let seen = last(&dir.path().join("p"), "dpu").unwrap();
        assert_eq!((seen.at, seen.address.to_string(), seen.fingerprint), (now, "10.0.0.1".into(), key.fingerprint()));
        assert!(note(dir.path(), "../x", ip, key, now).is_err() && last(dir.path(), "..").is_none());
    }
}
