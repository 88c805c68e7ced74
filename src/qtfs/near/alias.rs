//! Local listeners on host sockets' inodes, so that a plain connect(2) on the DPU reaches the host.
//!
//! ```text
//!   LOOKUP of a host socket ──▶ bind(2) in the hidden directory ──▶ MKNOD there, answered with the host socket's node
//!        reply held back                                                            │
//!        reply ◀──────────── listen(2) ◀───────── the inode has a local listener ◀──┘
//!   connect(2) on the real path: the kernel finds the listener by inode ──accept──▶ SocketCarrier
//! ```
//!
//! Who may connect is decided by the inode's mode, as on the host: the kernel wants write permission on it.
//!
//! The hidden directory is held on a copy of the mount that is in no namespace, so neither it nor a listener keeps
//! `umount` from working. Its requests never go to the far side, and nothing here waits for the far side: the thread
//! that binds needs only the threads that read /dev/fuse.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{self, AddressFamily, Backlog, Shutdown, SockFlag, SockType, UnixAddr};

use super::device::Device;
use crate::errno::{OsResult, Step};
use crate::limits::{ALIAS_DEADLINE_MS, ALIASES_MAX};
use crate::lograte::Condition;
use crate::qtfs::abi::{ENTRY, OUT_HEADER};
use crate::qtfs::wire::{HostSocket, SocketType};

/// How often the binding thread looks whether it is still wanted.
const LOOK_UP: Duration = Duration::from_millis(500);

/// Takes over connections that local programs made to host sockets.
pub trait SocketCarrier: Send + Sync {
    /// Carries `accepted` to the host's socket at `host_path`. Called on the thread that accepts: it must hand the work
    /// on and return. The program's identity is the SO_PEERCRED of `accepted`.
    fn carry(&self, host_path: &Path, kind: SocketType, accepted: OwnedFd);
}

struct Alias {
    listener: Arc<OwnedFd>,
    kind: SocketType,
    path: PathBuf,
}

/// A LOOKUP whose reply waits for its listener.
pub(super) struct Job {
    socket: HostSocket,
    node: u64,
    entry: Vec<u8>,
    held: Arc<Held>,
}

/// The reply itself: whoever takes it, the binder or the deadline, hands it to the kernel.
struct Held {
    reply: Mutex<Option<Vec<u8>>>,
    since: Instant,
}

pub(super) struct Aliases {
    by_node: Mutex<HashMap<u64, Alias>>,
    /// What the next MKNOD in the hidden directory is answered with.
    expected: Mutex<Option<Vec<u8>>>,
    hidden: Mutex<Option<Arc<OwnedFd>>>,
    waiting: Mutex<Vec<Arc<Held>>>,
    jobs: SyncSender<Job>,
    wake: std::os::unix::net::UnixDatagram,
    ended: AtomicBool,
}

/// The ends that the two threads here own.
pub(super) struct Inlets {
    jobs: Receiver<Job>,
    woken: std::os::unix::net::UnixDatagram,
}

fn locked<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().expect("never poisoned: panics abort")
}

impl Aliases {
    pub(super) fn new() -> OsResult<(Arc<Self>, Inlets)> {
        let (jobs, inlet) = sync_channel(ALIASES_MAX);
        let (wake, woken) = std::os::unix::net::UnixDatagram::pair().step("socketpair")?;
        wake.set_nonblocking(true).step("socketpair")?;
        woken.set_nonblocking(true).step("socketpair")?;
        let aliases = Self {
            by_node: Mutex::default(),
            expected: Mutex::default(),
            hidden: Mutex::default(),
            waiting: Mutex::default(),
            jobs,
            wake,
            ended: AtomicBool::new(false),
        };
        Ok((Arc::new(aliases), Inlets { jobs: inlet, woken }))
    }

    /// From now on there can be aliases.
    pub(super) fn open(&self, hidden: OwnedFd) {
        *locked(&self.hidden) = Some(Arc::new(hidden));
    }

    /// The mount has no users: without this the directory and the listeners would be its last ones.
    pub(super) fn close(&self) {
        locked(&self.hidden).take();
        self.clear();
    }

    /// The mount is over: both threads here end.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.close();
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// The nodes that listeners were bound to are the far side's no more.
    pub(super) fn clear(&self) {
        let all = std::mem::take(&mut *locked(&self.by_node));
        all.into_values().for_each(Alias::end);
        self.wake();
    }

    pub(super) fn nodes(&self) -> Vec<u64> {
        locked(&self.by_node).keys().copied().collect()
    }

    /// No host process is bound to this node any more.
    pub(super) fn remove(&self, node: u64) {
        let gone = locked(&self.by_node).remove(&node);
        if let Some(gone) = gone {
            gone.end();
            self.wake();
        }
    }

    /// Gives `reply`, a LOOKUP's that found a host socket, to the kernel once the socket has its listener.
    pub(super) fn hold(&self, device: &Device, socket: HostSocket, reply: &[u8]) {
        let entry = reply.get(OUT_HEADER..OUT_HEADER + ENTRY);
        let node = entry.and_then(|e| e.first_chunk()).map(|b| u64::from_le_bytes(*b));
        let (Some(entry), Some(node)) = (entry, node) else { return device.reply(reply) };
        let known = locked(&self.by_node).get(&node).is_some_and(|a| a.kind == socket.kind);
        // A datagram socket has no connections to hand on.
        if known || socket.kind == SocketType::Datagram || locked(&self.hidden).is_none() {
            return device.reply(reply);
        }
        self.remove(node);
        let held = Arc::new(Held { reply: Mutex::new(Some(reply.to_vec())), since: Instant::now() });
        locked(&self.waiting).push(held.clone());
        if self.jobs.try_send(Job { socket, node, entry: entry.to_vec(), held: held.clone() }).is_err() {
            self.deliver(device, &held);
        }
    }

    fn deliver(&self, device: &Device, held: &Arc<Held>) {
        locked(&self.waiting).retain(|h| !Arc::ptr_eq(h, held));
        if let Some(reply) = locked(&held.reply).take() {
            device.reply(&reply);
        }
    }

    /// Lets go of LOOKUPs that have waited for too long: the bind may be waiting for an umount, or the other way round.
    pub(super) fn let_go(&self, device: &Device) {
        let limit = Duration::from_millis(ALIAS_DEADLINE_MS);
        let late: Vec<_> = locked(&self.waiting).iter().filter(|h| h.since.elapsed() > limit).cloned().collect();
        for held in late {
            tracing::warn!("a host socket's local listener took too long; connect() will say ECONNREFUSED");
            self.deliver(device, &held);
        }
    }

    /// MKNOD in the hidden directory: the entry to answer with, if it is one of ours.
    pub(super) fn expected(&self) -> Option<Vec<u8>> {
        locked(&self.expected).take()
    }

    fn wake(&self) {
        // Full: the accepting thread has been woken often enough.
        let _ = self.wake.send(&[0]);
    }

    /// The thread that binds.
    pub(super) fn bind_all(&self, inlets: &Receiver<Job>, device: &Device) {
        let mut next = 0u64;
        while !self.has_ended() {
            let Ok(job) = inlets.recv_timeout(LOOK_UP) else { continue };
            next += 1;
            let path = PathBuf::from(OsStr::from_bytes(&job.socket.path));
            match self.bind(&job, next) {
                Ok(()) => tracing::debug!("{}: listening here for the host's socket", path.display()),
                Err(e) => tracing::warn!("{}: no local listener for the host's socket: {e}", path.display()),
            }
            self.deliver(device, &job.held);
        }
    }

    fn bind(&self, job: &Job, number: u64) -> OsResult<()> {
        if locked(&self.by_node).contains_key(&job.node) {
            return Ok(());
        }
        if locked(&self.by_node).len() >= ALIASES_MAX {
            return Err(Errno::ENFILE).step_on("at most", format!("{ALIASES_MAX} host sockets"));
        }
        let Some(hidden) = locked(&self.hidden).clone() else { return Err(Errno::ENODEV).step("hidden directory") };
        let kind = match job.socket.kind {
            SocketType::Stream => SockType::Stream,
            SocketType::SeqPacket => SockType::SeqPacket,
            SocketType::Datagram => return Err(Errno::EOPNOTSUPP).step("datagram socket"),
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket::socket(AddressFamily::Unix, kind, flags, None).step("socket")?;
        let address = format!("/proc/self/fd/{}/{number}", hidden.as_raw_fd());
        let address = UnixAddr::new(address.as_str()).step("socket address")?;
        *locked(&self.expected) = Some(job.entry.clone());
        let bound = socket::bind(listener.as_raw_fd(), &address);
        locked(&self.expected).take();
        bound.step("bind")?;
        socket::listen(&listener, Backlog::MAXCONN).step("listen")?;
        let path = OsStr::from_bytes(&job.socket.path).into();
        let alias = Alias { listener: Arc::new(listener), kind: job.socket.kind, path };
        locked(&self.by_node).insert(job.node, alias);
        self.wake();
        Ok(())
    }

    /// The thread that accepts.
    pub(super) fn accept_all(&self, woken: &std::os::unix::net::UnixDatagram, carrier: &dyn SocketCarrier) {
        while !self.has_ended() {
            let now: Vec<_> = {
                let by_node = locked(&self.by_node);
                by_node.values().map(|a| (a.listener.clone(), a.kind, a.path.clone())).collect()
            };
            let mut fds = vec![PollFd::new(woken.as_fd(), PollFlags::POLLIN)];
            fds.extend(now.iter().map(|(l, ..)| PollFd::new(l.as_fd(), PollFlags::POLLIN)));
            if nix::poll::poll(&mut fds, PollTimeout::NONE).is_err() {
                continue;
            }
            let ready: Vec<_> = fds.iter().map(|f| f.any().unwrap_or(false)).collect();
            let mut byte = [0];
            while woken.recv(&mut byte).is_ok() {}
            for ((listener, kind, path), _) in now.iter().zip(&ready[1..]).filter(|(_, ready)| **ready) {
                accept(listener, *kind, path, carrier);
            }
        }
    }
}

/// No connection can be accepted: as a rule, because this process has no fd for it.
static STARVED: LazyLock<Condition> = LazyLock::new(Condition::default);

fn accept(listener: &OwnedFd, kind: SocketType, path: &Path, carrier: &dyn SocketCarrier) {
    match crate::sys::file::accept(listener.as_fd()) {
        Ok(accepted) => {
            if STARVED.ends(Instant::now()) {
                tracing::info!("clients of the host's sockets are accepted again");
            }
            carrier.carry(path, kind, accepted);
        }
        // Gone again, or the listener has ended.
        Err(Errno::EAGAIN | Errno::ECONNABORTED | Errno::EINTR | Errno::EINVAL) => {}
        Err(e) => {
            if STARVED.begins(Instant::now()) {
                tracing::warn!("{}: clients of the host's sockets wait: they cannot be accepted: {e}", path.display());
            }
            // Out of fds, most likely: the listener stays readable, and polling it would spin.
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Alias {
    /// From here on connect(2) says ECONNREFUSED, though the accepting thread still holds the fd for a moment.
    fn end(self) {
        let _ = socket::shutdown(self.listener.as_raw_fd(), Shutdown::Both);
    }
}

impl Inlets {
    pub(super) fn split(self) -> (Receiver<Job>, std::os::unix::net::UnixDatagram) {
        (self.jobs, self.woken)
    }
}
