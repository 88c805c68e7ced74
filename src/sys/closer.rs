//! fds that programs have sent, closed by threads of their own where the close may wait for ever.
//!
//! close(2) asks a FUSE file system to flush, and a program may be its own file system and never answer. So what may be
//! such a file is closed by a few threads which may hang, and nobody else waits for them.
//!
//! ```text
//!   a unix socket without SO_LINGER, a pipe, an eventfd, a memfd, /dev/null ──▶ closed at once
//!   any other socket, what the kernel names by a path ──▶ queue ──▶ one of CLOSERS_MAX threads
//! ```
//!
//! When all of them hang, fds stay in the queue: they are leaked, on purpose, until the file system answers or goes. From
//! CLOSING_MAX of them on `is_choked` says so, and no more are to be received.

use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use socket2::{Domain, SockRef};

use super::file;
use super::pool::{Bounds, Pool};
use crate::limits::{ASK_STACK_BYTES, CLOSERS_MAX, CLOSING_MAX, HELPERS_IDLE_MS};

static CLOSERS: LazyLock<Pool<OwnedFd>> = LazyLock::new(|| {
    let idle = Duration::from_millis(HELPERS_IDLE_MS);
    let bounds = Bounds { name: "closer", kept: 0, most: CLOSERS_MAX, idle, stack_bytes: ASK_STACK_BYTES };
    Pool::new(bounds, || {
        Some(Box::new(|fd| {
            breathe();
            drop(fd);
            true
        }))
    })
});
static CHOKED: AtomicBool = AtomicBool::new(false);

/// Closes fds that came from elsewhere. Never waits.
pub fn close(fds: impl IntoIterator<Item = OwnedFd>) {
    for fd in fds {
        if may_wait(fd.as_fd()) {
            queue(fd);
        }
    }
}

/// Closes a socket in which messages may be that nobody has read: what they hold is closed with it.
pub fn close_unread(socket: OwnedFd) {
    queue(socket);
}

/// So many fds wait for a close that does not end that no more should be received.
pub fn is_choked() -> bool {
    CHOKED.load(Ordering::Relaxed)
}

/// Asks the kernel alone, and not the file's file system. Changes nothing: whoever sent the fd may have it too, and an
/// option of a socket belongs to all who have it open.
fn may_wait(fd: BorrowedFd<'_>) -> bool {
    let socket = SockRef::from(&fd);
    // Only a socket has this. An inode that is open by its path alone (O_PATH) is none: its close may be what unmounts a
    // file system.
    if let Ok(linger) = socket.linger() {
        // With SO_LINGER a close may wait for the peer, socket(7). Another program may set it between this and the close;
        // on a unix socket it has no effect then.
        return linger.is_some() || socket.domain().ok() != Some(Domain::UNIX);
    }
    // Of a file with a path the name begins with a slash, wherever it is mounted; what has none has a colon in it.
    let by_path = file::name_of(fd).is_none_or(|name| name.as_os_str().as_encoded_bytes().starts_with(b"/"));
    // memfds are called by a path too. Only memory has seals. /dev/null and its like are the kernel's, wherever they lie:
    // an open device has its driver's operations, and no file system's.
    by_path && fcntl(fd, FcntlArg::F_GET_SEALS).is_err() && !is_memory_device(fd)
}

fn is_memory_device(fd: BorrowedFd<'_>) -> bool {
    file::stat_as_known(fd).is_ok_and(|stat| stat.is_memory_device())
}

fn queue(fd: OwnedFd) {
    if CLOSERS.submit(fd) == CLOSING_MAX {
        if !CHOKED.swap(true, Ordering::Relaxed) {
            let what = "files that programs sent can't be closed: their file system does not answer";
            tracing::warn!("{CLOSING_MAX} {what}; programs can pass no more until it does");
        }
        // They may all have been closed since.
        breathe();
    }
}

fn breathe() {
    if CLOSERS.waiting() < CLOSING_MAX / 2 && CHOKED.swap(false, Ordering::Relaxed) {
        tracing::info!("files that programs sent can be closed again");
    }
}

/// An fd that a program has sent: dropped, it is closed by `close`.
pub type Received = ClosedLater<false>;

/// A socket in which messages may be that nobody has read: dropped, it is closed by `close_unread`.
pub type Unread = ClosedLater<true>;

#[derive(Debug)]
pub struct ClosedLater<const UNREAD: bool>(Option<OwnedFd>);

impl<const UNREAD: bool> ClosedLater<UNREAD> {
    pub fn into_inner(mut self) -> OwnedFd {
        self.0.take().expect("taken once")
    }
}

impl<const UNREAD: bool> From<OwnedFd> for ClosedLater<UNREAD> {
    fn from(fd: OwnedFd) -> Self {
        Self(Some(fd))
    }
}

impl<const UNREAD: bool> Deref for ClosedLater<UNREAD> {
    type Target = OwnedFd;

    fn deref(&self) -> &OwnedFd {
        self.0.as_ref().expect("not taken")
    }
}

impl<const UNREAD: bool> AsFd for ClosedLater<UNREAD> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        (**self).as_fd()
    }
}

impl<const UNREAD: bool> Drop for ClosedLater<UNREAD> {
    fn drop(&mut self) {
        match self.0.take() {
            Some(socket) if UNREAD => close_unread(socket),
            fd => close(fd),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::Instant;

    use super::*;

    #[test]
    fn only_what_has_a_path_may_wait() {
        let memory = nix::sys::memfd::memfd_create(c"x", nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING).unwrap();
        let (pipe, _writer) = nix::unistd::pipe().unwrap();
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!may_wait(memory.as_fd()) && !may_wait(pipe.as_fd()) && !may_wait(socket.as_fd()));
        let dir = crate::sys::tempdir::PrivateDir::new("closer").unwrap();
        let bound = dir.path().join("bound");
        let _listener = std::os::unix::net::UnixListener::bind(&bound).unwrap();
        let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC;
        let inode = nix::fcntl::open(&bound, flags, nix::sys::stat::Mode::empty()).unwrap();
        assert!(SockRef::from(&inode).linger().is_err() && may_wait(inode.as_fd()), "a socket's inode");
        for path in ["/dev/ptmx", "/", "/proc/self/exe"] {
            assert!(may_wait(std::fs::File::open(path).unwrap().as_fd()), "{path}");
        }
        assert!(!may_wait(std::fs::File::open("/dev/null").unwrap().as_fd()));
    }

    /// Two ends of a TCP connection, of which the first lingers.
    fn lingering() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        SockRef::from(&ours).set_linger(Some(LINGERS)).unwrap();
        (ours, listener.accept().unwrap().0)
    }

    const LINGERS: Duration = Duration::from_secs(5);

    #[test]
    fn a_socket_that_its_program_still_has_keeps_its_options() {
        let (tcp, _other) = lingering();
        let (unix, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        SockRef::from(&unix).set_linger(Some(LINGERS)).unwrap();
        close([tcp.try_clone().unwrap().into(), unix.try_clone().unwrap().into()]);
        for socket in [SockRef::from(&tcp), SockRef::from(&unix)] {
            assert_eq!(socket.linger().unwrap(), Some(LINGERS));
        }
    }

    #[test]
    fn a_socket_that_lingers_keeps_nobody_waiting() {
        let (tcp, _does_not_read) = lingering();
        tcp.set_nonblocking(true).unwrap();
        while (&tcp).write(&[0; 64 << 10]).is_ok() {}
        let begun = Instant::now();
        close([tcp.into()]);
        assert!(begun.elapsed() < LINGERS / 2, "it waited for the peer");
    }

    #[test]
    fn what_may_wait_is_closed_soon() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        // A pipe by its path: a FIFO's name begins with a slash.
        let dir = crate::sys::tempdir::PrivateDir::new("closer").unwrap();
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
        let both = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        let read = std::fs::File::open(&path).unwrap();
        close([OwnedFd::from(both), writer]);
        // The end of both shows: nobody writes any more.
        for mut end in [std::fs::File::from(reader), read] {
            assert_eq!(std::io::Read::read(&mut end, &mut [0]).unwrap(), 0);
        }
    }
}
