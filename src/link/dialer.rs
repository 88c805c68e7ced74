//! Sessions that this node dials: one to its peer, again and again; or one for a command.

use std::time::Duration;

use super::conn::{DialError, dial};
use super::node::Node;
use crate::errno::{OsResult, Step};
use crate::limits::{BULK_AFTER_MS, HELLO_DEADLINE_MS, LINKS_MAX, REDIAL_FIRST_MS, REDIAL_MAX_MS};
use crate::wire::hello::{Lane, Role};

const DIAL_TIMEOUT: Duration = Duration::from_millis(HELLO_DEADLINE_MS);

/// Keeps a session with the node at `addr`, whichever of the two comes first. A thread of its own, until the node leaves.
pub fn keep_session(node: &Node, addr: String) -> OsResult<()> {
    let node = node.clone();
    let run = move || {
        let mut pause = Duration::from_millis(REDIAL_FIRST_MS);
        let mut last = String::new();
        node.expect(&addr);
        while node.wait_without_peer() {
            match dial_session(&node, &addr) {
                Ok(()) => {
                    last.clear();
                    pause = Duration::from_millis(REDIAL_FIRST_MS);
                }
                Err(e) if e.duplicate => node.pause(pause),
                Err(e) => {
                    // Once for each new reason: a peer that is down for a night must not fill the log.
                    if e.text != last {
                        tracing::info!("no session yet: {e}; trying again");
                        last = e.text;
                    }
                    node.pause(pause);
                    pause = (pause * 2).min(Duration::from_millis(REDIAL_MAX_MS));
                }
            }
        }
    };
    std::thread::Builder::new().name("dialer".into()).spawn(run).step("start the dialer")?;
    Ok(())
}

/// All links of a new session: pair 0 first, whose answer tells how many there are to be.
fn dial_session(node: &Node, addr: &str) -> Result<(), DialError> {
    let session = random();
    let first = node.hello(Role::Peer, Lane::Lat, session, 0);
    let conn = dial(addr, &first, DIAL_TIMEOUT, node.access())?;
    let pairs = usize::from(conn.peer.workers.max(first.workers)).min(LINKS_MAX);
    if !node.dialled(conn, &first) {
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
            if !node.dialled(conn, &hello) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// A session of its own for one command. The LAT link is up on return; the BULK link follows, and until then everything
/// goes on LAT.
///
/// # Errors
/// One line for a person.
pub fn dial_client(node: &Node, addr: &str) -> Result<(), DialError> {
    let session = random();
    let hello = node.hello(Role::Client, Lane::Lat, session, 0);
    let conn = dial(addr, &hello, DIAL_TIMEOUT, node.access())?;
    assert!(node.dialled(conn, &hello), "a new session of a command has no rival");
    let (node, addr) = (node.clone(), addr.to_owned());
    // Beside the command, and not for a short one, which would never use it: a handshake costs both machines a millisecond.
    let run = move || {
        node.pause(Duration::from_millis(BULK_AFTER_MS));
        if !node.has_session(Some(session)) {
            return;
        }
        let hello = node.hello(Role::Client, Lane::Bulk, session, 0);
        match dial(&addr, &hello, DIAL_TIMEOUT, node.access()) {
            // Too late for a command that has ended: the link is closed again.
            Ok(conn) => drop(node.dialled(conn, &hello)),
            Err(e) => tracing::debug!("no BULK link: {e}"),
        }
    };
    if let Err(e) = std::thread::Builder::new().name("dialer".into()).spawn(run) {
        tracing::debug!("no BULK link: {e}");
    }
    Ok(())
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    crate::sys::random::fill(&mut bytes).expect("getrandom(2) does not fail for 8 bytes");
    u64::from_le_bytes(bytes)
}
