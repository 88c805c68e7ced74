//! The files below /etc/farside that say who this machine is and whom it trusts, and how they may be read and changed.
//!
//! ```text
//!   host.key            this machine's key, 0600, made on first use     host.key.next   the one that a rotation made
//!   peers.d/NAME.toml   a machine that is trusted, and its policy       host.key.old    the one before it
//!   .lock               held while any of them is changed               host.key.of-ID  made on another machine
//! ```
//!
//! A file that somebody else could have written, or a secret that somebody else could have read, is refused and not
//! used. Each is opened once, without following a symbolic link, and judged by what was opened. Every change is a new
//! file that takes the old one's place, so a reader sees the old or the new and never a part; and changes wait for
//! each other, so two daemons that start at once have one key.
//!
//! Whatever is wrong with the new state, `load` says so by file and line, and who holds an older `Trusted` goes on
//! with that: a typing mistake locks nobody in or out.

mod accounts;
mod edit;
mod guarded;
pub mod host_key;
mod machine;
mod rotate;
pub mod seen;
mod standing;
mod store;
#[cfg(test)]
mod tests;
mod trusted;
mod users;

use std::fmt;

pub use accounts::SystemAccounts;
pub use edit::{Added, Revoked, TrustOrder};
pub use host_key::HostKey;
pub use machine::{SystemLinks, real_path};
pub use rotate::Rotation;
pub use standing::{Rights, Standing};
pub use store::{Stamp, Store};
pub use trusted::{Trusted, TrustedPeer, trust_command};
pub use users::Users;

use crate::errno::OsError;

/// Why a file is not used, or not changed: one line, with what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustError(pub String);

impl fmt::Display for TrustError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TrustError {}

impl From<OsError> for TrustError {
    fn from(e: OsError) -> Self {
        Self(e.to_string())
    }
}

impl From<crate::policy::FileError> for TrustError {
    fn from(e: crate::policy::FileError) -> Self {
        Self(e.to_string())
    }
}

pub(crate) type Attempt<T> = Result<T, TrustError>;
