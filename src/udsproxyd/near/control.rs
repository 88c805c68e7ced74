//! The socket that askers connect to: made safely, and by one daemon at a time.
//!
//! ```text
//!   DIR/            0700 (0711 when uids are named), ours
//!   DIR/uds.sock    0600 (0666)
//!   DIR/uds.lock    flock: held by the living daemon
//!   DIR/uds.d/      0700: private listeners
//! ```
//!
//! Who holds the lock may remove whatever a dead daemon left; so no socket of a living one is ever taken for stale.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use socket2::SockRef;

use super::Options;
use crate::errno::{Errno, OsError, OsResult, Step};
use crate::limits::{ASK_IDLE_MS, ASKS_MAX};
use crate::sys::unix::{self, SocketKind};

#[derive(Debug)]
pub(super) struct Control {
    pub(super) listener: OwnedFd,
    pub(super) private: PathBuf,
    socket: PathBuf,
    made_dir: bool,
    /// Once cleared, what is at these paths may be the next daemon's.
    cleared: AtomicBool,
    _lock: Flock<File>,
}

impl Control {
    pub(super) fn bind(options: &Options) -> OsResult<Self> {
        let socket = options.socket.clone();
        let shared = options.users.are_more_than_root();
        let made_dir = directory(&socket, if shared { 0o711 } else { 0o700 })?;
        let lock = lock(&socket)?;
        let private = socket.with_extension("d");
        remove(fs::remove_dir_all(&private)).step_on("remove", private.display())?;
        DirBuilder::new().mode(0o700).create(&private).step_on("mkdir", private.display())?;
        remove(fs::remove_file(&socket)).step_on("unlink", socket.display())?;
        let listener = listen(&socket, if shared { 0o666 } else { 0o600 })?;
        let cleared = AtomicBool::new(false);
        Ok(Self { listener, private, socket, made_dir, cleared, _lock: lock })
    }

    /// Whether others than root may ask may change while the daemon lives.
    pub(super) fn share(&self, shared: bool) -> OsResult<()> {
        let [dir_mode, mode] = if shared { [0o711, 0o666] } else { [0o700, 0o600] };
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        set(&self.socket, mode).step_on("chmod", self.socket.display())?;
        let Some(dir) = self.socket.parent() else { return Ok(()) };
        set(dir, dir_mode).step_on("chmod", dir.display())
    }

    /// Leaves nothing behind. Not left to `drop` alone: the last owner may be a thread that the process's end overtakes.
    pub(super) fn clear(&self) {
        if self.cleared.swap(true, Ordering::Relaxed) {
            return;
        }
        // The lock is still held: both are ours. What can't be removed is removed by the next daemon.
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_dir_all(&self.private);
        let _ = fs::remove_file(self.socket.with_extension("lock"));
        // Only if it was made for this socket; not empty: somebody else's things are in it.
        if self.made_dir {
            let _ = self.socket.parent().map(fs::remove_dir);
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.clear();
    }
}

fn remove(result: std::io::Result<()>) -> std::io::Result<()> {
    result.or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

/// The socket's directory: made if it is missing, refused unless nobody else may write to it. Returns whether it was made.
fn directory(socket: &Path, mode: u32) -> OsResult<bool> {
    let dir = socket.parent().filter(|_| socket.is_absolute());
    let dir = dir.ok_or_else(|| OsError::on("listen on", socket.display(), Errno::EINVAL))?;
    let made = match DirBuilder::new().mode(mode).create(dir) {
        Ok(()) => true,
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => false,
        Err(e) => return Err(e).step_on("mkdir", dir.display()),
    };
    let flags = nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW;
    let handle = OpenOptions::new().read(true).custom_flags(flags).open(dir).step_on("open", dir.display())?;
    let meta = handle.metadata().step_on("stat", dir.display())?;
    if meta.uid() != nix::unistd::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
        return Err(OsError::on("use a directory that others may write to", dir.display(), Errno::EPERM));
    }
    if meta.mode() & 0o777 != mode {
        handle.set_permissions(fs::Permissions::from_mode(mode)).step_on("chmod", dir.display())?;
    }
    Ok(made)
}

fn lock(socket: &Path) -> OsResult<Flock<File>> {
    let path = socket.with_extension("lock");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
    loop {
        let file = options.open(&path).step_on("open", path.display())?;
        let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
            let errno = if errno == Errno::EAGAIN { Errno::EADDRINUSE } else { errno };
            OsError::on("listen on", format!("{} (another daemon serves it)", socket.display()), errno)
        })?;
        // A daemon that was just ending may have removed the file between our open and our lock: then it is nobody's.
        let ours = locked.metadata().step_on("stat", path.display())?;
        if fs::symlink_metadata(&path).is_ok_and(|now| (now.dev(), now.ino()) == (ours.dev(), ours.ino())) {
            return Ok(locked);
        }
    }
}

fn listen(socket: &Path, mode: u32) -> OsResult<OwnedFd> {
    let name = socket.as_os_str().as_encoded_bytes();
    let listener = unix::socket(SocketKind::SeqPacket, false).step("socket")?;
    unix::bind(listener.as_fd(), name).step_on("bind", socket.display())?;
    // Nobody can connect before listen, so the mode is right in time.
    fs::set_permissions(socket, fs::Permissions::from_mode(mode)).step_on("chmod", socket.display())?;
    // An accept that returns now and then lets idle threads end.
    SockRef::from(&listener).set_read_timeout(Some(Duration::from_millis(ASK_IDLE_MS))).step("SO_RCVTIMEO")?;
    let backlog = i32::try_from(ASKS_MAX).expect("a small number");
    unix::listen(listener.as_fd(), backlog).step_on("listen", socket.display())?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::Users;

    fn options(name: &str) -> (PathBuf, Options) {
        let dir = std::env::temp_dir().join(format!("uds-control-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let options = Options { socket: dir.join("uds.sock"), ..Options::default() };
        (dir, options)
    }

    #[test]
    fn a_living_daemon_is_not_replaced_and_a_dead_one_is() {
        let (dir, options) = options("stale");
        let first = Control::bind(&options).unwrap();
        let refused = Control::bind(&options).unwrap_err();
        assert_eq!(refused.errno, Errno::EADDRINUSE);
        assert!(refused.to_string().contains("another daemon"), "{refused}");
        // As after a kill: the socket stays, the lock goes.
        let Control { listener, .. } = &first;
        let _ = listener;
        drop(first);
        assert!(!dir.exists(), "what was made for the socket goes with it");
        fs::create_dir(&dir).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&options.socket).unwrap());
        assert!(options.socket.exists());
        drop(Control::bind(&options).unwrap());
        assert!(!options.socket.exists());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn only_the_owner_can_reach_the_socket_unless_uids_are_named() {
        let (dir, mut options) = options("modes");
        for (uids, dir_mode, mode) in [(vec![], 0o700, 0o600), (vec![1], 0o711, 0o666), (vec![], 0o700, 0o600)] {
            options.users = Users::default().with(&uids);
            let _control = Control::bind(&options).unwrap();
            assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, dir_mode);
            assert_eq!(fs::metadata(&options.socket).unwrap().mode() & 0o777, mode);
            assert_eq!(fs::metadata(dir.join("uds.d")).unwrap().mode() & 0o777, 0o700);
        }
        assert!(!dir.exists());
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let (dir, options) = options("open");
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(Control::bind(&options).unwrap_err().errno, Errno::EPERM);
        fs::remove_dir_all(dir).unwrap();
    }
}
