//! What peers ask of this node: streams of its services, and directories.
//!
//! ```text
//!   HELLO ──▶ may it have a session, or a file link? ──▶ OPEN ──▶ may it ask for that at all? ──▶ rexec::Server │ Far
//! ```
//!
//! Whoever may do nothing of a kind is refused before a place, a thread or a file is spent on it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::services::{pump, speaks_as};
use crate::audit;
use crate::auth::PublicKey;
use crate::errno::Errno;
use crate::limits::CONNECT_DEADLINE_MS;
use crate::link::conn::Conn;
use crate::link::{FileServer, Handler, Incoming, Known, Peer, Terms};
use crate::policy::Service;
use crate::qtfs::far::{Exports, serve};
use crate::rexec;
use crate::sys::peer;
use crate::sys::seldom::Seldom;
use crate::sys::unix::SocketKind;
use crate::trust::{Rights, Standing, SystemLinks};
use crate::udsproxyd::far::{Asker, Cancel, Far};
use crate::udsproxyd::wire::{ConnectRequest, Listener, printable};
use crate::wire::service;

pub(super) struct Services {
    pub(super) exec: Option<rexec::Server>,
    pub(super) uds: Option<Arc<Far>>,
    /// Whether directories are served.
    pub(super) files: bool,
    pub(super) rights: Rights,
    /// Refusals, by whose they are and of which service.
    pub(super) refused: Seldom<(Option<PublicKey>, u16)>,
}

impl Handler for Services {
    fn admits(&self, peer: &Peer) -> Result<(), String> {
        let standing = (self.rights)(peer.known.key);
        let offered =
            [(Service::Exec, self.exec.is_some()), (Service::Uds, self.uds.is_some()), (Service::Fs, self.files)];
        let some = offered.iter().any(|(service, here)| *here && standing.admits(*service).is_ok());
        some.then_some(()).ok_or_else(|| "no rule allows it anything here".into())
    }

    fn on_open(&self, incoming: Incoming) {
        if incoming.peer.known.bearer.is_some() && incoming.service != service::EXEC {
            refused(&incoming.peer, "a voucher is for commands alone");
            return incoming.stream.refuse(Errno::EPERM);
        }
        let standing = (self.rights)(incoming.peer.known.key);
        match (incoming.service, &self.exec, &self.uds) {
            (service::EXEC, Some(exec), _) => match standing.admits(Service::Exec) {
                Ok(()) => exec.on_open(incoming, standing),
                Err(why) => self.refuse(incoming, "exec", &why),
            },
            (service::UDS, _, Some(uds)) => match standing.admits(Service::Uds) {
                Ok(()) => connect(uds, standing, incoming),
                Err(why) => self.refuse(incoming, "connect", &why),
            },
            (number, ..) => {
                refused(&incoming.peer, &format!("this node has no service {number}"));
                incoming.stream.refuse(Errno::EOPNOTSUPP);
            }
        }
    }
}

/// A stream that no service is asked about.
fn refused(peer: &Peer, why: &str) {
    tracing::warn!(%peer, "refused: {why}");
    audit::note(|| format!("peer={} refused: {why}", peer.known.name));
}

impl Services {
    /// One that may ask for nothing of that kind.
    fn refuse(&self, incoming: Incoming, what: &str, why: &str) {
        let peer = &incoming.peer;
        audit::note(|| format!("peer={} {what} refused: {why}", peer.known.name));
        match self.refused.due((peer.known.key, incoming.service), Instant::now()) {
            Some(0) => tracing::warn!(%peer, "{what} refused: {why}"),
            Some(unsaid) => tracing::warn!(%peer, "{what} refused: {why} (and {unsaid} more that were not logged)"),
            None => {}
        }
        incoming.stream.refuse(Errno::EACCES);
    }
}

/// A program of the peer's machine wants one of this machine's sockets.
fn connect(uds: &Far, standing: Standing, incoming: Incoming) {
    let Incoming { request, peer, stream, .. } = incoming;
    let request = match ConnectRequest::decode(&request) {
        Ok(request) => request,
        Err(e) => {
            tracing::error!(%peer, "{e}");
            return stream.refuse(Errno::EPROTO);
        }
    };
    let (uid, name) = (request.caller.uid, printable(&request.name));
    let (kind, speaks_as) = (request.kind, speaks_as(request.caller.uid, request.caller.gid));
    let deadline = Instant::now() + Duration::from_millis(CONNECT_DEADLINE_MS);
    // By which rule, for the one line that is said of each; none was asked if there is no such socket.
    let verdict = Arc::new(Mutex::new(None));
    let judged = Arc::clone(&verdict);
    let rules = Box::new(move |name: &[u8]| {
        let verdict = may_connect(&standing, name);
        *judged.lock().expect("no holder panics: panic is abort") = Some(verdict.clone());
        verdict
    });
    let asker = Asker { key: peer.known.key, rules };
    uds.start(request, deadline, Cancel::default(), asker, move |result| {
        let verdict = verdict.lock().expect("no holder panics: panic is abort").take();
        tell_of_connect(&peer, uid, &name, result.as_ref().map(drop).map_err(|errno| *errno), verdict);
        match result {
            Ok(fd) => {
                let said = listener_of(&fd, kind);
                stream.attach_on(pump(fd, kind), Terms { said, speaks_as });
            }
            Err(errno) => stream.refuse(errno),
        }
    });
}

/// What the logs say of a connect: the usual one of those that were refused alone.
fn tell_of_connect(
    peer: &Peer,
    uid: u32,
    name: &str,
    result: Result<(), Errno>,
    verdict: Option<Result<String, String>>,
) {
    let (refused, line) = match (result, verdict) {
        (Ok(()), verdict) => (false, verdict.and_then(Result::ok).unwrap_or_default()),
        (Err(_), Some(Err(denied))) => (true, denied),
        // The rules of node.toml, or the socket's own permissions.
        (Err(errno @ Errno::EACCES), Some(Ok(by))) => (true, format!("{by}, but {}", errno.desc())),
        (Err(errno), verdict) => {
            let by = verdict.and_then(Result::ok).unwrap_or_default();
            (false, [errno.desc(), &by].join(" ").trim_end().to_owned())
        }
    };
    if refused {
        tracing::info!(%peer, uid, "connect {name}: {line}");
    } else {
        tracing::debug!(%peer, uid, "connect {name}: {line}");
    }
    let refused = if refused { "refused: " } else { "" };
    audit::note(|| format!("peer={} uid={uid} uds {name}: {refused}{line}", peer.known.name));
}

/// For the caller's SO_PEERCRED. A datagram socket has no listener.
fn listener_of(fd: &OwnedFd, kind: SocketKind) -> Vec<u8> {
    if kind == SocketKind::Datagram {
        return Vec::new();
    }
    peer::peer(fd.as_fd()).map_or_else(|_| Vec::new(), |p| Listener { uid: p.uid, gid: p.gid }.encode())
}

fn may_connect(standing: &Standing, name: &[u8]) -> Result<String, String> {
    match standing {
        Standing::Everything => Ok("by this machine itself".into()),
        Standing::Peer(_, peer) => match peer.policy.uds(&SystemLinks, name) {
            Ok(allowed) => Ok(allowed.to_string()),
            Err(denied) => Err(denied.to_string()),
        },
        Standing::Nothing => Err("its key is not trusted any more".into()),
    }
}

pub(super) struct Files(pub(super) Arc<Exports>, pub(super) Rights);

impl FileServer for Files {
    fn admits(&self, known: &Known) -> Result<(), String> {
        (self.1)(known.key).admits(Service::Fs)
    }

    fn serve(&self, conn: Conn) {
        let peer = format!("{} ({})", conn.known.name, conn.peer_addr);
        let standing = (self.1)(conn.known.key);
        match serve(conn, &self.0, &standing) {
            Ok(()) => tracing::info!(peer, "file link closed"),
            Err(e) => tracing::warn!(peer, "file link: {e}"),
        }
    }
}
