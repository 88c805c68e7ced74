//! A program's command, carried by a daemon's own session: no handshake of its own, and the daemon's ring pumps.
//!
//! ```text
//!   rexec ── where to, what its fds are for, the fds ──▶ daemon: who asks? a session there? ── OPEN(EXEC, bearer) ──▶
//!     ◀── control (the command's stream), ended (a byte when all that it wrote has been written here) ──┘
//! ```
//!
//! Only pipes, unix sockets and /dev/null go this way. A file may be of a file system that does not answer, and a terminal
//! belongs to whoever is in its foreground: those the program pumps itself, on a connection of its own.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::wire::CommandAsk;
use crate::auth::Bearer;
use crate::fdpass::Mode;
use crate::sys::{closer, file, same_file};

/// What a program hands over.
#[derive(Debug)]
pub struct Command {
    pub to: SocketAddr,
    /// As this machine's kernel knows it.
    pub bearer: Bearer,
    /// What the command's stream begins with; the fds go with it.
    pub first: Vec<u8>,
    pub fds: Vec<(OwnedFd, Mode)>,
}

/// What it gets for that.
#[derive(Debug)]
pub struct Carriage {
    /// The command's stream.
    pub control: UnixStream,
    /// Gives a byte when all that the command wrote has been written here; its end before that: the session is lost.
    pub ended: OwnedFd,
}

/// A node that has sessions.
pub trait Commands: Send + Sync {
    /// Called on a thread that may wait. `give` hands the program what it gets, before anything of its is touched; it may
    /// say no, because the program waits no longer.
    ///
    /// # Errors
    /// Why not, in a line; then nothing has begun, and the program goes its own way.
    fn carry(&self, command: Command, give: &mut dyn FnMut(Carriage) -> bool) -> Result<(), String>;
}

impl Command {
    /// # Errors
    /// One line: the ask is not what a program of this release sends.
    pub(super) fn new(ask: CommandAsk, fds: Vec<OwnedFd>, bearer: Bearer) -> Result<Self, String> {
        if fds.len() != ask.modes.len() || !fds.iter().all(|fd| goes(fd.as_fd())) {
            closer::close(fds);
            return Err("fds that a daemon does not pump".into());
        }
        let fds = fds.into_iter().zip(ask.modes).collect();
        Ok(Self { to: ask.to, bearer, first: ask.first, fds })
    }
}

/// Whether an fd may go this way. Asks the kernel alone, and not the file's file system.
pub fn goes(fd: BorrowedFd<'_>) -> bool {
    file::stat_as_known(fd).is_ok_and(|stat| match stat.kind() {
        libc::S_IFIFO => true,
        // The close of another kind may wait (SO_LINGER).
        libc::S_IFSOCK => same_file::is_unix(fd),
        _ => stat.is_memory_device(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_sockets_and_dev_null_go_and_nothing_else() {
        let (reader, writer) = std::io::pipe().unwrap();
        let (socket, _other) = UnixStream::pair().unwrap();
        let open = |path: &str| std::fs::File::open(path).unwrap();
        let terminal = nix::pty::openpty(None, None).unwrap();
        for fd in [reader.as_fd(), writer.as_fd(), socket.as_fd(), open("/dev/null").as_fd()] {
            assert!(goes(fd), "{fd:?}");
        }
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(!goes(tcp.as_fd()));
        for fd in [open("/etc/passwd").as_fd(), open("/").as_fd(), terminal.slave.as_fd(), terminal.master.as_fd()] {
            assert!(!goes(fd), "{fd:?}");
        }
    }
}
