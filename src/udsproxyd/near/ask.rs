//! One asker, from its request to its verdict.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use farside_contract::{Op, REQUEST_MAX, Request, Verdict, flags};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{debug, warn};

use super::abstract_name::Names;
use super::outlets::Outlets;
use super::private::Private;
use super::view::{Proc, Target};
use super::{End, FarSide, FarStream};
use crate::audit;
use crate::errno::Errno;
use crate::limits::{ASK_DEADLINE_MS, CALLER_GROUPS_MAX, CONNECT_DEADLINE_MS};
use crate::sys::closer::{self, Received, Unread};
use crate::sys::peer::{self, Peer};
use crate::sys::scm::{self, Record};
use crate::sys::seldom::Seldom;
use crate::sys::thread_identity::Identity;
use crate::sys::unix::{self, SocketKind};
use crate::sys::{nofile, readable};
use crate::trust::Users;
use crate::udsproxyd::policy::Policy;
use crate::udsproxyd::wire::{ConnectRequest, check_name, printable};

/// What serving an ask takes.
pub(super) struct Desk {
    pub(super) far: Arc<dyn FarSide>,
    /// Locked for a clone or a swap alone: a rule may look at a file system that does not answer.
    pub(super) policy: RwLock<Arc<Policy>>,
    pub(super) users: RwLock<Users>,
    pub(super) proc: Proc,
    pub(super) names: Names,
    pub(super) private: Private,
    pub(super) outlets: Outlets,
    /// Lines about fds that there are none of.
    pub(super) exhausted: Seldom<i32>,
}

/// One asker and what it asks about.
pub(super) struct Asking<'a> {
    pub(super) control: BorrowedFd<'a>,
    pub(super) asker: Peer,
    /// The name as the program gave it.
    pub(super) typed: &'a [u8],
    /// The program's socket.
    pub(super) local: &'a OwnedFd,
    /// Where a relative name starts.
    pub(super) cwd: Option<&'a OwnedFd>,
}

/// Why there is no connection.
pub(super) enum No {
    /// The caller's errno.
    Errno(Errno),
    /// The local kernel's errno stands.
    NotRemote,
    /// Nobody is there to be told, or nobody that we talk to.
    Silent,
}

impl From<Errno> for No {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl Desk {
    /// Serves the asker on `control` to its end.
    pub(super) fn serve(&self, control: OwnedFd) {
        let (verdict, brings) = match self.answer(control.as_fd()) {
            Ok(brings) => (Verdict::Connected, brings),
            Err(No::Errno(errno)) => {
                self.say_exhausted(errno);
                (Verdict::Refused(errno as i32), None)
            }
            Err(No::NotRemote) => (Verdict::NotRemote, None),
            Err(No::Silent) => return,
        };
        let brings: Vec<BorrowedFd<'_>> = brings.iter().map(AsFd::as_fd).collect();
        // An asker that has gone needs no verdict.
        let _ = scm::send(control.as_fd(), &verdict.encode(), &brings);
        if readable::bytes(&control) > 0 {
            closer::close_unread(control);
        }
    }

    /// No fds, once in a while: every program that asks meets it.
    pub(super) fn say_exhausted(&self, errno: Errno) {
        if !matches!(errno, Errno::EMFILE | Errno::ENFILE) {
            return;
        }
        if let Some(unsaid) = self.exhausted.due(errno as i32, Instant::now()) {
            warn!(unsaid, "programs can't be connected: {}; raise the limit", nofile::explained(errno));
        }
    }

    /// One whose user has too many others waiting: as for a full backlog.
    pub(super) fn turn_away(&self, control: &OwnedFd) {
        // An asker that has gone needs no verdict.
        let _ = scm::send(control.as_fd(), &Verdict::Refused(Errno::EAGAIN as i32).encode(), &[]);
    }

    /// A yes, and the fd that goes with it.
    fn answer(&self, control: BorrowedFd<'_>) -> Result<Option<OwnedFd>, No> {
        let asker = peer::peer(control)?;
        if !self.may_ask(control, asker) {
            return Err(No::NotRemote);
        }
        let mut bytes = [0; REQUEST_MAX];
        let (len, fds) = receive(control, &mut bytes)?;
        let request = Request::decode(&bytes[..len]).map_err(|_| {
            warn!(uid = asker.uid, pid = asker.pid, "refused: a request that this version does not know");
            No::Errno(Errno::EPROTO)
        })?;
        let (local, cwd) = match (fds.as_slice(), request.flags & flags::CWD != 0) {
            ([local], false) => (local, None),
            ([local, cwd], true) => (local, Some(cwd)),
            _ => {
                warn!(uid = asker.uid, pid = asker.pid, fds = fds.len(), "refused: a request with the wrong fds");
                return Err(No::Errno(Errno::EPROTO));
            }
        };
        let asking = Asking { control, asker, typed: request.name, local, cwd: cwd.map(|cwd| &**cwd) };
        match request.op {
            Op::Connect => self.connect(&asking).map(|()| None),
            Op::SendTo => self.send_to(&asking).map(Some),
            Op::Adopt if cwd.is_some() => Err(No::Errno(Errno::EPROTO)),
            Op::Adopt => {
                let [local] = <[Received; 1]>::try_from(fds).expect("one, as seen above");
                self.adopt(asker, request.name, local.into_inner()).map(|()| None)
            }
        }
    }

    fn connect(&self, asking: &Asking<'_>) -> Result<(), No> {
        let Asking { control, asker, typed, local, .. } = *asking;
        let kind = SocketKind::of(local.as_fd())?;
        if kind == SocketKind::Datagram {
            return self.connect_datagram(asking);
        }
        let nonblocking = OFlag::from_bits_retain(fcntl(local, FcntlArg::F_GETFL)?).contains(OFlag::O_NONBLOCK);
        let name = self.target(asking)?;
        let caller = identity(control, asker)?;
        let request = ConnectRequest { kind, name, caller, nonblocking, named: false };
        let stream = self.ask_for(asking, &request)?;
        if typed.first() != Some(&0) {
            let other = self.private.join(local.as_fd(), kind, typed, stream.listener())?;
            return attach(stream, other, &request).map(drop);
        }
        let joined = self.names.join(local.as_fd(), kind, typed, stream.listener())?.ok_or(No::NotRemote)?;
        let result = attach(stream, joined.own, &request).map(drop);
        for other in joined.others {
            self.connect_other(kind, typed, other);
        }
        result
    }

    /// The far side's yes for an asker that is still there: after this the caller's socket may be touched.
    pub(super) fn ask_for(&self, asking: &Asking<'_>, request: &ConnectRequest) -> Result<Box<dyn FarStream>, No> {
        let stream = match self.ask_far(request) {
            // No session: as if the other machine's sockets were not there. connect(2) knows no ENOTCONN, while callers
            // (libvirt among them) wait for a socket that is not there yet.
            Err(No::Errno(Errno::ENOTCONN)) => return Err(No::NotRemote),
            other => other?,
        };
        if unix::has_hung_up(asking.control) {
            debug!(pid = asking.asker.pid, "the asker has gone");
            return Err(No::Silent);
        }
        Ok(stream)
    }

    /// Somebody whose connect has met the listener of another caller's abstract name. There is nobody to tell a no: the
    /// connection ends.
    fn connect_other(&self, kind: SocketKind, name: &[u8], accepted: OwnedFd) {
        let Ok(who) = peer::peer(accepted.as_fd()) else { return };
        if !self.may_ask(accepted.as_fd(), who) {
            return;
        }
        let Ok(caller) = identity(accepted.as_fd(), who) else { return };
        let request = ConnectRequest { kind, name: name.to_vec(), caller, nonblocking: false, named: false };
        if let Ok(stream) = self.ask_far(&request) {
            // A failure is logged, and the connection ends.
            let _ = attach(stream, accepted, &request);
        }
    }

    fn may_ask(&self, socket: BorrowedFd<'_>, who: Peer) -> bool {
        let users = self.users.read().expect("a panic ends the process");
        let may = users.may(who.uid, who.gid, || peer::groups(socket, CALLER_GROUPS_MAX).unwrap_or_default());
        if !may {
            warn!(uid = who.uid, pid = who.pid, "refused: this uid may not ask");
            audit::note(|| format!("uid={} pid={} connect: refused: this uid may not ask", who.uid, who.pid));
        }
        may
    }

    /// The far machine's name for what was typed, if it may be asked for.
    pub(super) fn target(&self, asking: &Asking<'_>) -> Result<Vec<u8>, No> {
        let Asking { asker, typed, cwd, .. } = *asking;
        let target = match typed {
            [0, ..] => Ok(Target::as_is(typed)),
            path if path.contains(&0) => Err(Errno::EINVAL),
            path => self.proc.caller(asker.pid).and_then(|caller| caller.target(path, cwd)),
        };
        let target = target.map_err(|errno| {
            // Without fds of our own nothing is known of where the name leads.
            if matches!(errno, Errno::EMFILE | Errno::ENFILE) {
                return No::Errno(errno);
            }
            debug!(pid = asker.pid, name = printable(typed), %errno, "not mapped: the local answer stands");
            No::NotRemote
        })?;
        if check_name(&target.name).is_err() || !self.allows(&target.judged) {
            debug!(pid = asker.pid, name = printable(&target.name), "not remote by policy");
            return Err(No::NotRemote);
        }
        Ok(target.name)
    }

    /// A socket that is connected already, for our mount helper: `local` is our end, its peer is the caller.
    fn adopt(&self, asker: Peer, path: &[u8], local: OwnedFd) -> Result<(), No> {
        if asker.uid != 0 {
            return Err(No::Errno(Errno::EPERM));
        }
        if path.first() != Some(&b'/') || check_name(path).is_err() {
            return Err(No::Errno(Errno::EINVAL));
        }
        let kind = SocketKind::of(local.as_fd())?;
        self.carry(local, kind, path)
    }

    /// Joins a connection that is there already to a far socket, as whoever made it.
    pub(super) fn carry(&self, local: OwnedFd, kind: SocketKind, name: &[u8]) -> Result<(), No> {
        // Its program may have sent files that do not answer, and after a no nobody reads them.
        let local = Unread::from(local);
        let (stream, request) = self.ask_for_carried(local.as_fd(), kind, name)?;
        attach(stream, local.into_inner(), &request).map(drop)
    }

    fn ask_for_carried(
        &self,
        local: BorrowedFd<'_>,
        kind: SocketKind,
        name: &[u8],
    ) -> Result<(Box<dyn FarStream>, ConnectRequest), No> {
        // ENOTCONN for one that is not connected: there is nobody whose identity could be used.
        unix::peer_name_of(local)?;
        let caller = identity(local, peer::peer(local)?)?;
        let request = ConnectRequest { kind, name: name.to_vec(), caller, nonblocking: false, named: false };
        let stream = self.ask_far(&request)?;
        fcntl(local, FcntlArg::F_SETFL(OFlag::empty()))?;
        Ok((stream, request))
    }

    fn allows(&self, names: &[Vec<u8>]) -> bool {
        // Not under the lock: the rules' symbolic links may lie on a file system that does not answer.
        let policy = Arc::clone(&self.policy.read().expect("a panic ends the process"));
        names.iter().all(|name| policy.allows(name))
    }

    pub(super) fn set_policy(&self, policy: Policy, users: Users) {
        *self.policy.write().expect("a panic ends the process") = Arc::new(policy);
        *self.users.write().expect("a panic ends the process") = users;
    }

    pub(super) fn ask_far(&self, request: &ConnectRequest) -> Result<Box<dyn FarStream>, No> {
        let deadline = Instant::now() + Duration::from_millis(CONNECT_DEADLINE_MS);
        let result = self.far.connect(request, deadline);
        let (uid, name) = (request.caller.uid, &request.name);
        audit::note(|| {
            let verdict = result.as_ref().map_or_else(|errno| errno.desc(), |_| "connected");
            format!("uid={uid} connect {}: {verdict}", printable(name))
        });
        if let Err(errno) = &result {
            debug!(uid = request.caller.uid, name = printable(&request.name), %errno, "the far side says no");
        }
        Ok(result?)
    }
}

pub(super) fn attach(stream: Box<dyn FarStream>, local: OwnedFd, request: &ConnectRequest) -> Result<End, No> {
    stream.attach(local, request.kind).map_err(|e| {
        // The caller's socket is connected to nothing now, and must not pass for untouched.
        warn!(uid = request.caller.uid, name = printable(&request.name), "a connection could not be attached: {e}");
        No::Errno(Errno::ECONNRESET)
    })
}

/// Who connected the other end of `socket`.
pub(super) fn identity(socket: BorrowedFd<'_>, peer: Peer) -> Result<Identity, No> {
    let groups = peer::groups(socket, CALLER_GROUPS_MAX).map_err(|errno| {
        warn!(uid = peer.uid, %errno, "refused: the caller's groups can't be told");
        No::Errno(Errno::EPERM)
    })?;
    Ok(Identity { uid: peer.uid, gid: peer.gid, groups })
}

/// The one record of a request. Its fds are closed again if anything is wrong with it.
fn receive(control: BorrowedFd<'_>, into: &mut [u8]) -> Result<(usize, Vec<Received>), No> {
    let deadline = Instant::now() + Duration::from_millis(ASK_DEADLINE_MS);
    loop {
        match scm::receive(control, into) {
            Ok(Record { len, fds, truncated, lost_fds }) => {
                // Whatever becomes of them: a file of theirs may never answer a close.
                let fds: Vec<Received> = fds.into_iter().map(Received::from).collect();
                if lost_fds {
                    return Err(No::Errno(Errno::EMFILE));
                }
                if truncated {
                    warn!(fds = fds.len(), "refused: a request that is too long, or with too many fds");
                    return Err(No::Errno(Errno::EPROTO));
                }
                return if len == 0 { Err(No::Silent) } else { Ok((len, fds)) };
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => return Err(No::Silent),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            debug!(fd = control.as_raw_fd(), "an asker that says nothing");
            return Err(No::Silent);
        }
        let timeout = PollTimeout::try_from(left).expect("a second at most");
        // EINTR and a timeout are seen on the next turn.
        let _ = poll(&mut [PollFd::new(control, PollFlags::POLLIN)], timeout);
    }
}
