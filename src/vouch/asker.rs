//! The program's end: a key of its own for each run, and the daemons asked for their word.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{Shutdown, shutdown};
use socket2::SockRef;

use super::carriage::Carriage;
use super::wire::{ANSWER_MAX, CommandAsk, decode_answer, encode_ask, encode_command};
use crate::auth::{SecretKey, Tls};
use crate::errno::Errno;
use crate::fdpass::Mode;
use crate::limits::VOUCH_WAIT_MS;
use crate::link::{Authority, Judged, Shown, Stranger};
use crate::sys::scm;
use crate::sys::unix::{self, SocketKind};

/// For links of a program that may not read this machine's key.
#[derive(Debug)]
pub struct Asker {
    key: SecretKey,
    dir: PathBuf,
}

impl Asker {
    /// `None`: no daemon is there to be asked.
    pub fn new(dir: &Path) -> Option<Self> {
        std::fs::read_dir(dir).ok()?.next()?.ok()?;
        Some(Self { key: SecretKey::generate(), dir: dir.into() })
    }

    /// The first yes, or the last no.
    fn ask(&self, shown: &Shown) -> Result<Judged, String> {
        let mut last = format!("no farside daemon answers in {}", self.dir.display());
        let daemons = std::fs::read_dir(&self.dir).map_err(|e| format!("{}: {e}", self.dir.display()))?;
        for daemon in daemons.flatten() {
            match ask_one(&daemon.path(), &encode_ask(shown), &[]) {
                Ok((Ok(judged), _)) => return Ok(judged),
                Ok((Err(why), _)) => last = why,
                // A dead one's, or one that is just ending.
                Err(errno) => tracing::debug!(%errno, "{}", daemon.path().display()),
            }
        }
        Err(last)
    }
}

/// Has a daemon whose sockets are in `dir` carry a command to the machine at `to`. `None`: none of them has a session
/// there, or none may for this user; nothing has begun. Not for fds that `goes` refuses.
pub fn carry(dir: &Path, to: SocketAddr, first: &[u8], fds: &[(BorrowedFd<'_>, Mode)]) -> Option<Carriage> {
    let modes = fds.iter().map(|(_, mode)| *mode).collect();
    let ask = encode_command(&CommandAsk { to, first: first.to_vec(), modes });
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|(fd, _)| *fd).collect();
    for daemon in std::fs::read_dir(dir).ok()?.flatten() {
        match ask_one(&daemon.path(), &ask, &fds) {
            Ok((Ok(_), brought)) => match <[OwnedFd; 2]>::try_from(brought) {
                Ok([control, ended]) => return Some(Carriage { control: control.into(), ended }),
                Err(_) => tracing::debug!("{} carries, and gives no fds", daemon.path().display()),
            },
            Ok((Err(why), _)) => tracing::debug!("{}: {why}", daemon.path().display()),
            Err(errno) => tracing::debug!(%errno, "{}", daemon.path().display()),
        }
    }
    None
}

type Answer = (Result<Judged, String>, Vec<OwnedFd>);

fn ask_one(daemon: &Path, ask: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Answer, Errno> {
    let socket = unix::socket(SocketKind::SeqPacket, false)?;
    let timed = SockRef::from(&socket);
    let patience = Some(Duration::from_millis(VOUCH_WAIT_MS));
    let set = timed.set_read_timeout(patience).and_then(|()| timed.set_write_timeout(patience));
    set.map_err(|e| crate::errno::errno_of(&e))?;
    unix::connect(socket.as_fd(), daemon.as_os_str().as_encoded_bytes())?;
    // Who may not ask is answered before it has asked. Our ask then meets a closed socket (EPIPE), or was left unread in
    // one (ECONNRESET, which unix(7) sockets report once, ahead of what is queued): the answer is there all the same.
    let sent = scm::send(socket.as_fd(), ask, fds);
    if !matches!(sent, Ok(()) | Err(Errno::EPIPE | Errno::ECONNRESET)) {
        sent?;
    }
    let mut answer = vec![0; ANSWER_MAX];
    let record = match scm::receive_waiting(socket.as_fd(), &mut answer) {
        Err(Errno::ECONNRESET) => scm::receive_waiting(socket.as_fd(), &mut answer)?,
        Err(Errno::EAGAIN) => {
            // From here on no answer gets through, and the daemon knows; one may have come just now.
            shutdown(socket.as_raw_fd(), Shutdown::Read)?;
            scm::receive(socket.as_fd(), &mut answer)?
        }
        received => received?,
    };
    if record.len == 0 {
        return Err(Errno::ECONNRESET);
    }
    let said = decode_answer(&answer[..record.len]).map_err(|_| Errno::EPROTO)?;
    Ok((said, record.fds))
}

impl Authority for Asker {
    fn tls(&self) -> Result<Tls, String> {
        Tls::new(&self.key).map_err(|e| e.to_string())
    }

    fn judge(&self, shown: &Shown) -> Result<Judged, Stranger> {
        self.ask(shown).map_err(|log| Stranger { told: log.clone(), log })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::wire::encode_answer;
    use super::*;
    use crate::link::Ends;
    use crate::sys::tempdir::PrivateDir;

    /// A daemon that answers whoever connects, having read nothing, and closes `after` the ask has come or not.
    fn refused_unread(after: Duration) -> Result<Judged, String> {
        let dir = PrivateDir::new("vouch").unwrap();
        let path = dir.path().join("1");
        let listener = unix::socket(SocketKind::SeqPacket, false).unwrap();
        unix::bind(listener.as_fd(), path.as_os_str().as_encoded_bytes()).unwrap();
        unix::listen(listener.as_fd(), 1).unwrap();
        let daemon = std::thread::spawn(move || {
            let asker = unix::accept(listener.as_fd()).unwrap();
            scm::send(asker.as_fd(), &encode_answer(&Err("not you".into())), &[]).unwrap();
            std::thread::sleep(after);
        });
        let ends = Ends { here: "127.0.0.1:1".parse().unwrap(), there: "127.0.0.1:2".parse().unwrap() };
        let shown = Shown { key: SecretKey::generate().public(), ends, binding: [0; 32], dialled: true, role: None };
        let begun = Instant::now();
        let answer = Asker::new(dir.path()).unwrap().ask(&shown);
        assert!(begun.elapsed() < Duration::from_secs(1));
        daemon.join().unwrap();
        answer
    }

    #[test]
    fn a_no_that_comes_before_the_question_is_heard() {
        for after in [0, 0, 0, 1, 20].map(Duration::from_millis) {
            assert_eq!(refused_unread(after).err().as_deref(), Some("not you"));
        }
    }
}
