//! Replaces lost links. The node that dialled the session dials again at once. The other node also dials, one second
//! later, if it has an address for the peer: that finds out whether the peer's process still exists.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Node;
use super::admission::Admission;
use crate::limits::{HELLO_DEADLINE_MS, NOBODY_MS, RESUME_FIRST_MS, RESUME_MAX_MS, RESUME_OTHER_MS};
use crate::link::conn::{Conn, Failure, dial};
use crate::link::session::backoff::Backoff;
use crate::link::worker::inbox::{Cmd, PairRef};
use crate::link::worker::peer::Peer;
use crate::wire::features::RESUMES;
use crate::wire::hello::{Hello, Lane, Role};

/// A lane without a link.
struct Lost {
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
        let session = state.sessions.iter().find(|s| s.has_pair(pair))?;
        let (dialled, other) = (session.dialled, session.role == Role::Peer && state.expected.is(&session.peer));
        let addr = if dialled { session.addr.clone()? } else { state.dials.clone().filter(|_| other)? };
        let index = session.pairs.iter().position(|p| p.as_ref().is_some_and(|p| p.pair == pair))?;
        let mut hello = self.hello(session.role, lane, session.id, u16::try_from(index).expect("at most LINKS_MAX"));
        hello.features |= RESUMES;
        let peer = Arc::clone(&session.peer);
        Some(Lost { peer, dialled, addr, pair: session.pairs[index].clone()?, hello })
    }

    /// Dials until the lane has a link, the peer no longer has the session, or this node has ended it.
    fn dial_again(&self, lost: &Lost) {
        if !lost.dialled {
            self.pause(Duration::from_millis(RESUME_OTHER_MS));
        }
        let mut backoff = Backoff::new(RESUME_FIRST_MS, RESUME_MAX_MS);
        let mut nobody: Option<Instant> = None;
        while self.has(lost) {
            let begun = Instant::now();
            let e = match dial(&lost.addr, &lost.hello, Duration::from_millis(HELLO_DEADLINE_MS), self.access()) {
                Ok(conn) => return self.go_on(conn, lost),
                Err(e) => e,
            };
            nobody = (e.failure == Failure::Nobody).then(|| nobody.unwrap_or(begun));
            // ECONNREFUSED comes from a live machine: the process that held the other half of the session has ended.
            let is_gone = nobody.is_some_and(|since| since.elapsed() > Duration::from_millis(NOBODY_MS));
            if is_gone || matches!(e.failure, Failure::Refused | Failure::Duplicate) {
                return end(lost, &e.text);
            }
            if backoff.is_news(&e.text) {
                tracing::info!(peer = %lost.peer, "no link yet: {e}; trying again");
            }
            backoff.wait(self, begun);
        }
    }

    fn has(&self, lost: &Lost) -> bool {
        let state = self.state();
        let pair = lost.pair.pair;
        // A pair's number is never used again.
        state.lost.contains(&(pair, lost.hello.lane)) && state.sessions.iter().any(|s| s.has_pair(pair))
    }

    fn go_on(&self, conn: Conn, lost: &Lost) {
        let peer =
            Peer { known: conn.known.clone(), addr: conn.peer_addr, node: conn.peer.node, role: lost.hello.role };
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
