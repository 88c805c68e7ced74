//! A byte that nobody has read, put into a socket's queue so that its close is a reset.
//!
//! A program that closes a unix socket while something in it is unread resets its peer: read(2) there says ECONNRESET once,
//! where an orderly end would say 0. A relay has read everything, and the kernel lets nobody set that error. But a byte
//! of the peer's that is unread when the relay closes has the same effect. The relay borrows the peer's own socket from
//! the process that holds it (pidfd_getfd(2), kernel 5.6), sends that byte, and gives it back.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::fstat;

use super::peer;
use super::pidfd::PidFd;
use super::unix_diag::{Diag, SocketId};
use crate::errno::{Errno, OsError, OsResult, Step};
use crate::limits::PEER_LOOKS;

/// One search at a time: many programs that end at once must not have /proc read by as many threads.
static SEARCH: Mutex<()> = Mutex::new(());
/// Threads in `plant`. Each is wanted for other work: a crowd of them gets orderly ends instead.
static SEARCHERS: AtomicUsize = AtomicUsize::new(0);
const SEARCHERS_MAX: usize = 8;

/// Makes `fd`'s close a reset for its peer.
///
/// # Errors
/// ENOENT: no process that we may look into holds the peer. EPERM: pidfd_getfd needs CAP_SYS_PTRACE. EPIPE: the peer has
/// stopped sending. EBUSY: too many ask at once. The peer then sees an orderly end.
pub fn plant(fd: BorrowedFd<'_>) -> OsResult<()> {
    let before = SEARCHERS.fetch_add(1, Ordering::Relaxed);
    let result = if before < SEARCHERS_MAX { search(fd) } else { Err(OsError::new("find the peer", Errno::EBUSY)) };
    SEARCHERS.fetch_sub(1, Ordering::Relaxed);
    result
}

fn search(fd: BorrowedFd<'_>) -> OsResult<()> {
    let _one = SEARCH.lock().expect("a panic ends the process");
    let id = SocketId::of(fd).step("SO_COOKIE")?;
    let mut diag = Diag::open().step("sock_diag")?;
    let likely = peer::peer(fd).step("SO_PEERCRED")?.pid;
    let mut theirs = None;
    // /proc is read piece by piece. A program that gives its socket another number meanwhile (dup2(2) and close(2)), or
    // another process, is missed; a second look finds it.
    for _ in 0..PEER_LOOKS {
        let seen = diag.find(id).step("sock_diag")?;
        // 0: nobody holds it any more.
        let wanted =
            seen.and_then(|s| s.peer).filter(|ino| *ino != 0).ok_or(OsError::new("find the peer", Errno::ENOTCONN))?;
        theirs = borrow(likely, wanted).or_else(|| processes().find_map(|pid| borrow(pid, wanted)));
        if theirs.is_some() {
            break;
        }
    }
    let theirs = theirs.ok_or(OsError::new("find the peer's process", Errno::ENOENT))?;
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    send(theirs.as_raw_fd(), b"\0", flags).step("send for the peer").map(drop)
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ours = i32::try_from(std::process::id()).ok();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(move |pid| Some(*pid) != ours)
}

/// The socket with this inode number, if the process holds it.
fn borrow(pid: i32, wanted: u32) -> Option<OwnedFd> {
    let name = format!("socket:[{wanted}]");
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    let held = entries.filter(|e| std::fs::read_link(e.path()).is_ok_and(|to| to.as_os_str() == name.as_str()));
    let number: i32 = held.filter_map(|e| e.file_name().to_str()?.parse().ok()).next()?;
    let process = PidFd::open(pid).ok()?;
    // SAFETY: three integers; the result is a new descriptor or -1.
    let got = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_fd().as_raw_fd(), number, 0) };
    let got = i32::try_from(got).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the descriptor is new, so nobody else owns it.
    let theirs = unsafe { OwnedFd::from_raw_fd(got) };
    // The process may have closed it since, and another file may have its number.
    fstat(&theirs).is_ok_and(|stat| stat.st_ino == u64::from(wanted)).then_some(theirs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};

    #[test]
    fn the_peers_next_read_says_econnreset() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let script = "read line; python3 -c 'import socket\ntry: print(socket.socket(fileno=3).recv(1))\nexcept OSError as e: print(e.errno)'";
        let raw = theirs.as_raw_fd();
        let script = format!("exec 3<&{raw} {raw}<&-; {script}");
        nix::fcntl::fcntl(&theirs, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let mut child =
            Command::new("bash").args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        drop(theirs);
        // The shell may still be starting: plant finds the socket by whatever number it has.
        plant(ours.as_fd()).unwrap();
        drop(ours);
        drop(child.stdin.take());
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        child.wait().unwrap();
        assert_eq!(said.trim(), libc::ECONNRESET.to_string());
    }
}
