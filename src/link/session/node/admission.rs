//! What a HELLO gets: a link of a session, a file link, or a no and why.
//!
//! ```text
//!   Files ──▶ anything to mount? a place of its key's? ──▶ file link
//!   Peer, Client ──▶ of a session that is here ──────────────────▶ link
//!          └── begins one ──▶ anything it may do, or to be reached for? ──▶ room for its key? ──▶ the survivor of two? ──▶ link
//! ```
//!
//! Permission is asked before anything is counted, started or kept.

use std::sync::Arc;

use super::super::file_links::FilePlace;
use super::{Node, Session, State};
use crate::limits::{LINKS_MAX, SESSIONS_A_KEY, SESSIONS_MAX};
use crate::link::worker::inbox::PairRef;
use crate::link::worker::peer::{Known, Peer};
use crate::mux::Options;
use crate::wire::features::Agreed;
use crate::wire::hello::{Hello, Lane, Role, Verdict};

/// What becomes of a connection after its HELLO was answered with Ok.
#[derive(Debug)]
pub(in crate::link) enum Admission {
    /// `begins`: the pair is new, and the worker knows nothing of it yet.
    Link {
        pair: u64,
        worker: usize,
        options: Options,
        peer: Arc<Peer>,
        lane: Lane,
        begins: bool,
        resumes: bool,
    },
    Files(FilePlace),
}

impl Node {
    /// What a dialler's HELLO gets.
    ///
    /// # Errors
    /// The verdict to answer, and the reason.
    pub(in crate::link) fn admit(&self, hello: &Hello, peer: Peer) -> Result<Admission, (Verdict, String)> {
        if hello.role == Role::Files {
            return self.admit_files(&peer.known).map_err(|reason| (Verdict::Refused, reason));
        }
        if usize::from(hello.index) >= LINKS_MAX || hello.workers == 0 {
            return Err((Verdict::Refused, format!("link {} of {} workers", hello.index, hello.workers)));
        }
        let mut state = self.state();
        if state.leaving {
            return Err((Verdict::Refused, "this node is shutting down".into()));
        }
        if !state.sessions.iter().any(|s| s.is_of(hello.session, &peer)) {
            if !begins_session(hello) {
                // Of two sessions born at once, a further link of the one that has just ended.
                let rival = state.sessions.iter().any(|s| s.role == hello.role && s.peer.is(&peer));
                let verdict = if rival && hello.role == Role::Peer { Verdict::Duplicate } else { Verdict::Refused };
                return Err((verdict, "a link of a session that is not (or no longer) here".into()));
            }
            if hello.node == self.0.id {
                return Err((Verdict::Refused, "this is the same process; name another machine as the peer".into()));
            }
            // One that programs here are to reach has a session, whatever it may do here itself.
            if hello.role == Role::Client || !state.expected.is(&peer) {
                self.0.handler.admits(&peer).map_err(|reason| (Verdict::Refused, reason))?;
            }
            state.has_room_for(&peer).map_err(|reason| (Verdict::Refused, reason))?;
            if hello.role == Role::Peer && !self.survives(&mut state, &peer, false) {
                return Err((Verdict::Duplicate, String::new()));
            }
        }
        self.place(&mut state, hello, peer, false).ok_or((Verdict::Duplicate, String::new()))
    }

    fn admit_files(&self, known: &Known) -> Result<Admission, String> {
        let files = self.0.files.as_ref().ok_or("this node serves no directories")?;
        files.admits(known)?;
        let place = self.0.file_links.take_place(known);
        place.map(Admission::Files).map_err(|full| format!("too many mounts of this machine: {full}"))
    }

    /// Of two sessions between the same nodes the one dialled by the smaller id survives; both ends judge alike. Returns
    /// whether a new one, dialled by this node or by the peer, may live, and retires the other one if so.
    pub(super) fn survives(&self, state: &mut State, peer: &Peer, dialled: bool) -> bool {
        let rival = |s: &&mut Session| s.role == Role::Peer && s.peer.is(peer) && s.dialled != dialled && !s.retired;
        let Some(rival) = state.sessions.iter_mut().find(rival) else { return true };
        if dialled != (self.0.id < peer.node) {
            return false;
        }
        rival.retire();
        true
    }

    /// `None`: the session takes no new pairs any more. One that this node has dialled is taken, and left in the orderly
    /// way: the peer has it already, and would take a link that just closes for the end of the whole session.
    pub(super) fn place(&self, state: &mut State, hello: &Hello, peer: Peer, dialled: bool) -> Option<Admission> {
        let at = state.sessions.iter().position(|s| s.is_of(hello.session, &peer));
        if at.is_none() && hello.resumes() {
            return None;
        }
        let at = at.unwrap_or_else(|| {
            let (id, role) = (hello.session, hello.role);
            match role {
                Role::Peer => tracing::info!(%peer, dialled, "session up"),
                _ => tracing::debug!(%peer, "client session up"),
            }
            let peer = Arc::new(peer);
            state.sessions.push(Session { id, role, peer, dialled, addr: None, pairs: Vec::new(), retired: false });
            state.sessions.len() - 1
        });
        let index = usize::from(hello.index);
        let worker = match hello.role {
            // Each end deals the session's links over its own workers.
            Role::Peer => index % self.0.inboxes.len(),
            _ => usize::try_from(hello.session % self.0.inboxes.len() as u64).expect("a small remainder"),
        };
        let next = state.next_pair;
        let session = &mut state.sessions[at];
        if session.pairs.len() <= index {
            session.pairs.resize_with(index + 1, || None);
        }
        let begins = session.pairs[index].is_none();
        // LAT is dialled first: a BULK link without it is of a pair that has ended.
        if begins && (hello.lane != Lane::Lat || session.retired && !dialled || hello.resumes()) {
            return None;
        }
        let inbox = &self.0.inboxes[worker];
        let pair = session.pairs[index].get_or_insert_with(|| PairRef { inbox: Arc::clone(inbox), pair: next }).pair;
        let peer = Arc::clone(&session.peer);
        state.next_pair += u64::from(begins);
        let (peer_window, agreed) = (hello.initial_window, Agreed::with(hello, self.features(), self.workers()));
        let options = Options { peer_window, agreed, ..Options::new(dialled) };
        self.0.changed.notify_all();
        let resumes = hello.resumes();
        Some(Admission::Link { pair, worker, options, peer, lane: hello.lane, begins, resumes })
    }
}

impl State {
    /// Whether this key may have one more session. Nobody has a key in plaintext.
    fn has_room_for(&self, peer: &Peer) -> Result<(), String> {
        let of_key = |s: &&Session| s.peer.known.key.is_some() && s.peer.known.key == peer.known.key;
        if self.sessions.iter().filter(of_key).count() >= SESSIONS_A_KEY {
            return Err(format!("{SESSIONS_A_KEY} sessions of this machine are the most"));
        }
        if self.sessions.len() >= SESSIONS_MAX {
            return Err(format!("{SESSIONS_MAX} sessions of all machines are the most"));
        }
        Ok(())
    }
}

/// A session is born with the LAT link of its first pair.
pub(super) fn begins_session(hello: &Hello) -> bool {
    (hello.index, hello.lane) == (0, Lane::Lat) && !hello.resumes()
}
