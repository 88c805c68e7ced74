//! This machine's key and whom it trusts, as the links of this process ask for it; read anew when it changes.
//!
//! ```text
//!   a daemon:  host.key, peers.d ─▶ Keys          a program:  host.key it may read ─▶ Keys
//!                                                             else a daemon's word ─▶ vouch::Asker
//! ```

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use super::stranger;
use crate::auth::{Bearer, Binding, PublicKey, Tls, voucher};
use crate::config::{NodeConfig, config_dir};
use crate::limits::{SEEN_AGAIN, TRUST_LOOK};
use crate::link::{Access, Authority, Judged, Shown, Stranger};
use crate::policy::Grants;
use crate::trust::{HostKey, Rights, Stamp, Standing, Store, SystemAccounts, Trusted, Users, seen};
use crate::vouch::{self, Asker, Commands, Host};

/// Under which this machine's own connections are known.
const SELF: &str = "this machine";

pub(super) struct Keys {
    store: Store,
    /// What this process gives to others.
    serves: Grants,
    state: Mutex<State>,
}

struct State {
    stamp: Stamp,
    looked: Instant,
    key: HostKey,
    tls: Tls,
    trusted: Arc<Trusted>,
    users: Users,
    /// Counts the changes.
    version: u64,
    seen: HashMap<String, Instant>,
}

/// What the files say now.
fn read(store: &Store) -> Result<(HostKey, Tls, Trusted), String> {
    let key = store.host_key().map_err(|e| e.0)?;
    let tls = Tls::new(&key.secret).map_err(|e| e.0)?;
    Ok((key, tls, store.load().map_err(|e| e.0)?))
}

/// Says which deny rules name users that cannot be told. On a thread of its own, because the name service may hang and
/// links must not wait for it. There is at most one such thread: what is newest waits for it in its place.
fn warn_of_doubts(trusted: &Arc<Trusted>) {
    static NEWEST: Mutex<(bool, Option<Arc<Trusted>>)> = Mutex::new((false, None));
    let newest = || NEWEST.lock().expect("no holder panics: panic is abort");
    let mut slot = newest();
    slot.1 = Some(Arc::clone(trusted));
    if std::mem::replace(&mut slot.0, true) {
        return;
    }
    drop(slot);
    let run = move || {
        loop {
            let mut slot = newest();
            let Some(trusted) = slot.1.take() else {
                slot.0 = false;
                return;
            };
            drop(slot);
            let doubts = trusted.peers().iter().flat_map(|peer| peer.policy.doubts(&SystemAccounts));
            doubts.for_each(|doubt| tracing::warn!("{doubt}"));
        }
    };
    if let Err(e) = std::thread::Builder::new().name("names".into()).spawn(run) {
        newest().0 = false;
        tracing::warn!("the users that deny rules name are not checked: start a thread: {e}");
    }
}

fn users() -> Result<Users, String> {
    let dir = config_dir();
    let config = NodeConfig::load(&dir).map_err(|e| e.to_string())?;
    Users::new(&config.local.users).map_err(|e| format!("{}: [local] users: {e}", dir.join("node.toml").display()))
}

impl Keys {
    /// # Errors
    /// One line: a file that can't be used, and what to do.
    pub(super) fn open(serves: Grants) -> Result<Arc<Self>, String> {
        let store = Store::of_this_machine();
        let (key, tls, trusted) = read(&store)?;
        // Behind the reading: the key may just have been made.
        let stamp = store.stamp();
        let (looked, trusted, users) = (Instant::now(), Arc::new(trusted), users()?);
        let state = State { stamp, looked, key, tls, trusted, users, version: 0, seen: HashMap::new() };
        Ok(Arc::new(Self { store, serves, state: Mutex::new(state) }))
    }

    /// The state as last read: this touches no file, so that a worker may ask.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics: panic is abort")
    }

    /// The state, read anew if the files have changed since the last look. With a mistake in them it stays as it was.
    /// The door comes here at each of its turns.
    fn fresh(&self) -> MutexGuard<'_, State> {
        self.as_of(TRUST_LOOK)
    }

    /// As `fresh`, when the last look is older than `age`.
    fn as_of(&self, age: Duration) -> MutexGuard<'_, State> {
        let mut state = self.state();
        if state.looked.elapsed() >= age {
            let stamp = self.store.stamp();
            if stamp != state.stamp
                && let Err(e) = self.read_anew(&mut state, stamp)
            {
                tracing::error!("keys and peers stay as they were: {e}");
            }
            state.looked = Instant::now();
        }
        state
    }

    fn read_anew(&self, state: &mut State, stamp: Stamp) -> Result<(), String> {
        // A mistake is said once, not at each look.
        state.stamp = stamp;
        let (key, tls, trusted) = read(&self.store)?;
        (state.key, state.tls, state.trusted) = (key, tls, Arc::new(trusted));
        state.version += 1;
        if self.serves.count() > 0 {
            warn_of_doubts(&state.trusted);
        }
        tracing::info!("keys and peers read: {} trusted", state.trusted.peers().len());
        Ok(())
    }

    /// For SIGHUP: all of it, changed or not.
    ///
    /// # Errors
    /// One line that names the file; what it holds is as before.
    pub(super) fn reload(&self) -> Result<(), String> {
        let users = users()?;
        let mut state = self.state();
        state.users = users;
        let stamp = self.store.stamp();
        self.read_anew(&mut state, stamp)
    }

    pub(super) fn trusted(&self) -> Arc<Trusted> {
        Arc::clone(&self.state().trusted)
    }

    pub(super) fn users(&self) -> Users {
        self.state().users.clone()
    }

    /// For a server, once it may have threads; afterwards whenever the files change.
    pub(super) fn check_names(&self) {
        warn_of_doubts(&self.trusted());
    }
}

/// Whether the key is trusted, on that connection.
fn judge(trusted: &Trusted, shown: &Shown, serves: &Grants) -> Result<Judged, Stranger> {
    let (key, ip) = (shown.key, shown.ends.there.ip().to_canonical());
    if trusted.is_own(&key) {
        if shown.ends.are_one_machine() {
            return Ok(Judged::known_as(SELF));
        }
        let text = format!(
            "it has this machine's own key, {key}: two machines with one key refuse each other; remove host.key on the \
             one that is a copy, and a new one is made there"
        );
        return Err(Stranger { log: text.clone(), told: text });
    }
    let Some(peer) = trusted.find(&key) else { return Err(stranger::unknown_key(shown, ip, serves)) };
    if !peer.may_be_at(ip) {
        let log = format!("{} ({key}) may not be at {ip}: `addresses` of its file name others", peer.name);
        return Err(Stranger { log, told: format!("{key} is not trusted at {ip}") });
    }
    // Whoever has this address to itself is not somebody else here.
    let owner = trusted.at_address(ip).into_iter().find(|other| !other.addresses.is_empty());
    if let Some(owner) = owner.filter(|owner| shown.dialled && owner.name != peer.name) {
        let log = format!("{ip} is an address of {}, and the key shown is that of {}", owner.name, peer.name);
        return Err(Stranger { told: log.clone(), log });
    }
    Ok(Judged::known_as(&*peer.name))
}

impl Authority for Keys {
    fn tls(&self) -> Result<Tls, String> {
        Ok(self.fresh().tls.clone())
    }

    fn judge(&self, shown: &Shown) -> Result<Judged, Stranger> {
        let trusted = Arc::clone(&self.fresh().trusted);
        judge(&trusted, shown, &self.serves).or_else(|no| {
            // Whoever was let in a moment ago is not refused for what we saw before that.
            let now = Arc::clone(&self.as_of(Duration::ZERO).trusted);
            if Arc::ptr_eq(&now, &trusted) { Err(no) } else { judge(&now, shown, &self.serves) }
        })
    }

    fn version(&self) -> u64 {
        self.fresh().version
    }

    fn still_trusts(&self, key: &PublicKey) -> bool {
        let trusted = self.trusted();
        trusted.is_own(key) || trusted.find(key).is_some()
    }

    fn seen(&self, name: &str, key: &PublicKey, ip: IpAddr) {
        let mut state = self.state();
        let known = state.trusted.named(name).is_some();
        let lately = state.seen.get(name).is_some_and(|at| at.elapsed() < SEEN_AGAIN);
        if !known || lately {
            return;
        }
        state.seen.insert(name.to_owned(), Instant::now());
        drop(state);
        if let Err(e) = seen::note(&seen::dir(), name, ip, *key, SystemTime::now()) {
            tracing::debug!("last seen: {e}");
        }
    }
}

impl Host for Keys {
    fn may_ask(&self, uid: u32, gid: u32, groups: &[u32]) -> bool {
        self.state().users.may(uid, gid, || groups)
    }

    fn vouch(&self, binding: &Binding, bearer: &Bearer) -> Result<Vec<u8>, String> {
        Ok(voucher::vouch(&self.fresh().key.secret, binding, bearer))
    }
}

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
