//! The daemon's end: one thread accepts, others hear and answer; what must wait for another machine goes to further threads.
//!
//! ```text
//!   accept ──▶ whose is it? ──▶ a thread of that user's share: hear, judge, answer
//!                                   └── a command to be carried ──▶ a carrier of that user's share
//! ```
//!
//! A program that connects and asks nothing delays programs of its own user, and of no other.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};
use socket2::SockRef;

use super::carriage::{Carriage, Command, Commands};
use super::wire::{ASK_MAX, Ask, CommandAsk, decode_ask, encode_answer};
use crate::audit;
use crate::auth::{Bearer, Binding};
use crate::errno::{Errno, OsError, OsResult, Step};
use crate::limits::{
    ASK_IDLE_MS, ASK_STACK_BYTES, CALLER_GROUPS_MAX, CARRIERS_A_USER, CARRIERS_MAX, CARRIERS_WAITING_A_USER,
    VOUCH_BACKLOG, VOUCH_PATIENCE_MS, VOUCHERS_A_USER, VOUCHERS_MAX, VOUCHERS_WAITING_A_USER,
};
use crate::link::{Authority, Judged, Shown};
use crate::lograte::Condition;
use crate::sys::closer::{self, Received};
use crate::sys::fair::Share;
use crate::sys::fair_pool::FairPool;
use crate::sys::pool::Bounds;
use crate::sys::unix::{self, SocketKind};
use crate::sys::{caps, nofile, peer, scm};

/// What the daemon knows.
pub trait Host: Authority {
    /// Whether that user of this machine may reach others.
    fn may_ask(&self, uid: u32, gid: u32, groups: &[u32]) -> bool;

    /// This machine's word.
    ///
    /// # Errors
    /// One line: its key can't be used.
    fn vouch(&self, binding: &Binding, bearer: &Bearer) -> Result<Vec<u8>, String>;
}

/// Serves until it is dropped.
#[derive(Debug)]
pub struct Server {
    listener: OwnedFd,
    socket: PathBuf,
}

impl Server {
    /// # Errors
    /// The directory is somebody else's, or can't be made.
    pub fn start(dir: &Path, host: Arc<dyn Host>, commands: Option<Arc<dyn Commands>>) -> OsResult<Self> {
        prepare(dir)?;
        let socket = dir.join(std::process::id().to_string());
        // Of a process that had this number before.
        let _ = fs::remove_file(&socket);
        let listener = unix::socket(SocketKind::SeqPacket, false).step("socket")?;
        unix::bind(listener.as_fd(), socket.as_os_str().as_encoded_bytes()).step_on("bind", socket.display())?;
        // Everybody may connect: who may ask is judged by who it is.
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).step_on("chmod", socket.display())?;
        unix::listen(listener.as_fd(), VOUCH_BACKLOG).step_on("listen on", socket.display())?;
        let serving = listener.try_clone().step("dup")?;
        let run = move || serve(&serving, &Arc::new(Daemon::new(host, commands)));
        std::thread::Builder::new().name("vouch".into()).spawn(run).step("start a thread")?;
        Ok(Self { listener, socket })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
        // Not empty: another daemon's socket is in it.
        let _ = self.socket.parent().map(fs::remove_dir);
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
    }
}

/// Makes the directory, and clears it of what dead daemons have left.
fn prepare(dir: &Path) -> OsResult<()> {
    fs::DirBuilder::new().mode(0o755).recursive(true).create(dir).step_on("mkdir", dir.display())?;
    let meta = fs::symlink_metadata(dir).step_on("stat", dir.display())?;
    if !meta.is_dir() || meta.uid() != nix::unistd::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
        return Err(OsError::on("use a directory that others may write to", dir.display(), Errno::EPERM));
    }
    // Whatever our umask: everybody may look for a daemon.
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).step_on("chmod", dir.display())?;
    for entry in fs::read_dir(dir).step_on("read", dir.display())?.flatten() {
        let dead = unix::socket(SocketKind::SeqPacket, true)
            .and_then(|s| unix::connect(s.as_fd(), entry.path().as_os_str().as_encoded_bytes()))
            == Err(Errno::ECONNREFUSED);
        if dead {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

fn serve(listener: &OwnedFd, daemon: &Arc<Daemon>) {
    let share = Share { each: VOUCHERS_A_USER, waiting: VOUCHERS_WAITING_A_USER };
    let vouchers = FairPool::new(bounds("voucher", VOUCHERS_MAX), share);
    let starved = Condition::default();
    loop {
        match unix::accept(listener.as_fd()) {
            Ok(asker) => {
                if starved.ends(Instant::now()) {
                    tracing::info!("clients that want a voucher are accepted again");
                }
                let patience = Some(Duration::from_millis(VOUCH_PATIENCE_MS));
                let socket = SockRef::from(&asker);
                if socket.set_read_timeout(patience).and_then(|()| socket.set_write_timeout(patience)).is_err() {
                    continue;
                }
                daemon.take_turns(&vouchers, asker);
            }
            Err(Errno::EINTR | Errno::ECONNABORTED) => {}
            // Shut down: the daemon ends.
            Err(Errno::EINVAL) => return,
            Err(errno) => {
                if starved.begins(Instant::now()) {
                    let why = nofile::explained(errno);
                    tracing::warn!("clients that want a voucher wait: they cannot be accepted: {why}");
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// An ask and its fds, or why it is none.
type Heard = Result<(Ask, Vec<OwnedFd>), String>;

const UNKNOWN: &str = "an ask that this release does not know";

/// What serving an asker takes.
struct Daemon {
    host: Arc<dyn Host>,
    commands: Option<Arc<dyn Commands>>,
    /// For those that wait for another machine.
    carriers: FairPool<u32>,
}

fn bounds(name: &'static str, most: usize) -> Bounds {
    Bounds { name, kept: 0, most, idle: Duration::from_millis(ASK_IDLE_MS), stack_bytes: ASK_STACK_BYTES }
}

impl Daemon {
    fn new(host: Arc<dyn Host>, commands: Option<Arc<dyn Commands>>) -> Self {
        let share = Share { each: CARRIERS_A_USER, waiting: CARRIERS_WAITING_A_USER };
        Self { host, commands, carriers: FairPool::new(bounds("carrier", CARRIERS_MAX), share) }
    }

    /// Serves an asker when it is its user's turn.
    fn take_turns(self: &Arc<Self>, vouchers: &FairPool<u32>, asker: OwnedFd) {
        let Ok(who) = peer::peer(asker.as_fd()) else { return };
        // Nobody else submits here, so that room which is there stays.
        if !vouchers.has_room(who.uid) {
            say(&asker, &Err(format!("too many programs of user {} ask at once; try again later", who.uid)), &[]);
            return closer::close_unread(asker);
        }
        let daemon = Arc::clone(self);
        vouchers.submit(who.uid, move || daemon.serve(asker));
    }

    fn serve(&self, asker: OwnedFd) {
        match self.hear(&asker) {
            Some((who, Ok((Ask::Word(shown), fds)))) if fds.is_empty() => {
                say(&asker, &vouch(asker.as_fd(), who, &shown, self.host.as_ref()), &[]);
            }
            Some((who, Ok((Ask::Carriage(ask), fds)))) => return self.carry(asker, who, ask, fds),
            Some((_, Ok((Ask::Word(_), fds)))) => {
                closer::close(fds);
                say(&asker, &Err(UNKNOWN.into()), &[]);
            }
            Some((_, Err(why))) => _ = say(&asker, &Err(why), &[]),
            // It has asked nothing that is to be answered.
            None => {}
        }
        // It may have sent more than was read.
        closer::close_unread(asker);
    }

    /// Who asks what.
    fn hear(&self, asker: &OwnedFd) -> Option<(Who, Heard)> {
        let who = Who::of(asker.as_fd()).ok()?;
        let (uid, pid) = (who.peer.uid, who.peer.pid);
        if !self.host.may_ask(uid, who.peer.gid, &who.groups) {
            tracing::warn!(uid, pid, "no voucher: this user may not reach other machines");
            audit::note(|| format!("uid={uid} pid={pid} voucher: refused: this user may not reach other machines"));
            let why = "may not use this machine's key; an administrator may put it into the group `farside`, or into \
                       [local] users of node.toml";
            return Some((who, Err(format!("user {uid} {why}"))));
        }
        if closer::is_choked() {
            return Some((who, Err("too many files that programs have sent can't be closed".into())));
        }
        let mut bytes = [0; ASK_MAX];
        let record = scm::receive_waiting(asker.as_fd(), &mut bytes).ok()?;
        match decode_ask(&bytes[..record.len]) {
            _ if record.lost_fds => {
                closer::close(record.fds);
                Some((who, Err(format!("the daemon has {}", nofile::explained(Errno::EMFILE)))))
            }
            Ok(ask) if !record.truncated => Some((who, Ok((ask, record.fds)))),
            _ => {
                closer::close(record.fds);
                Some((who, Err(UNKNOWN.into())))
            }
        }
    }

    fn carry(&self, asker: OwnedFd, who: Who, ask: CommandAsk, fds: Vec<OwnedFd>) {
        let uid = who.peer.uid;
        let Some(commands) = self.commands.clone().filter(|_| self.carriers.has_room(uid)) else {
            closer::close(fds);
            say(&asker, &Err("this daemon carries no commands".into()), &[]);
            return closer::close_unread(asker);
        };
        let fds: Vec<Received> = fds.into_iter().map(Received::from).collect();
        // Where there is no room any more the program's connection ends, and it goes its own way.
        self.carriers.submit(uid, move || {
            let (pid, to) = (who.peer.pid, ask.to);
            let bearer = who.bearer(asker.as_fd());
            let taken = || fds.into_iter().map(Received::into_inner).collect();
            let mut give = |Carriage { control, ended }: Carriage| {
                say(&asker, &Ok(Judged::known_as("")), &[control.as_fd(), ended.as_fd()])
            };
            let carried = bearer
                .and_then(|bearer| Command::new(ask, taken(), bearer))
                .and_then(|command| commands.carry(command, &mut give));
            match carried {
                Ok(()) => {
                    tracing::debug!(uid, pid, %to, "carries a command");
                    audit::note(|| format!("uid={uid} pid={pid} command to {to}: carried"));
                }
                Err(why) => _ = say(&asker, &Err(why), &[]),
            }
        });
    }
}

/// Returns whether the asker was still there.
fn say(asker: &OwnedFd, answer: &Result<Judged, String>, fds: &[BorrowedFd<'_>]) -> bool {
    scm::send(asker.as_fd(), &encode_answer(answer), fds).is_ok()
}

/// Who asks, by the kernel.
struct Who {
    peer: peer::Peer,
    groups: Vec<u32>,
}

impl Who {
    fn of(asker: BorrowedFd<'_>) -> Result<Self, Errno> {
        Ok(Self { peer: peer::peer(asker)?, groups: peer::groups(asker, CALLER_GROUPS_MAX)? })
    }

    /// # Errors
    /// One line: it has ended, or can't be looked at.
    fn bearer(self, asker: BorrowedFd<'_>) -> Result<Bearer, String> {
        let process = peer::process(asker).map_err(|e| e.to_string())?;
        let (sets, no_new_privs) = caps::of(self.peer.pid).map_err(|e| e.to_string())?;
        // It lives: what was read of its number was its own.
        if process.ends_within(Duration::ZERO).map_err(|e| e.to_string())? {
            return Err("the asker has ended".into());
        }
        let caps::Sets { inheritable, permitted, bounding, ambient } = sets;
        let (uid, gid, groups) = (self.peer.uid, self.peer.gid, self.groups);
        Ok(Bearer { uid, gid, groups, inheritable, permitted, bounding, ambient, no_new_privs })
    }
}

fn vouch(asker: BorrowedFd<'_>, who: Who, shown: &Shown, host: &dyn Host) -> Result<Judged, String> {
    let judged = host.judge(shown).map_err(|stranger| stranger.log)?;
    let (uid, pid) = (who.peer.uid, who.peer.pid);
    let voucher = host.vouch(&shown.binding, &who.bearer(asker)?)?;
    tracing::debug!(uid, pid, peer = judged.name, addr = %shown.ends.there, "vouched for");
    audit::note(|| format!("uid={uid} pid={pid} voucher for {}: given", shown.ends.there));
    Ok(Judged { voucher, ..judged })
}
