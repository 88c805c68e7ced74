//! The directory of keys and peers, and a way to see that something in it has changed.

use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::guarded::{Dir, Guard};
use super::host_key::HostKey;
use super::machine::{self, SystemLinks};
use super::trusted::{Trusted, TrustedPeer};
use super::{Attempt, TrustError};
use crate::auth::{PublicKey, check_name};
use crate::config::config_dir;
use crate::limits::PEERS_MAX;
use crate::policy::PeerFile;

/// Another place for /etc in front of rexec/whitelist and qtfs/whitelist, for tests.
pub(super) const LISTS_ENV: &str = "FARSIDE_WHITELIST_DIR";

pub(super) const KEY: &str = "host.key";
pub(super) const NEXT: &str = "host.key.next";
pub(super) const OLD: &str = "host.key.old";
pub(super) const PEERS: &str = "peers.d";

#[derive(Debug, Clone)]
pub struct Store {
    pub(super) dir: PathBuf,
    etc: PathBuf,
}

/// What the files looked like. Two that differ: something has changed, or looks as if.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp(Vec<(PathBuf, Option<Look>)>);

/// Device, inode, size, and both times in seconds and nanoseconds: chmod and chown change the second.
type Look = (u64, u64, u64, (i64, i64), (i64, i64));

impl Store {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        let etc = std::env::var_os(LISTS_ENV).map_or_else(|| PathBuf::from("/etc"), PathBuf::from);
        Self { dir: dir.into(), etc }
    }

    /// /etc/farside, or where `FARSIDE_CONFIG_DIR` says.
    pub fn of_this_machine() -> Self {
        Self::new(config_dir())
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn peer_path(&self, name: &str) -> PathBuf {
        self.dir.join(PEERS).join(format!("{name}.toml"))
    }

    /// This machine's key, made now if there is none.
    ///
    /// # Errors
    /// The file cannot be used or made.
    pub fn host_key(&self) -> Attempt<HostKey> {
        let ids = machine::ids();
        // The usual case takes no lock and writes nothing.
        if let Some(dir) = Dir::open(&self.dir)?
            && let Some(key) = read_key(&dir, KEY)?
            && is_of(&key, &ids)
        {
            return Ok(key);
        }
        let dir = self.make_dir()?;
        let _alone = dir.lock()?;
        // Somebody else may have been first.
        if let Some(key) = read_key(&dir, KEY)? {
            if is_of(&key, &ids) {
                return Ok(key);
            }
            set_aside(&dir, &key, &ids)?;
        }
        let key = HostKey::new(ids.into_iter().next().unwrap_or_default(), machine::name());
        dir.create(KEY, &key.text())?;
        tracing::info!("made this machine's key, {}: {}", key.public(), dir.path().join(KEY).display());
        Ok(key)
    }

    /// The directory, made if need be: readable by all, since node.toml is in it too.
    pub(super) fn make_dir(&self) -> Attempt<Dir> {
        if let Some(dir) = Dir::open(&self.dir)? {
            return Ok(dir);
        }
        let shown = self.dir.display();
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.dir);
        made.map_err(|e| TrustError(format!("make {shown}: {e}")))?;
        Dir::open(&self.dir)?.ok_or_else(|| TrustError(format!("{shown}: went away again")))
    }

    /// Everybody whom this machine trusts, its own keys, and its lists.
    ///
    /// # Errors
    /// The first file that cannot be used, by line where it has one.
    pub fn load(&self) -> Attempt<Trusted> {
        let Some(dir) = Dir::open(&self.dir)? else {
            return Trusted::new(Vec::new(), Vec::new(), machine::lists(&self.etc));
        };
        let mut own: Vec<PublicKey> = Vec::new();
        for name in [KEY, NEXT] {
            own.extend(read_key(&dir, name)?.map(|key| key.public()));
        }
        let peers = match dir.sub(PEERS)? {
            Some(dir) => read_peers(&dir)?,
            None => Vec::new(),
        };
        Trusted::new(own, peers, machine::lists(&self.etc))
    }

    /// Cheap: a stat of each file. To be compared with an earlier one.
    pub fn stamp(&self) -> Stamp {
        let peers = self.dir.join(PEERS);
        let mut paths = vec![self.dir.clone(), self.dir.join(KEY), self.dir.join(NEXT), peers.clone()];
        paths.extend(machine::list_paths(&self.etc));
        let entries = std::fs::read_dir(&peers).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> =
            entries.map(|e| e.path()).filter(|p| p.extension() == Some("toml".as_ref())).collect();
        files.sort();
        paths.extend(files.into_iter().take(PEERS_MAX));
        let look = |path: PathBuf| {
            let meta = path.symlink_metadata().ok();
            let look =
                meta.map(|m| (m.dev(), m.ino(), m.size(), (m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec())));
            (path, look)
        };
        Stamp(paths.into_iter().map(look).collect())
    }
}

pub(super) fn read_key(dir: &Dir, name: &str) -> Attempt<Option<HostKey>> {
    let Some(text) = dir.read(name, Guard::Secret)? else { return Ok(None) };
    let said = |e| TrustError(format!("{}: {e}", dir.path().join(name).display()));
    HostKey::parse(&text).map(Some).map_err(said)
}

/// Whether this machine made it, or nothing tells otherwise.
fn is_of(key: &HostKey, ids: &[String]) -> bool {
    key.machine.is_empty() || ids.is_empty() || ids.contains(&key.machine)
}

/// A key that came with a copy of another machine's disk is not this machine's, nor is a next one beside it.
fn set_aside(dir: &Dir, key: &HostKey, ids: &[String]) -> Attempt<()> {
    let fine = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let id: String = key.machine.chars().map(fine).take(80).collect();
    let names = dir.names()?;
    let free = |base: &str| {
        let numbered = (1..).map(|n| if n == 1 { base.to_owned() } else { format!("{base}.{n}") });
        numbered.into_iter().find(|name| !names.contains(name)).expect("numbers do not end")
    };
    let aside = free(&format!("host.key.of-{id}"));
    if let Some(next) = read_key(dir, NEXT)?.filter(|next| !is_of(next, ids)) {
        dir.rename(NEXT, &free(&format!("host.key.next.of-{id}")))?;
        tracing::warn!("{} was made on another machine too and is no longer used", next.public());
    }
    dir.rename(KEY, &aside)?;
    tracing::warn!(
        "{} was made on another machine ({}): this one makes its own; the old is kept as {aside}; peers that trusted \
         it must trust the new one",
        dir.path().join(KEY).display(),
        key.machine
    );
    Ok(())
}

fn read_peers(dir: &Dir) -> Attempt<Vec<TrustedPeer>> {
    let mut peers = Vec::new();
    for file in dir.names()? {
        // What is hidden is a file on its way, or an editor's; what ends otherwise is a backup.
        let Some(name) = file.strip_suffix(".toml").filter(|_| !file.starts_with('.')) else { continue };
        let path = dir.path().join(&file);
        check_name(name).map_err(|e| TrustError(format!("{}: {e}; rename it", path.display())))?;
        peers.extend(read_peer(dir, name)?);
        if peers.len() > PEERS_MAX {
            return Err(TrustError(format!("{}: more than {PEERS_MAX} peers", dir.path().display())));
        }
    }
    Ok(peers)
}

/// `None`: it has gone meanwhile, or never was.
pub(super) fn read_peer(dir: &Dir, name: &str) -> Attempt<Option<TrustedPeer>> {
    let file = format!("{name}.toml");
    let path = dir.path().join(&file);
    let Some(text) = dir.read(&file, Guard::Own)? else { return Ok(None) };
    let mut parsed = PeerFile::parse(&path, &text)?;
    parsed.policy = parsed.policy.following(&SystemLinks);
    Ok(Some(TrustedPeer::new(name.to_owned(), path, parsed)))
}
