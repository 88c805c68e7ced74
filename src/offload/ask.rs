//! Questions to the programs of an offload that runs, each with a bound on how long its answer may take.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::plan::SPACE;
use super::trouble::{Attempt, Trouble};
use crate::errno::Errno;
use crate::limits;
use crate::sys::peer;
use crate::sys::unix::{self, SocketKind};

/// `farside enter`, on the way to a command inside the offload.
pub(super) struct Enter<'a> {
    pub(super) root: Option<&'a Path>,
    pub(super) held: bool,
    pub(super) env: &'a [(String, String)],
}

impl Enter<'_> {
    pub(super) fn command(&self, words: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>) -> Attempt<Command> {
        let exe = std::env::current_exe().map_err(|e| Trouble::io("find", Path::new("this program"), &e))?;
        let mut command = Command::new(exe);
        command.args(["enter", "--space", SPACE]);
        if let Some(root) = self.root {
            command.arg("--root").arg(root);
        }
        if self.held {
            command.arg("--held");
        }
        for (key, value) in self.env {
            command.arg("--env").arg(format!("{key}={value}"));
        }
        command.arg("--").args(words);
        Ok(command)
    }
}

/// The pid of the process that called listen(2) for the socket at `path`, by SO_PEERCRED; 0 where it cannot be told.
/// `None`: nobody listens there.
pub(super) fn server_of(path: &Path) -> Option<i32> {
    let name = path.as_os_str().as_bytes();
    let deadline = Instant::now() + limits::OFFLOAD_CONNECT;
    // libvirt's sockets are streams, udsproxyd's is of records.
    let mut kinds = [SocketKind::Stream, SocketKind::SeqPacket].into_iter();
    let mut kind = kinds.next()?;
    loop {
        // Without blocking: a connect to a daemon that is stopped waits for room in its backlog without end.
        let socket = unix::socket(kind, true).ok()?;
        match unix::connect(socket.as_fd(), name) {
            Ok(()) => return Some(peer::peer(socket.as_fd()).map_or(0, |who| who.pid)),
            Err(Errno::EPROTOTYPE) => match kinds.next() {
                Some(other) => kind = other,
                None => return Some(0),
            },
            Err(Errno::EAGAIN) if Instant::now() < deadline => std::thread::sleep(limits::OFFLOAD_POLL),
            Err(Errno::EAGAIN) => return Some(0),
            Err(_) => return None,
        }
    }
}

/// One statfs(2) of a mount inside the offload, which its file system has to answer. In a process of its own, because
/// the call may never return.
///
/// # Errors
/// Why there was no answer.
pub(super) fn mount_answers(at: &Path) -> Attempt<()> {
    let words = ["stat".as_ref(), "-f".as_ref(), "-c".as_ref(), "%T".as_ref(), "--".as_ref(), at.as_os_str()];
    let command = Enter { root: None, held: false, env: &[] }.command(words)?;
    finish(command, limits::OFFLOAD_STATFS).map(drop).map_err(|why| Trouble::new(why, ""))
}

/// Whether that process was started by exactly this command line.
pub(super) fn has_command_line(pid: i32, command: &[String]) -> bool {
    let words: Vec<u8> = command.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect();
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == words)
}

/// Runs a short command to its end: its output, or the last line of what it complained.
pub(super) fn finish(mut command: Command, time: Duration) -> Result<String, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let deadline = Instant::now() + time;
    let status = loop {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                // Not waited for: a call into a file system that does not answer may outlive SIGKILL.
                let _ = child.kill();
                return Err(format!("no answer within {} s", time.as_secs()));
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    if status.success() {
        return Ok(all(child.stdout.take()));
    }
    let errors = all(child.stderr.take());
    let last = errors.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("no word why");
    Err(format!("{last} ({status})"))
}

/// What a pipe holds now. A daemon that the command left behind may keep it open, so the end is not awaited.
fn all(pipe: Option<impl Read + AsFd>) -> String {
    let Some(mut pipe) = pipe else { return String::new() };
    let mut text = vec![0; 16 << 10];
    let _ = nix::fcntl::fcntl(pipe.as_fd(), nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK));
    let count = pipe.read(&mut text).unwrap_or(0);
    String::from_utf8_lossy(&text[..count]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::tempdir::PrivateDir;

    #[test]
    fn the_server_of_a_socket_is_who_listens_there_now() {
        let dir = PrivateDir::new("ask").unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        for kind in [SocketKind::Stream, SocketKind::SeqPacket] {
            let path = dir.path().join(format!("{kind:?}"));
            assert_eq!(server_of(&path), None, "there is no socket");
            let listener = unix::socket(kind, false).unwrap();
            unix::bind(listener.as_fd(), path.as_os_str().as_bytes()).unwrap();
            assert_eq!(server_of(&path), None, "nobody listens");
            unix::listen(listener.as_fd(), 1).unwrap();
            assert_eq!(server_of(&path), Some(own), "{kind:?}");
            drop(listener);
            assert_eq!(server_of(&path), None, "its server has ended");
        }
    }

    #[test]
    fn a_command_that_does_not_end_is_given_up() {
        let mut command = Command::new("sleep");
        command.arg("60");
        assert_eq!(finish(command, Duration::from_millis(50)), Err("no answer within 0 s".into()));
    }
}
