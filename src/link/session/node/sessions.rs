//! The sessions of a node: how they begin, and what their ends mean.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Node;
use super::admission::{Admission, begins_session};
use crate::auth::PublicKey;
use crate::limits::REOPEN_MS;
use crate::link::conn::Conn;
use crate::link::session::standing::Expected;
use crate::link::worker::guard::Guard;
use crate::link::worker::inbox::{Cmd, PairRef};
use crate::link::worker::links::End;
use crate::link::worker::peer::Peer;
use crate::wire::hello::{Hello, Lane, Role};

pub(super) struct Session {
    pub(super) id: u64,
    pub(super) role: Role,
    pub(super) peer: Arc<Peer>,
    /// By this node, and where.
    pub(super) dialled: bool,
    pub(super) addr: Option<String>,
    pub(super) pairs: Vec<Option<PairRef>>,
    /// The survivor of two takes new streams; the other one only finishes what it has.
    pub(super) retired: bool,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) sessions: Vec<Session>,
    /// Whose sessions carry what programs of this machine ask for.
    pub(super) expected: Expected,
    pub(super) next_pair: u64,
    /// When the last session that programs here used had ended in an orderly way.
    pub(super) drained: Option<Instant>,
    pub(super) leaving: bool,
    /// Where this node dials its peer.
    pub(super) dials: Option<String>,
    /// Lanes without a link, by their pair.
    pub(super) lost: HashSet<(u64, Lane)>,
}

impl Node {
    /// A link of a dialled session. Returns whether it may live: the peer may have dialled at the same moment.
    pub(in crate::link::session) fn dialled(&self, conn: Conn, hello: &Hello, addr: &str) -> bool {
        let peer = Peer { known: conn.known.clone(), addr: conn.peer_addr, node: conn.peer.node, role: hello.role };
        // The session is the dialler's; what the peer grants is in its own words.
        let Hello { initial_window, record_max, features, .. } = conn.peer;
        let theirs = Hello { initial_window, record_max, features, ..hello.clone() };
        let mut state = self.state();
        let new = !state.sessions.iter().any(|s| s.dialled && s.is_of(hello.session, &peer));
        if new && (state.leaving || !begins_session(hello)) {
            // This node, or the session, has ended since.
            return false;
        }
        if hello.role == Role::Peer {
            state.expected.learn(peer.known.key);
        }
        let lives = !new || hello.role != Role::Peer || self.survives(&mut state, &peer, true);
        let Some(admission) = self.place(&mut state, &theirs, peer, true) else { return false };
        let session = state.sessions.iter_mut().find(|s| s.dialled && s.id == hello.session);
        if let Some(session) = session {
            session.addr.get_or_insert_with(|| addr.to_owned());
        }
        drop(state);
        let Admission::Link { pair, .. } = admission else { unreachable!("file links never come here") };
        let (fd, guard) = conn.into_parts();
        self.hand_over(admission, fd, guard);
        if !lives {
            // The peer may use it already: it is ended in the same orderly way as one that has lived.
            self.on_peer_leaving(pair);
        }
        lives
    }

    pub(in crate::link::session) fn hand_over(&self, admission: Admission, fd: OwnedFd, guard: Guard) {
        let Admission::Link { pair, worker, options, peer, lane, begins, resumes } = admission else {
            unreachable!("file links never come here")
        };
        self.state().lost.remove(&(pair, lane));
        self.0.inboxes[worker].push(Cmd::Link { pair, lane, fd, guard, options, peer, begins, resumes });
        // Retired since it was placed: the order to leave may have come too early for the worker.
        let retired = |s: &Session| s.retired && s.has_pair(pair);
        if self.state().sessions.iter().any(retired) {
            self.0.inboxes[worker].push(Cmd::Leave { pair });
        }
    }

    /// The peer takes no new streams on one pair of a session, and so on none.
    pub(super) fn on_peer_leaving(&self, pair: u64) {
        let mut state = self.state();
        let session = state.sessions.iter_mut().find(|s| s.has_pair(pair));
        if let Some(session) = session
            && !session.retired
        {
            session.retire();
            self.0.changed.notify_all();
        }
    }

    /// One pair is over: its session is.
    pub(super) fn on_pair_end(&self, pair: u64, why: &End) {
        let mut state = self.state();
        let Some(at) = state.sessions.iter().position(|s| s.has_pair(pair)) else { return };
        if state.sessions[at].retired && *why == End::Drained {
            // A retired session's pairs end one by one, each with its last stream.
            state.sessions[at]
                .pairs
                .iter_mut()
                .filter(|p| p.as_ref().is_some_and(|p| p.pair == pair))
                .for_each(|p| *p = None);
            if state.sessions[at].pairs.iter().any(Option::is_some) {
                return;
            }
        }
        let session = state.sessions.swap_remove(at);
        state.lost.retain(|(lost, _)| *lost != pair && !session.has_pair(*lost));
        for other in session.pairs.iter().flatten().filter(|p| p.pair != pair) {
            other.inbox.push(Cmd::End { pair: other.pair, reason: format!("another link: {why}") });
        }
        if session.retired && session.role == Role::Peer && state.expected.is(&session.peer) {
            state.drained = Some(Instant::now());
        }
        let missed = session.role == Role::Peer && !session.retired && !state.leaving;
        if missed || matches!(why, End::Broken(_)) {
            tracing::warn!(peer = %session.peer, "session over: {why}");
        } else {
            tracing::debug!(peer = %session.peer, "session over: {why}");
        }
        self.0.changed.notify_all();
    }

    /// Whether the session is still there. With `None`: whether any session with a peer node is.
    pub(in crate::link) fn has_session(&self, id: Option<u64>) -> bool {
        let state = self.state();
        state.sessions.iter().any(|s| !s.retired && id.map_or(s.role == Role::Peer, |id| s.id == id))
    }

    #[cfg(test)]
    pub(in crate::link) fn sessions(&self) -> Vec<u64> {
        self.state().sessions.iter().map(|s| s.id).collect()
    }

    /// This node dials that peer: its sessions, and no other peer's, are for programs here.
    pub(in crate::link::session) fn expect(&self, addr: &str) {
        let ips = std::net::ToSocketAddrs::to_socket_addrs(addr);
        let mut state = self.state();
        state.expected.at(ips.into_iter().flatten().map(|a| a.ip()));
        state.dials = Some(addr.to_owned());
    }

    /// The peer that this node dials has proven this key and has a session with this node already, from wherever it has
    /// dialled. Returns whether that session is here.
    pub(in crate::link::session) fn learn(&self, key: Option<PublicKey>) -> bool {
        let mut state = self.state();
        state.expected.learn(key);
        self.0.changed.notify_all();
        state.has_expected()
    }
}

impl State {
    /// Whether another session may come at any moment: of two born at once one ends, perhaps before this node knows the
    /// other one. Nothing comes in place of what ends because this node does.
    pub(super) fn is_between_sessions(&self) -> bool {
        let retired = |s: &Session| s.role == Role::Peer && s.retired && self.expected.is(&s.peer);
        let lately = self.drained.is_some_and(|at| at.elapsed() < Duration::from_millis(REOPEN_MS));
        !self.leaving && (lately || self.sessions.iter().any(retired))
    }

    /// Whether programs here reach the peer that this node dials.
    pub(super) fn has_expected(&self) -> bool {
        self.sessions.iter().any(|s| s.takes_streams() && self.expected.is(&s.peer))
    }

    pub(super) fn peers(&self) -> Vec<Arc<Peer>> {
        let up = self.sessions.iter().filter(|s| s.takes_streams());
        up.map(|s| Arc::clone(&s.peer)).collect()
    }
}

impl Peer {
    /// The same process, and it has proven the same key: another one may only say that it is this node.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.node == other.node && self.known.key == other.known.key
    }
}

impl Session {
    pub(super) fn is_of(&self, id: u64, peer: &Peer) -> bool {
        self.id == id && self.peer.is(peer)
    }

    pub(super) fn has_pair(&self, pair: u64) -> bool {
        self.pairs.iter().flatten().any(|p| p.pair == pair)
    }

    /// No new streams on it; it ends with its last one.
    pub(super) fn retire(&mut self) {
        self.retired = true;
        for pair in self.pairs.iter().flatten() {
            pair.inbox.push(Cmd::Leave { pair: pair.pair });
        }
    }

    pub(super) fn takes_streams(&self) -> bool {
        self.role == Role::Peer && !self.retired
    }

    pub(super) fn dialled_client(&self) -> bool {
        self.role == Role::Client && self.dialled
    }
}
