//! Who is at the other end of a link, as a daemon and as a program ask it, and what they may do here.
//!
//! ```text
//!   a daemon:  host.key, peers.d ─▶ Keys          a program:  host.key it may read ─▶ Keys
//!                                                             else a daemon's word ─▶ vouch::Asker
//! ```

use std::sync::Arc;

use super::host_keys::Keys;
use crate::config::config_dir;
use crate::errno::OsResult;
use crate::link::{Access, Authority};
use crate::policy::Grants;
use crate::trust::{Rights, Standing, Users};
use crate::vouch::{self, Asker, Commands, Host};

/// How a daemon knows who is at the other end of a link.
#[derive(Clone)]
pub(super) enum OfDaemon {
    Keys(Arc<Keys>),
    #[cfg(feature = "plaintext")]
    Plain,
}

impl OfDaemon {
    pub(super) fn links(&self) -> Access {
        match self {
            Self::Keys(keys) => Access::Keys(Arc::clone(keys) as Arc<dyn Authority>),
            #[cfg(feature = "plaintext")]
            Self::Plain => Access::Plain,
        }
    }

    /// Has changes of the files seen from now on, on a thread of their own.
    pub(super) fn watch(&self) -> OsResult<()> {
        self.keys().map_or(Ok(()), Keys::watch)
    }

    /// What each peer may do here.
    pub(super) fn rights(&self) -> Rights {
        match self {
            Self::Keys(keys) => {
                let keys = Arc::clone(keys);
                Arc::new(move |key| key.map_or(Standing::Nothing, |key| keys.trusted().standing_of(&key)))
            }
            #[cfg(feature = "plaintext")]
            Self::Plain => Arc::new(|_| Standing::Everything),
        }
    }

    /// Who of this machine may reach the other one.
    pub(super) fn users(&self) -> Users {
        self.keys().map_or_else(Users::default, |keys| keys.users())
    }

    /// In plaintext there is nobody whose rights could be asked.
    pub(super) fn keys(&self) -> Option<&Arc<Keys>> {
        match self {
            Self::Keys(keys) => Some(keys),
            #[cfg(feature = "plaintext")]
            Self::Plain => None,
        }
    }
}

/// For a program: with this machine's key where it may read that, else with a daemon's word.
///
/// # Errors
/// One line: there is neither.
pub(super) fn of_program() -> Result<Access, String> {
    #[cfg(feature = "plaintext")]
    if plaintext_wanted(false) {
        return Ok(Access::Plain);
    }
    let key = config_dir().join("host.key");
    // A root that has no key here may be in a root directory of its own, with a daemon outside.
    let readable = std::fs::File::open(&key).is_ok();
    if !readable && let Some(asker) = Asker::new(&vouch::dir()) {
        return Ok(Access::Keys(Arc::new(asker)));
    }
    if !readable && !nix::unistd::geteuid().is_root() {
        return Err(format!(
            "this user may not read {}, and no farside daemon runs here that could vouch for it: start one \
             (udsproxyd, rexec_server, farside host)",
            key.display()
        ));
    }
    Ok(Access::Keys(Keys::open(Grants::default())?))
}

/// Whether unencrypted links were asked for, by option or by `FARSIDE_INSECURE_PLAINTEXT=1`.
#[cfg(feature = "plaintext")]
pub(super) fn plaintext_wanted(option: bool) -> bool {
    option || std::env::var_os(crate::config::PLAINTEXT_ENV).is_some_and(|v| v == "1")
}

/// The daemon's word for programs of this machine, and its session for their commands; kept as long as the daemon runs.
/// Not root: nobody needs it.
pub(super) fn serve_programs(keys: &Arc<Keys>, commands: Option<Arc<dyn Commands>>) -> Option<vouch::Server> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    match vouch::Server::start(&vouch::dir(), Arc::clone(keys) as Arc<dyn Host>, commands) {
        Ok(server) => Some(server),
        Err(e) => {
            tracing::warn!("programs without this machine's key can't reach other machines: {e}");
            None
        }
    }
}
