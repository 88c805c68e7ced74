//! The program's end: a key of its own for each run, and the daemons asked for their word.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::SockRef;

use super::wire::{ANSWER_MAX, decode_answer, encode_ask};
use crate::auth::{SecretKey, Tls};
use crate::errno::Errno;
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
            match ask_one(&daemon.path(), shown) {
                Ok(Ok(judged)) => return Ok(judged),
                Ok(Err(why)) => last = why,
                // A dead one's, or one that is just ending.
                Err(errno) => tracing::debug!(%errno, "{}", daemon.path().display()),
            }
        }
        Err(last)
    }
}

fn ask_one(daemon: &Path, shown: &Shown) -> Result<Result<Judged, String>, Errno> {
    let socket = unix::socket(SocketKind::SeqPacket, false)?;
    let timed = SockRef::from(&socket);
    let patience = Some(Duration::from_millis(VOUCH_WAIT_MS));
    let set = timed.set_read_timeout(patience).and_then(|()| timed.set_write_timeout(patience));
    set.map_err(|e| crate::errno::errno_of(&e))?;
    unix::connect(socket.as_fd(), daemon.as_os_str().as_encoded_bytes())?;
    scm::send(socket.as_fd(), &encode_ask(shown), &[])?;
    let mut answer = vec![0; ANSWER_MAX];
    let record = scm::receive_waiting(socket.as_fd(), &mut answer)?;
    if record.len == 0 {
        return Err(Errno::ECONNRESET);
    }
    decode_answer(&answer[..record.len]).map_err(|_| Errno::EPROTO)
}

impl Authority for Asker {
    fn tls(&self) -> Result<Tls, String> {
        Tls::new(&self.key).map_err(|e| e.to_string())
    }

    fn judge(&self, shown: &Shown) -> Result<Judged, Stranger> {
        self.ask(shown).map_err(|log| Stranger { told: log.clone(), log })
    }
}
