//! Outlets: datagram sockets of ours that stand for far ones, and when they end.
//!
//! ```text
//!   connect():  caller's socket ⇄ outlet ═══ far server    until that socket is gone, or has another peer
//!   sendto():   caller's socket ─▶ outlet ═══ far server   one for each (socket, name, user), found again
//! ```
//!
//! A datagram socket shows nobody its end, so a thread asks the kernel, every two seconds, for each outlet whether its
//! caller's socket is still there. That socket is known by its number and cookie alone: an fd of ours would keep it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::End;
use crate::errno::{Errno, OsResult, Step};
use crate::limits::{
    ASK_STACK_BYTES, OUTLET_FRESH_MS, OUTLET_GONE_SWEEPS, OUTLET_IDLE_MS, OUTLET_LINGER_SWEEPS, OUTLET_SWEEP_MS,
    OUTLETS_MAX,
};
use crate::sys::thread_identity::Identity;
use crate::sys::unix::{self, SocketKind};
use crate::sys::unix_diag::{Diag, SocketId};

/// Where the kernel is asked about sockets: one network namespace.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) id: (u64, u64),
    pub(super) diag: Mutex<Diag>,
}

/// Whose datagrams to which name: what sendto() finds its outlet by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) caller: SocketId,
    /// One that was bound meanwhile can be answered from now on.
    pub(super) named: bool,
    pub(super) typed: Vec<u8>,
    pub(super) target: Vec<u8>,
    pub(super) who: Identity,
}

pub(super) struct Outlet {
    /// With its inode (O_PATH); `None`: connect()'s.
    pub(super) found_by: Option<(Key, OwnedFd)>,
    pub(super) caller: SocketId,
    pub(super) own: SocketId,
    pub(super) network: Arc<Network>,
    pub(super) end: End,
    pub(super) used: Instant,
    /// Sweeps in a row that have found the caller gone.
    pub(super) gone: u32,
}

pub(super) struct Outlets {
    shared: Arc<Shared>,
    sweeper: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    outlets: Vec<Outlet>,
    stopping: bool,
}

impl Outlets {
    pub(super) fn start() -> OsResult<Self> {
        let shared = Arc::<Shared>::default();
        let theirs = shared.clone();
        let named = thread::Builder::new().name("uds-sweep".into()).stack_size(ASK_STACK_BYTES);
        let sweeper = named.spawn(move || theirs.sweep()).step("start a thread")?;
        Ok(Self { shared, sweeper: Some(sweeper) })
    }

    /// A namespace's diag socket that is in use already.
    pub(super) fn network(&self, id: (u64, u64)) -> Option<Arc<Network>> {
        let state = self.shared.state();
        state.outlets.iter().find(|o| o.network.id == id).map(|o| o.network.clone())
    }

    /// The inode of the outlet that this key has, if it still works.
    pub(super) fn find(&self, key: &Key) -> Result<Option<OwnedFd>, Errno> {
        let mut state = self.shared.state();
        let Some(at) = state.outlets.iter().position(|o| o.has(key)) else { return Ok(None) };
        let outlet = &mut state.outlets[at];
        let (_, inode) = outlet.found_by.as_ref().expect("found by it");
        let probe = unix::socket(SocketKind::Datagram, true)?;
        // EPERM: it is there, and connected to its caller.
        if unix::connect_to_inode(probe.as_fd(), inode.as_fd()) == Err(Errno::ECONNREFUSED) {
            let over = state.outlets.swap_remove(at);
            drop(state);
            (over.end)(Errno::ECONNRESET);
            return Ok(None);
        }
        let inode = crate::errno::errno_result(inode.try_clone())?;
        outlet.used = Instant::now();
        Ok(Some(inode))
    }

    /// Whether one more can be had; asked before the far side is.
    pub(super) fn has_room(&self) -> bool {
        let state = self.shared.state();
        state.outlets.len() < OUTLETS_MAX || state.replaceable().is_some()
    }

    /// Keeps it until its caller is gone. Of two that were made at once for one key the first stays, so that datagrams
    /// to one name keep their order; the inode of the one that stays is returned.
    pub(super) fn add(&self, outlet: Outlet) -> Result<Option<OwnedFd>, Errno> {
        let mut state = self.shared.state();
        let rival = outlet.found_by.as_ref().and_then(|(key, _)| state.outlets.iter().find(|o| o.has(key)));
        if let Some((_, inode)) = rival.and_then(|o| o.found_by.as_ref()) {
            let inode = inode.try_clone();
            drop(state);
            (outlet.end)(Errno::ECONNRESET);
            return crate::errno::errno_result(inode).map(Some);
        }
        let mut displaced = None;
        if state.outlets.len() >= OUTLETS_MAX {
            let Some(at) = state.replaceable().filter(|_| !state.stopping) else {
                drop(state);
                warn!("refused: {OUTLETS_MAX} datagram sockets at once");
                (outlet.end)(Errno::ECONNRESET);
                return Err(Errno::ENOBUFS);
            };
            displaced = Some(state.outlets.swap_remove(at));
        }
        let inode = outlet.found_by.as_ref().map(|(_, inode)| inode.try_clone()).transpose();
        state.outlets.push(outlet);
        drop(state);
        self.shared.changed.notify_one();
        if let Some(displaced) = displaced {
            (displaced.end)(Errno::ECONNRESET);
        }
        crate::errno::errno_result(inode)
    }

    pub(super) fn end_all(&self) {
        let all = std::mem::take(&mut self.shared.state().outlets);
        for outlet in all {
            (outlet.end)(Errno::ECONNRESET);
        }
    }
}

impl Drop for Outlets {
    fn drop(&mut self) {
        self.shared.state().stopping = true;
        self.shared.changed.notify_one();
        if let Some(sweeper) = self.sweeper.take() {
            sweeper.join().expect("a panic ends the process");
        }
        self.end_all();
    }
}

impl Outlet {
    fn has(&self, key: &Key) -> bool {
        self.found_by.as_ref().is_some_and(|(own, _)| own == key)
    }

    /// Nobody can answer its caller, and nobody has sent by it for long.
    fn is_idle(&self) -> bool {
        let silent = self.found_by.as_ref().is_some_and(|(key, _)| !key.named);
        silent && self.used.elapsed() >= Duration::from_millis(OUTLET_IDLE_MS)
    }
}

impl State {
    /// The longest unused one that sendto() would make again.
    fn replaceable(&self) -> Option<usize> {
        let fresh = Duration::from_millis(OUTLET_FRESH_MS);
        let old = self.outlets.iter().enumerate().filter(|(_, o)| o.found_by.is_some() && o.used.elapsed() >= fresh);
        old.min_by_key(|(_, o)| o.used).map(|(at, _)| at)
    }
}

/// What a sweep has seen of one outlet.
struct Look {
    own: SocketId,
    /// The outlet itself is gone: its stream has ended.
    over: bool,
    caller_gone: bool,
    /// Something in it has not been taken yet.
    holds: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a panic ends the process")
    }

    fn sweep(&self) {
        let mut state = self.state();
        while !state.stopping {
            if state.outlets.is_empty() {
                state = self.changed.wait(state).expect("a panic ends the process");
                continue;
            }
            let due = Instant::now() + Duration::from_millis(OUTLET_SWEEP_MS);
            while !state.stopping && Instant::now() < due {
                let left = due.saturating_duration_since(Instant::now());
                state = self.changed.wait_timeout(state, left).expect("a panic ends the process").0;
            }
            let all: Vec<_> = state.outlets.iter().map(Question::of).collect();
            drop(state);
            let looks: Vec<Look> = all.iter().filter_map(Question::ask).collect();
            state = self.state();
            let over = state.judge(&looks);
            drop(state);
            for outlet in over {
                debug!(caller = outlet.caller.ino, "a datagram stream ends");
                (outlet.end)(Errno::ECONNRESET);
            }
            state = self.state();
        }
    }
}

impl State {
    /// Takes out what has ended.
    fn judge(&mut self, looks: &[Look]) -> Vec<Outlet> {
        let ended = |outlet: &mut Outlet| {
            let Some(look) = looks.iter().find(|look| look.own == outlet.own) else { return false };
            outlet.gone = if look.caller_gone { outlet.gone + 1 } else { 0 };
            let least = if look.holds { OUTLET_LINGER_SWEEPS } else { OUTLET_GONE_SWEEPS };
            look.over || outlet.gone >= least || !look.holds && outlet.is_idle()
        };
        self.outlets.extract_if(.., ended).collect()
    }
}

struct Question {
    network: Arc<Network>,
    own: SocketId,
    caller: SocketId,
    connected: bool,
}

impl Question {
    fn of(outlet: &Outlet) -> Self {
        let connected = outlet.found_by.is_none();
        Self { network: outlet.network.clone(), own: outlet.own, caller: outlet.caller, connected }
    }

    /// `None`: the kernel could not be asked, so that nothing is known.
    fn ask(&self) -> Option<Look> {
        let mut diag = self.network.diag.lock().expect("a panic ends the process");
        let seen = diag.find(self.own).and_then(|own| Ok((own, diag.find(self.caller)?)));
        let (own, caller) =
            seen.map_err(|errno| warn!(%errno, "sock_diag: ends of datagram sockets go unseen")).ok()?;
        let elsewhere = |peer: Option<u32>| self.connected && peer != Some(self.own.ino);
        Some(Look {
            own: self.own,
            over: own.is_none(),
            caller_gone: caller.is_none_or(|caller| elsewhere(caller.peer)),
            holds: own.is_some_and(|own| own.queued > 0),
        })
    }
}
