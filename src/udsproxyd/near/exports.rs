//! Exports: sockets of the other machine that programs find at a path here, with no library in between.
//!
//! ```text
//!   a client ── connect(LOCAL) ──▶ accept ──▶ FAR, as that client ──▶ attach      a no: the client's connection ends
//! ```
//!
//! A datagram socket has no clients to tell apart, so such an export is root's alone, and goes to FAR as root; nothing
//! comes back.
//!
//! A path is taken only if nobody listens there: the socket file of a dead daemon is replaced, a living one's is not.
//! What is removed at the end is the very inode that was made.

use std::fmt;
use std::fs::Permissions;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, fchown, lchown};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};
use nix::sys::stat::{Mode, fchmod};
use socket2::SockRef;
use tracing::{error, info, warn};

use super::ask::{Desk, No};
use super::{End, path::climbs};
use crate::errno::{Errno, OsError, OsResult, Step, errno_of};
use crate::limits::{ASK_STACK_BYTES, ASKS_MAX, EXPORT_LOOK_MS, EXPORTS_MAX, RECORD_MAX};
use crate::link::Helpers;
use crate::lograte::Condition;
use crate::sys::closer::{self, Received, Unread};
use crate::sys::scm::{self, Record};
use crate::sys::unix::{self, SocketKind};
use crate::udsproxyd::wire::{check_name, printable};

/// FAR at LOCAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    local: PathBuf,
    /// As the far side is asked for it.
    far: Vec<u8>,
    kind: SocketKind,
    mode: u32,
    /// uid and gid.
    owner: (u32, u32),
}

impl Export {
    /// Who may connect, unless said otherwise: root.
    pub const MODE: u32 = 0o600;

    /// `far` is an absolute path, or `@` and an abstract name.
    pub fn new(local: &[u8], far: &[u8], kind: SocketKind, mode: u32, owner: (u32, u32)) -> Result<Self, String> {
        let shown = |name: &[u8]| name.escape_ascii().to_string();
        if local.first() != Some(&b'/') || climbs(local) || local.contains(&0) || local.len() >= unix::NAME_MAX {
            return Err(format!("{}: LOCAL is an absolute path of at most 107 bytes", shown(local)));
        }
        let far_name = match far {
            [b'@', rest @ ..] => [&[0], rest].concat(),
            path => path.to_vec(),
        };
        if check_name(&far_name).is_err() {
            return Err(format!("{}: FAR is an absolute path or @NAME", shown(far)));
        }
        if mode & !0o777 != 0 {
            return Err(format!("mode {mode:o} is more than read, write and execute"));
        }
        if kind == SocketKind::Datagram && (mode, owner) != (Self::MODE, (0, 0)) {
            return Err("senders of datagrams can't be told apart: a dgram export is root's, mode 0600".into());
        }
        let local = PathBuf::from(std::ffi::OsStr::from_bytes(local));
        Ok(Self { local, far: far_name, kind, mode, owner })
    }

    /// Whether these can stand together.
    pub fn check(all: &[Self]) -> Result<(), String> {
        if all.len() > EXPORTS_MAX {
            return Err(format!("{} exports where {EXPORTS_MAX} are the most", all.len()));
        }
        match all.iter().enumerate().find(|(n, e)| all[..*n].iter().any(|other| other.local == e.local)) {
            Some((_, twice)) => Err(format!("{} is exported twice", twice.local.display())),
            None => Ok(()),
        }
    }
}

/// `[KIND:]LOCAL=FAR`.
impl FromStr for Export {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let kinds =
            [("stream:", SocketKind::Stream), ("seqpacket:", SocketKind::SeqPacket), ("dgram:", SocketKind::Datagram)];
        let found = kinds.iter().find_map(|(word, kind)| Some((text.strip_prefix(word)?, *kind)));
        let (pair, kind) = found.unwrap_or((text, SocketKind::Stream));
        let (local, far) = pair.split_once('=').ok_or("an export is LOCAL=FAR")?;
        Self::new(local.as_bytes(), far.as_bytes(), kind, Self::MODE, (0, 0))
    }
}

impl fmt::Display for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            SocketKind::Stream => "",
            SocketKind::SeqPacket => "seqpacket:",
            SocketKind::Datagram => "dgram:",
        };
        write!(f, "{kind}{}={}", self.local.display(), printable(&self.far))
    }
}

pub(super) struct Exports {
    desk: Arc<Desk>,
    helpers: Helpers,
    /// Clients whose far side has not answered yet.
    asking: Arc<AtomicUsize>,
    open: Mutex<Vec<Open>>,
}

/// One that is listened on.
struct Open {
    export: Export,
    listening: Arc<Listening>,
    thread: thread::JoinHandle<()>,
}

struct Listening {
    /// What its clients have sent and nobody has read may hold files that do not answer.
    socket: Unread,
    /// Device and inode of what was made at LOCAL.
    made: (u64, u64),
    closed: AtomicBool,
}

impl Exports {
    pub(super) fn new(desk: Arc<Desk>) -> Self {
        Self { desk, helpers: Helpers::default(), asking: Arc::default(), open: Mutex::default() }
    }

    /// From now on these and no others.
    ///
    /// # Errors
    /// The first that could not be opened; all others are.
    pub(super) fn set(&self, wanted: &[Export]) -> OsResult<()> {
        let mut open = self.open.lock().expect("a panic ends the process");
        let (stay, go): (Vec<_>, Vec<_>) = open.drain(..).partition(|o| wanted.contains(&o.export));
        *open = stay;
        go.into_iter().for_each(Open::close);
        let mut failed = Ok(());
        for export in wanted {
            if open.iter().any(|o| o.export == *export) {
                continue;
            }
            match self.open(export.clone()) {
                Ok(one) => {
                    info!("exported: {export}");
                    open.push(one);
                }
                Err(e) => {
                    error!("not exported: {export}: {e}");
                    failed = failed.and(Err(e));
                }
            }
        }
        failed
    }

    fn open(&self, export: Export) -> OsResult<Open> {
        let (socket, made) = listen(&export)?;
        let listening = Arc::new(Listening { socket: socket.into(), made, closed: AtomicBool::new(false) });
        let client = Client { desk: self.desk.clone(), export: export.clone() };
        let (theirs, helpers, asking) = (listening.clone(), self.helpers.clone(), self.asking.clone());
        let named = thread::Builder::new().name("uds-export".into()).stack_size(ASK_STACK_BYTES);
        let body = move || match client.export.kind {
            SocketKind::Datagram => client.relay(&theirs),
            _ => client.accept(&theirs, &helpers, &asking),
        };
        match named.spawn(body) {
            Ok(thread) => Ok(Open { export, listening, thread }),
            Err(e) => {
                listening.remove(&export.local);
                Err(OsError::new("start a thread", errno_of(&e)))
            }
        }
    }
}

impl Drop for Exports {
    fn drop(&mut self) {
        // Nothing to open, so nothing to fail.
        let _ = self.set(&[]);
    }
}

impl Open {
    fn close(self) {
        self.listening.closed.store(true, Ordering::Release);
        self.listening.remove(&self.export.local);
        // Wakes the thread.
        let _ = shutdown(self.listening.socket.as_fd().as_raw_fd(), Shutdown::Both);
        self.thread.join().expect("a panic ends the process");
        info!("no longer exported: {}", self.export);
    }
}

impl Listening {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn remove(&self, path: &Path) {
        if path.symlink_metadata().is_ok_and(|m| (m.dev(), m.ino()) == self.made) {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn listen(export: &Export) -> OsResult<(OwnedFd, (u64, u64))> {
    let on = || export.local.display();
    let name = export.local.as_os_str().as_encoded_bytes();
    let socket = unix::socket(export.kind, false).step("socket")?;
    // The inode gets the socket's own mode and owner, so that nobody finds it with others.
    fchmod(&socket, Mode::from_bits_truncate(export.mode)).step("chmod a socket")?;
    fchown(&socket, Some(export.owner.0), Some(export.owner.1)).step("chown a socket")?;
    match unix::bind(socket.as_fd(), name) {
        Err(Errno::EADDRINUSE) if is_stale(export) => {
            std::fs::remove_file(&export.local).step_on("unlink", on())?;
            unix::bind(socket.as_fd(), name).step_on("bind", on())?;
        }
        result => result.step_on("bind", on())?,
    }
    let (uid, gid) = export.owner;
    lchown(&export.local, Some(uid), Some(gid)).step_on("chown", on())?;
    let meta = export.local.symlink_metadata().step_on("stat", on())?;
    if meta.mode() & 0o7777 != export.mode {
        // bind(2) has taken the umask off. The inode itself, whatever is at that path by now.
        let inode = unix::inode_of(socket.as_fd()).step_on("open the inode of", on())?;
        let own = format!("/proc/self/fd/{}", inode.as_raw_fd());
        std::fs::set_permissions(own, Permissions::from_mode(export.mode)).step_on("chmod", on())?;
    }
    if export.kind != SocketKind::Datagram {
        unix::listen(socket.as_fd(), i32::try_from(ASKS_MAX).expect("a small number")).step_on("listen", on())?;
    }
    Ok((socket, (meta.dev(), meta.ino())))
}

/// A socket file that nobody is behind.
fn is_stale(export: &Export) -> bool {
    let is_socket = export.local.symlink_metadata().is_ok_and(|m| m.file_type().is_socket());
    let name = export.local.as_os_str().as_encoded_bytes();
    let refused = |socket: OwnedFd| unix::connect(socket.as_fd(), name) == Err(Errno::ECONNREFUSED);
    is_socket && unix::socket(export.kind, true).is_ok_and(refused)
}

/// What one export's thread knows.
struct Client {
    desk: Arc<Desk>,
    export: Export,
}

impl Client {
    fn accept(self, listening: &Listening, helpers: &Helpers, asking: &Arc<AtomicUsize>) {
        let this = Arc::new(self);
        let (starved, full) = (Condition::default(), Condition::default());
        while !listening.is_closed() {
            match unix::accept(listening.socket.as_fd()) {
                Ok(too_many) if asking.load(Ordering::Relaxed) >= ASKS_MAX => {
                    closer::close_unread(too_many);
                    if full.begins(Instant::now()) {
                        warn!(
                            "{}: {ASKS_MAX} clients wait for the other machine; further ones are turned away",
                            this.export
                        );
                    }
                }
                Ok(client) => {
                    if starved.ends(Instant::now()) | full.ends(Instant::now()) {
                        info!("{}: clients are accepted again", this.export);
                    }
                    let (this, asking) = (this.clone(), asking.clone());
                    asking.fetch_add(1, Ordering::Relaxed);
                    helpers.run(move || {
                        this.carry(client);
                        asking.fetch_sub(1, Ordering::Relaxed);
                    });
                }
                Err(Errno::EINTR | Errno::ECONNABORTED) => {}
                Err(_) if listening.is_closed() => {}
                Err(errno) => {
                    if starved.begins(Instant::now()) {
                        warn!(%errno, "{}: clients wait: they cannot be accepted", this.export);
                    }
                    thread::sleep(Duration::from_millis(EXPORT_LOOK_MS));
                }
            }
        }
    }

    fn carry(&self, client: OwnedFd) {
        if let Err(no) = self.desk.carry(client, self.export.kind, &self.export.far) {
            self.say(&no);
        }
    }

    fn say(&self, no: &No) {
        match no {
            No::Errno(errno) => warn!("{}: {}", self.export, errno.desc()),
            No::NotRemote | No::Silent => {}
        }
    }

    /// Passes datagrams on to one far socket, and connects to it again when that has gone.
    fn relay(self, listening: &Listening) {
        let mut room = vec![0; RECORD_MAX as usize];
        let mut way: Option<(Unread, End)> = None;
        while !listening.is_closed() {
            match scm::receive_waiting(listening.socket.as_fd(), &mut room) {
                Ok(Record { len, fds, truncated, .. }) => {
                    // Whoever closes this export waits for this thread, and a file of theirs may never answer a close.
                    let fds: Vec<Received> = fds.into_iter().map(Received::from).collect();
                    if truncated {
                        warn!("{}: a datagram that is too long is dropped", self.export);
                        continue;
                    }
                    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                    self.pass_on(&mut way, &room[..len], &fds, listening);
                }
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    warn!(%errno, "receive on {}", self.export);
                    thread::sleep(Duration::from_millis(EXPORT_LOOK_MS));
                }
            }
        }
        if let Some((_, end)) = way {
            end(Errno::ECONNRESET);
        }
    }

    fn pass_on(&self, way: &mut Option<(Unread, End)>, bytes: &[u8], fds: &[BorrowedFd<'_>], listening: &Listening) {
        let mut renewed = false;
        while !listening.is_closed() {
            let Some((socket, _)) = way else {
                match self.desk.open_way(&self.export.far) {
                    Ok((socket, end)) => *way = Some((socket.into(), end)),
                    Err(no) => return self.say(&no),
                }
                renewed = true;
                continue;
            };
            match scm::send(socket.as_fd(), bytes, fds) {
                Ok(()) => return,
                // The far side reads slowly; senders here wait meanwhile.
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) if renewed => return warn!(%errno, "{}: a datagram is dropped", self.export),
                Err(_) => *way = None,
            }
        }
    }
}

/// Two datagram sockets that are each other's peers: one to send by, one for the stream.
pub(super) fn datagram_pair() -> OsResult<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().step("socketpair")?;
    SockRef::from(&ours).set_write_timeout(Some(Duration::from_millis(EXPORT_LOOK_MS))).step("SO_SNDTIMEO")?;
    unix::raise_send_buffer(ours.as_fd(), RECORD_MAX);
    Ok((ours.into(), theirs.into()))
}
