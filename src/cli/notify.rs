//! What systemd is told of a server's life (sd_notify(3)): one datagram to $NOTIFY_SOCKET each time, or nothing.

use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use nix::time::{ClockId, clock_gettime};

use crate::errno::Errno;
use crate::sys::scm;
use crate::sys::unix::{self, SocketKind};

#[derive(Debug, Clone)]
pub(super) struct Notify {
    /// A path, or an abstract name from its NUL on.
    socket: Option<Vec<u8>>,
}

impl Notify {
    pub(super) fn from_env() -> Self {
        let named = std::env::var_os("NOTIFY_SOCKET").map(|name| name.as_bytes().to_vec());
        let socket = named.and_then(|mut name| match name.first_mut() {
            Some(first @ b'@') => {
                *first = 0;
                Some(name)
            }
            // Other kinds (vsock) are for whole machines.
            first => first.is_some_and(|b| *b == b'/').then_some(name),
        });
        Self { socket }
    }

    pub(super) fn ready(&self, status: &str) {
        self.say(&format!("READY=1\nSTATUS={status}"));
    }

    /// What it does now, for `systemctl status`.
    pub(super) fn status(&self, status: &str) {
        self.say(&format!("STATUS={status}"));
    }

    pub(super) fn stopping(&self) {
        self.say("STOPPING=1\nSTATUS=open streams may finish");
    }

    /// Followed by `ready`. The time tells systemd which reload that answers.
    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| t.tv_sec() * 1_000_000 + t.tv_nsec() / 1000);
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
    }

    fn say(&self, text: &str) {
        let Some(name) = &self.socket else { return };
        if let Err(errno) = send(name, text.as_bytes()) {
            tracing::debug!(%errno, "NOTIFY_SOCKET");
        }
    }
}

/// Without waiting: a receiver that does not read must not hold up a server.
fn send(name: &[u8], text: &[u8]) -> Result<(), Errno> {
    let socket = unix::socket(SocketKind::Datagram, true)?;
    unix::connect(socket.as_fd(), name)?;
    scm::send(socket.as_fd(), text, &[])
}
