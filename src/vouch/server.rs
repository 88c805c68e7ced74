//! The daemon's end: one thread, one asker after the other. Each is a program of a user who may ask, and has a moment.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{Shutdown, shutdown};
use socket2::SockRef;

use super::wire::{ASK_MAX, decode_ask, encode_answer};
use crate::auth::{Bearer, Binding};
use crate::errno::{Errno, OsError, OsResult, Step};
use crate::limits::{CALLER_GROUPS_MAX, VOUCH_BACKLOG, VOUCH_PATIENCE_MS};
use crate::link::{Authority, Judged};
use crate::sys::unix::{self, SocketKind};
use crate::sys::{caps, peer, scm};

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
    pub fn start(dir: &Path, host: Arc<dyn Host>) -> OsResult<Self> {
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
        let run = move || serve(&serving, host.as_ref());
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

fn serve(listener: &OwnedFd, host: &dyn Host) {
    loop {
        match unix::accept(listener.as_fd()) {
            Ok(asker) => {
                let patience = Some(Duration::from_millis(VOUCH_PATIENCE_MS));
                let socket = SockRef::from(&asker);
                if socket.set_read_timeout(patience).and_then(|()| socket.set_write_timeout(patience)).is_err() {
                    continue;
                }
                if let Some(answer) = answer(asker.as_fd(), host) {
                    // An asker that has gone needs none.
                    let _ = scm::send(asker.as_fd(), &encode_answer(&answer), &[]);
                }
            }
            Err(Errno::EINTR | Errno::ECONNABORTED) => {}
            // Shut down: the daemon ends.
            Err(Errno::EINVAL) => return,
            Err(errno) => {
                tracing::warn!(%errno, "accept an asker for a voucher");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// `None`: it has asked nothing that is to be answered.
fn answer(asker: BorrowedFd<'_>, host: &dyn Host) -> Option<Result<Judged, String>> {
    let who = peer::peer(asker).ok()?;
    let groups = peer::groups(asker, CALLER_GROUPS_MAX).ok()?;
    if !host.may_ask(who.uid, who.gid, &groups) {
        tracing::warn!(uid = who.uid, pid = who.pid, "no voucher: this user may not reach other machines");
        let why = "may not use this machine's key; an administrator may put it into the group `farside`, or into \
                   [local] users of node.toml";
        return Some(Err(format!("user {} {why}", who.uid)));
    }
    let mut bytes = [0; ASK_MAX];
    let record = scm::receive_waiting(asker, &mut bytes).ok()?;
    let shown = match decode_ask(&bytes[..record.len]) {
        Ok(shown) if !record.truncated && record.fds.is_empty() => shown,
        _ => return Some(Err("an ask that this release does not know".into())),
    };
    Some(vouch(asker, who, groups, &shown, host))
}

fn vouch(
    asker: BorrowedFd<'_>,
    who: peer::Peer,
    groups: Vec<u32>,
    shown: &crate::link::Shown,
    host: &dyn Host,
) -> Result<Judged, String> {
    let judged = host.judge(shown).map_err(|stranger| stranger.log)?;
    let process = peer::process(asker).map_err(|e| e.to_string())?;
    let (sets, no_new_privs) = caps::of(who.pid).map_err(|e| e.to_string())?;
    // It lives: what was read of its number was its own.
    if process.ends_within(Duration::ZERO).map_err(|e| e.to_string())? {
        return Err("the asker has ended".into());
    }
    let caps::Sets { inheritable, permitted, bounding, ambient } = sets;
    let (uid, gid) = (who.uid, who.gid);
    let bearer = Bearer { uid, gid, groups, inheritable, permitted, bounding, ambient, no_new_privs };
    let voucher = host.vouch(&shown.binding, &bearer)?;
    tracing::info!(uid, pid = who.pid, peer = judged.name, addr = %shown.ends.there, "vouched for");
    Ok(Judged { voucher, ..judged })
}
