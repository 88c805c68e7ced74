//! From one key to the next, with a time in between in which both are good.
//!
//! ```text
//!   host.key            rotate ▶ host.key + host.key.next            finish ▶ host.key (the next), host.key.old
//!   presented: old               presented: old                               presented: new
//!   peers trust: old             peers: `farside trust ... --add` both        peers: `farside revoke --key` the old
//! ```

use super::guarded::Dir;
use super::host_key::HostKey;
use super::store::{KEY, NEXT, OLD, Store, read_key};
use super::{Attempt, TrustError};
use crate::auth::KeyLine;

/// What a rotation has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    pub old: KeyLine,
    pub new: KeyLine,
    /// There was a next key already.
    pub begun_before: bool,
}

impl Store {
    /// Makes the next key; the present one stays in use.
    ///
    /// # Errors
    /// A file that cannot be used or written.
    pub fn rotate(&self) -> Attempt<Rotation> {
        let present = self.host_key()?;
        let dir = self.make_dir()?;
        let _alone = dir.lock()?;
        let old = present.line();
        if let Some(next) = read_key(&dir, NEXT)? {
            return Ok(Rotation { old, new: next.line(), begun_before: true });
        }
        let next = HostKey::new(present.machine, present.name);
        dir.create(NEXT, &next.text())?;
        Ok(Rotation { old, new: next.line(), begun_before: false })
    }

    /// The next key becomes the key.
    ///
    /// # Errors
    /// There is no next key, or a file cannot be used or written.
    pub fn rotate_finish(&self) -> Attempt<Rotation> {
        let present = self.host_key()?;
        let dir = self.make_dir()?;
        let _alone = dir.lock()?;
        let next = self.next(&dir)?;
        // At no moment without a key: the old one is copied, and then the next takes its place.
        dir.write(OLD, &present.text())?;
        dir.rename(NEXT, KEY)?;
        Ok(Rotation { old: present.line(), new: next.line(), begun_before: true })
    }

    /// Drops the next key.
    ///
    /// # Errors
    /// As `rotate_finish`.
    pub fn rotate_abort(&self) -> Attempt<KeyLine> {
        let dir = self.make_dir()?;
        let _alone = dir.lock()?;
        let next = self.next(&dir)?;
        dir.remove(NEXT)?;
        Ok(next.line())
    }

    fn next(&self, dir: &Dir) -> Attempt<HostKey> {
        let none =
            || TrustError(format!("{}: no rotation is under way; begin with `farside rotate`", self.dir.display()));
        read_key(dir, NEXT)?.ok_or_else(none)
    }
}
