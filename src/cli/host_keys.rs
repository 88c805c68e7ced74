//! This machine's key and whom it trusts: read on threads that may wait for a file, published for those that may not.
//!
//! ```text
//!   files ──stat, read──▶ look_since: thread `keys`, a dialler, SIGHUP
//!                             │ swap
//!                             ▼
//!                      Arc<Published> ◀──clone── workers, the acceptor: they never wait for a file
//! ```
//!
//! The lock of what is published is held for a clone or a swap alone. Whoever reads files holds another one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Instant, SystemTime};

use super::stranger;
use crate::auth::{Bearer, Binding, PublicKey, Tls, voucher};
use crate::config::{NodeConfig, config_dir};
use crate::errno::{OsResult, Step};
use crate::limits::{PEERS_MAX, SEEN_AGAIN, TRUST_LOOK, TRUST_LOOK_APART};
use crate::link::{Authority, Judged, Shown, Stranger};
use crate::policy::Grants;
use crate::trust::{HostKey, Stamp, Store, SystemAccounts, Trusted, Users, seen};
use crate::vouch::Host;

/// Under which this machine's own connections are known.
const SELF: &str = "this machine";

pub(super) struct Keys {
    store: Store,
    /// What this process gives to others.
    serves: Grants,
    /// Locked for a clone or a swap alone, so that a worker may ask.
    published: Mutex<Arc<Published>>,
    /// Locked while files are read.
    reading: Mutex<Reading>,
    /// When the last look that has ended began.
    looked: Mutex<Instant>,
    /// Somebody wants a look sooner than after TRUST_LOOK.
    wanted: Mutex<bool>,
    wake: Condvar,
    /// When each peer was last noted as seen.
    noted: Mutex<HashMap<String, Instant>>,
    /// To the thread that writes those notes; there since `watch`.
    notes: OnceLock<SyncSender<Note>>,
}

/// What the files said when they were last read.
#[derive(Clone)]
struct Published {
    key: Arc<HostKey>,
    tls: Tls,
    trusted: Arc<Trusted>,
    users: Users,
    /// Counts the changes.
    version: u64,
}

struct Reading {
    stamp: Stamp,
    begun: Instant,
}

struct Note {
    name: String,
    key: PublicKey,
    ip: IpAddr,
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

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics: panic is abort")
}

impl Keys {
    /// # Errors
    /// One line: a file that can't be used, and what to do.
    pub(super) fn open(serves: Grants) -> Result<Arc<Self>, String> {
        Self::of(Store::of_this_machine(), users()?, serves)
    }

    fn of(store: Store, users: Users, serves: Grants) -> Result<Arc<Self>, String> {
        // Makes the key if there is none. What changes behind the stamp is then seen by the next look.
        store.host_key().map_err(|e| e.0)?;
        let (begun, stamp) = (Instant::now(), store.stamp());
        let (key, tls, trusted) = read(&store)?;
        let (key, trusted) = (Arc::new(key), Arc::new(trusted));
        Ok(Arc::new(Self {
            store,
            serves,
            published: Mutex::new(Arc::new(Published { key, tls, trusted, users, version: 0 })),
            reading: Mutex::new(Reading { stamp, begun }),
            looked: Mutex::new(begun),
            wanted: Mutex::new(false),
            wake: Condvar::new(),
            noted: Mutex::default(),
            notes: OnceLock::new(),
        }))
    }

    /// For a daemon: looks at the files on a thread of its own from now on, so that nobody else has to.
    pub(super) fn watch(self: &Arc<Self>) -> OsResult<()> {
        // One note a peer may wait; what does not fit is left out, since nothing depends on it.
        let (notes, taken) = mpsc::sync_channel(PEERS_MAX);
        if self.notes.set(notes).is_err() {
            return Ok(());
        }
        let watched = Arc::downgrade(self);
        let watch = move || keep_looking(&watched);
        std::thread::Builder::new().name("keys".into()).spawn(watch).step("start a thread")?;
        std::thread::Builder::new().name("seen".into()).spawn(move || write_notes(&taken)).step("start a thread")?;
        Ok(())
    }

    fn is_watched(&self) -> bool {
        self.notes.get().is_some()
    }

    /// What was last read. Touches no file.
    fn now(&self) -> Arc<Published> {
        Arc::clone(&locked(&self.published))
    }

    fn publish(&self, change: impl FnOnce(&mut Published)) {
        // Only whoever holds `reading` publishes, so that nothing is lost between the two locks.
        let mut next = Published::clone(&self.now());
        change(&mut next);
        *locked(&self.published) = Arc::new(next);
    }

    /// Reads the files anew if they have changed, unless a look has begun after `moment`. With a mistake in them all stays
    /// as it was. Waits for files: not for a worker, nor for the acceptor.
    fn look_since(&self, moment: Instant) {
        let mut reading = locked(&self.reading);
        if reading.begun > moment {
            return;
        }
        reading.begun = Instant::now();
        let stamp = self.store.stamp();
        if stamp != reading.stamp
            && let Err(e) = self.read_anew(&mut reading, stamp)
        {
            tracing::error!("keys and peers stay as they were: {e}");
        }
        *locked(&self.looked) = reading.begun;
    }

    fn read_anew(&self, reading: &mut Reading, stamp: Stamp) -> Result<(), String> {
        // A mistake is said once, not at each look.
        reading.stamp = stamp;
        let (key, tls, trusted) = read(&self.store)?;
        let (key, trusted) = (Arc::new(key), Arc::new(trusted));
        if self.serves.count() > 0 {
            warn_of_doubts(&trusted);
        }
        tracing::info!("keys and peers read: {} trusted", trusted.peers().len());
        self.publish(|now| {
            (now.key, now.tls, now.trusted) = (key, tls, trusted);
            now.version += 1;
        });
        Ok(())
    }

    /// For SIGHUP: all of it, changed or not.
    ///
    /// # Errors
    /// One line that names the file; what it holds is as before.
    pub(super) fn reload(&self) -> Result<(), String> {
        let users = users()?;
        let mut reading = locked(&self.reading);
        self.publish(|now| now.users = users);
        let stamp = self.store.stamp();
        self.read_anew(&mut reading, stamp)
    }

    /// For a dialling thread, which may wait: a program has no thread that looks for it.
    fn for_dialler(&self) -> Arc<Published> {
        if !self.is_watched() {
            let now = Instant::now();
            self.look_since(now.checked_sub(TRUST_LOOK).unwrap_or(now));
        }
        self.now()
    }

    pub(super) fn trusted(&self) -> Arc<Trusted> {
        Arc::clone(&self.now().trusted)
    }

    pub(super) fn users(&self) -> Users {
        self.now().users.clone()
    }

    /// For a server, once it may have threads; afterwards whenever the files change.
    pub(super) fn check_names(&self) {
        warn_of_doubts(&self.trusted());
    }
}

/// Until the keys are dropped.
fn keep_looking(watched: &Weak<Keys>) {
    while let Some(keys) = watched.upgrade() {
        let calm = |wanted: &mut bool| !*wanted;
        let waited = keys.wake.wait_timeout_while(locked(&keys.wanted), TRUST_LOOK, calm);
        *waited.expect("no holder panics: panic is abort").0 = false;
        keys.look_since(Instant::now());
        // However many strangers come, the files are not looked at without a break.
        std::thread::sleep(TRUST_LOOK_APART);
    }
}

/// On a thread of its own: each note waits for the disk.
fn write_notes(notes: &Receiver<Note>) {
    notes.iter().for_each(|note| note.write());
}

impl Note {
    fn write(&self) {
        if let Err(e) = seen::note(&seen::dir(), &self.name, self.ip, self.key, SystemTime::now()) {
            tracing::debug!("last seen: {e}");
        }
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
        Ok(self.for_dialler().tls.clone())
    }

    fn judge(&self, shown: &Shown) -> Result<Judged, Stranger> {
        let (asked, before) = (Instant::now(), Arc::clone(&self.for_dialler().trusted));
        judge(&before, shown, &self.serves).or_else(|no| {
            // Whoever was let in a moment ago is not refused for what we saw before that.
            self.look_since(asked);
            let now = self.trusted();
            if Arc::ptr_eq(&now, &before) { Err(no) } else { judge(&now, shown, &self.serves) }
        })
    }

    fn judge_now(&self, shown: &Shown) -> Result<Judged, Stranger> {
        judge(&self.trusted(), shown, &self.serves)
    }

    fn look_again(&self) -> bool {
        *locked(&self.wanted) = true;
        self.wake.notify_one();
        self.is_watched()
    }

    fn has_looked_since(&self, moment: Instant) -> bool {
        *locked(&self.looked) > moment
    }

    fn version(&self) -> u64 {
        self.now().version
    }

    fn still_trusts(&self, key: &PublicKey) -> bool {
        let trusted = self.trusted();
        trusted.is_own(key) || trusted.find(key).is_some()
    }

    fn seen(&self, name: &str, key: &PublicKey, ip: IpAddr) {
        if self.trusted().named(name).is_none() {
            return;
        }
        let mut noted = locked(&self.noted);
        if noted.get(name).is_some_and(|at| at.elapsed() < SEEN_AGAIN) {
            return;
        }
        noted.insert(name.to_owned(), Instant::now());
        drop(noted);
        let note = Note { name: name.to_owned(), key: *key, ip };
        match self.notes.get() {
            Some(notes) => drop(notes.try_send(note)),
            None => note.write(),
        }
    }
}

impl Host for Keys {
    fn may_ask(&self, uid: u32, gid: u32, groups: &[u32]) -> bool {
        self.now().users.may(uid, gid, || groups)
    }

    fn vouch(&self, binding: &Binding, bearer: &Bearer) -> Result<Vec<u8>, String> {
        Ok(voucher::vouch(&self.now().key.secret, binding, bearer))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::auth::{KeyLine, SecretKey};
    use crate::link::Ends;
    use crate::sys::tempdir::PrivateDir;

    fn keys(dir: &PrivateDir) -> Arc<Keys> {
        Keys::of(Store::new(dir.path()), Users::default(), Grants::default()).unwrap()
    }

    fn shown(key: PublicKey) -> Shown {
        let ends = Ends { here: "10.0.0.1:1".parse().unwrap(), there: "10.0.0.2:2".parse().unwrap() };
        Shown { key, ends, binding: [0; 32], dialled: false, role: None }
    }

    fn trust(dir: &PrivateDir, name: &str, key: PublicKey) {
        let peers = dir.path().join("peers.d");
        std::fs::create_dir_all(&peers).unwrap();
        let line = KeyLine { key, name: name.into() };
        std::fs::write(peers.join(format!("{name}.toml")), format!("keys = [\"{line}\"]\n")).unwrap();
    }

    #[test]
    fn nobody_who_asks_for_what_is_known_waits_for_who_reads() {
        let dir = PrivateDir::new("keys").unwrap();
        let keys = keys(&dir);
        keys.watch().unwrap();
        let (own, key) = (keys.now().key.public(), SecretKey::generate().public());
        // As while a file of /etc/farside does not answer.
        let reading = locked(&keys.reading);
        let (tell, told) = mpsc::channel();
        let theirs = Arc::clone(&keys);
        std::thread::spawn(move || {
            assert!(theirs.tls().is_ok() && theirs.version() == 0 && theirs.still_trusts(&own));
            assert!(theirs.judge_now(&shown(key)).is_err() && theirs.look_again());
            assert!(!theirs.has_looked_since(Instant::now()));
            theirs.seen("nobody", &key, "10.0.0.2".parse().unwrap());
            tell.send(()).unwrap();
        });
        told.recv_timeout(Duration::from_secs(5)).expect("nobody waits");
        drop(reading);
    }

    #[test]
    fn whoever_was_trusted_a_moment_ago_is_let_in() {
        let dir = PrivateDir::new("keys").unwrap();
        let keys = keys(&dir);
        keys.watch().unwrap();
        for name in ["a", "b"] {
            let key = SecretKey::generate().public();
            trust(&dir, name, key);
            assert!(keys.judge(&shown(key)).is_ok(), "one that may wait reads anew before it says no");
        }
        let key = SecretKey::generate().public();
        let asked = Instant::now();
        trust(&dir, "c", key);
        assert!(keys.look_again());
        while !keys.has_looked_since(asked) {
            assert!(asked.elapsed() < Duration::from_secs(5), "the look that was asked for");
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(keys.judge_now(&shown(key)).is_ok());
        assert_eq!(keys.version(), 3);
    }
}
