//! Replaces lost links. The node that dialled the session dials again at once. The other node also dials, one second
//! later, if it has an address for the peer: that finds out whether the peer's process still exists.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Node;
use super::admission::Admission;
use crate::limits::{HELLO_DEADLINE_MS, NOBODY_MS, RESUME_FIRST_MS, RESUME_MAX_MS, RESUME_OTHER_MS};
use crate::link::conn::{Conn, dial};
use crate::link::worker::inbox::{Cmd, PairRef};
use crate::link::worker::peer::Peer;
use crate::wire::features::RESUMES;
use crate::wire::hello::{Hello, Lane, Role};

/// A lane without a link.
struct Lost {
    session: u64,
    role: Role,
    peer: Arc<Peer>,
    /// By this node.
    dialled: bool,
    addr: String,
    pair: PairRef,
    hello: Hello,
}

impl Node {
    /// Called on a worker.
    pub(super) fn on_cut(&self, pair: u64, lane: Lane) {
        let Some(lost) = self.lost(pair, lane) else { return };
        let node = self.clone();
        let run = move || node.dial_again(&lost);
        if let Err(e) = std::thread::Builder::new().name("dialer".into()).spawn(run) {
            tracing::warn!("no thread to dial again: {e}");
        }
    }

    fn lost(&self, pair: u64, lane: Lane) -> Option<Lost> {
        let mut state = self.state();
        state.lost.insert((pair, lane));
        let at = |s: &&super::Session| s.pairs.iter().flatten().any(|p| p.pair == pair);
        let session = state.sessions.iter().find(at)?;
        let (dialled, other) = (session.dialled, session.role == Role::Peer && state.expected.is(&session.peer));
        let addr = if dialled { session.addr.clone()? } else { state.dials.clone().filter(|_| other)? };
        let index = session.pairs.iter().position(|p| p.as_ref().is_some_and(|p| p.pair == pair))?;
        let (id, role) = (session.id, session.role);
        let mut hello = self.hello(role, lane, id, u16::try_from(index).expect("at most LINKS_MAX"));
        hello.features |= RESUMES;
        let peer = Arc::clone(&session.peer);
        Some(Lost { session: id, role, peer, dialled, addr, pair: session.pairs[index].clone()?, hello })
    }

    /// Dials until the lane has a link, the peer no longer has the session, or this node has ended it.
    fn dial_again(&self, lost: &Lost) {
        let mut pause = Duration::from_millis(RESUME_FIRST_MS);
        if !lost.dialled {
            self.pause(Duration::from_millis(RESUME_OTHER_MS));
        }
        let mut said = String::new();
        let mut nobody: Option<Instant> = None;
        while self.has(lost) {
            let begun = Instant::now();
            match dial(&lost.addr, &lost.hello, Duration::from_millis(HELLO_DEADLINE_MS), self.access()) {
                Ok(conn) => return self.go_on(conn, lost),
                Err(e) if e.refused || e.duplicate => return end(lost, &e.text),
                // ECONNREFUSED comes from a live machine: the process that held the other half of the session has ended.
                Err(e) if e.nobody && nobody.get_or_insert(begun).elapsed() > Duration::from_millis(NOBODY_MS) => {
                    return end(lost, &e.text);
                }
                Err(e) if e.text != said => {
                    tracing::info!(peer = %lost.peer, "no link yet: {e}; trying again");
                    said = e.text;
                }
                Err(e) if !e.nobody => nobody = None,
                Err(_) => {}
            }
            self.pause(pause.saturating_sub(begun.elapsed()).max(Duration::from_millis(RESUME_FIRST_MS)));
            pause = (pause * 2).min(Duration::from_millis(RESUME_MAX_MS));
        }
    }

    fn has(&self, lost: &Lost) -> bool {
        let state = self.state();
        let mut sessions = state.sessions.iter().filter(|s| s.dialled == lost.dialled && s.role == lost.role);
        let mut is_there =
            || sessions.any(|s| s.id == lost.session && s.pairs.iter().flatten().any(|p| p.pair == lost.pair.pair));
        state.lost.contains(&(lost.pair.pair, lost.hello.lane)) && is_there()
    }

    fn go_on(&self, conn: Conn, lost: &Lost) {
        let peer = Peer { known: conn.known.clone(), addr: conn.peer_addr, node: conn.peer.node, role: lost.role };
        if !lost.peer.is(&peer) {
            return end(lost, "another node answers there");
        }
        let placed = self.place(&mut self.state(), &lost.hello, peer, true);
        let Some(link @ Admission::Link { .. }) = placed else { return };
        let (fd, guard) = conn.into_parts();
        self.hand_over(link, fd, guard);
    }
}

fn end(lost: &Lost, why: &str) {
    lost.pair.inbox.push(Cmd::End { pair: lost.pair.pair, reason: format!("cannot resume: {why}") });
}
