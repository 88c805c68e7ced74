//! Sessions that this node dials: one to its peer, again and again; or one for a command.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::backoff::Backoff;
use super::conn::{DialError, Failure, dial};
use super::node::Node;
use crate::errno::{OsResult, Step};
use crate::limits::{BULK_AFTER_MS, DIAL_END_MS, HELLO_DEADLINE_MS, LINKS_MAX, REDIAL_FIRST_MS, REDIAL_MAX_MS};
use crate::wire::hello::{Lane, Role};

const DIAL_TIMEOUT: Duration = Duration::from_millis(HELLO_DEADLINE_MS);

/// Keeps a session with the node at `addr`, whichever of the two comes first. A thread of its own, until the node leaves.
pub fn keep_session(node: &Node, addr: String) -> OsResult<()> {
    let node = node.clone();
    let run = move || {
        let mut redial = Redial::default();
        node.expect(&addr);
        while node.wait_without_peer() {
            // A name may stand for another machine by now.
            node.expect(&addr);
            if redial.is_early(&node) {
                continue;
            }
            match dial_session(&node, &addr) {
                Ok(()) => redial.on_up(),
                Err(e) => redial.on_failure(&node, &e),
            }
        }
    };
    std::thread::Builder::new().name("dialer".into()).spawn(run).step("start the dialer")?;
    Ok(())
}

/// When the next attempt is.
struct Redial {
    backoff: Backoff,
    up: Option<Instant>,
}

impl Default for Redial {
    fn default() -> Self {
        Self { backoff: Backoff::new(REDIAL_FIRST_MS, REDIAL_MAX_MS), up: None }
    }
}

impl Redial {
    /// Behind a session that has ended. One that ends as soon as it has begun would be dialled without a breath: then this
    /// waits. Returns whether another session has come meanwhile.
    fn is_early(&mut self, node: &Node) -> bool {
        let Some(since) = self.up.take() else { return false };
        if since.elapsed() >= Duration::from_millis(REDIAL_MAX_MS) {
            self.backoff.begin_again();
            return false;
        }
        self.backoff.wait(node, Instant::now());
        node.has_session(None)
    }

    fn on_up(&mut self) {
        self.backoff.forget_failures();
        self.up = Some(Instant::now());
    }

    fn on_failure(&mut self, node: &Node, e: &DialError) {
        // Also one that dialled first, and from an address that this node does not dial, is the peer that is dialled.
        let is_here = e.failure == Failure::Duplicate && e.key.is_some() && node.learn(e.key);
        if self.backoff.is_news(&e.text) {
            match is_here {
                true => tracing::info!("{e}, which it has dialled; programs here use that one"),
                false => tracing::info!("no session yet: {e}; trying again"),
            }
        }
        if is_here {
            self.up = Some(Instant::now());
        } else {
            self.backoff.wait(node, Instant::now());
        }
    }
}

/// All links of a new session: pair 0 first, whose answer tells how many there are to be.
fn dial_session(node: &Node, addr: &str) -> Result<(), DialError> {
    let session = random();
    let first = node.hello(Role::Peer, Lane::Lat, session, 0);
    let conn = dial(addr, &first, DIAL_TIMEOUT, node.access())?;
    let pairs = usize::from(conn.peer.workers.max(first.workers)).min(LINKS_MAX);
    if !node.dialled(conn, &first, addr) {
        return Ok(());
    }
    for index in 0..pairs {
        for lane in Lane::ALL {
            if (index, lane) == (0, Lane::Lat) {
                continue;
            }
            if !node.has_session(Some(session)) {
                return Ok(());
            }
            let index = u16::try_from(index).expect("at most LINKS_MAX");
            let hello = node.hello(Role::Peer, lane, session, index);
            let conn = dial(addr, &hello, DIAL_TIMEOUT, node.access())?;
            if !node.dialled(conn, &hello, addr) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// A session of its own for one command. The LAT link is up on return; the BULK link follows, unless what is returned is
/// dropped before, and until then everything goes on LAT.
///
/// # Errors
/// One line for a person.
pub fn dial_client(node: &Node, addr: &str) -> Result<LaterDial, DialError> {
    let session = random();
    let hello = node.hello(Role::Client, Lane::Lat, session, 0);
    let conn = dial(addr, &hello, DIAL_TIMEOUT, node.access())?;
    assert!(node.dialled(conn, &hello, addr), "a new session of a command has no rival");
    let (node, addr) = (node.clone(), addr.to_owned());
    // Not for a short command, which would never use it: a handshake costs both machines a millisecond.
    let later = LaterDial::default();
    let stage = Arc::clone(&later.0);
    let run = move || {
        if !begin(&stage) {
            return;
        }
        let hello = node.hello(Role::Client, Lane::Bulk, session, 0);
        match dial(&addr, &hello, DIAL_TIMEOUT, node.access()) {
            // Too late for a command that has ended: the link is closed again.
            Ok(conn) => drop(node.dialled(conn, &hello, &addr)),
            Err(e) => tracing::debug!("no BULK link: {e}"),
        }
        *locked(&stage) = Stage::Over;
        stage.1.notify_all();
    };
    if let Err(e) = std::thread::Builder::new().name("dialer".into()).spawn(run) {
        tracing::debug!("no BULK link: {e}");
    }
    Ok(later)
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stage {
    #[default]
    Waiting,
    Dialling,
    Over,
}

type Staged = (Mutex<Stage>, Condvar);

/// A dial that begins in a moment. Dropped, it does not begin any more; one that has begun is waited for, within reason: the
/// other side counts handshakes that are broken off.
#[derive(Debug, Default)]
pub struct LaterDial(Arc<Staged>);

fn locked(stage: &Staged) -> MutexGuard<'_, Stage> {
    stage.0.lock().expect("no holder panics: panic is abort")
}

/// Whether it is still wanted after the moment.
fn begin(stage: &Staged) -> bool {
    let waiting = |stage: &mut Stage| *stage == Stage::Waiting;
    let moment = Duration::from_millis(BULK_AFTER_MS);
    let (mut now, _) =
        stage.1.wait_timeout_while(locked(stage), moment, waiting).expect("no holder panics: panic is abort");
    let wanted = *now == Stage::Waiting;
    *now = if wanted { Stage::Dialling } else { Stage::Over };
    wanted
}

impl Drop for LaterDial {
    fn drop(&mut self) {
        let mut stage = locked(&self.0);
        if *stage == Stage::Waiting {
            *stage = Stage::Over;
            self.0.1.notify_all();
        }
        let dialling = |stage: &mut Stage| *stage == Stage::Dialling;
        let patience = Duration::from_millis(DIAL_END_MS);
        drop(self.0.1.wait_timeout_while(stage, patience, dialling).expect("no holder panics: panic is abort"));
    }
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    crate::sys::random::fill(&mut bytes).expect("getrandom(2) does not fail for 8 bytes");
    u64::from_le_bytes(bytes)
}
