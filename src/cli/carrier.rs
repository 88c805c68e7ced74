//! How mount.qtfs hands a connection to a host socket on: it asks the local daemon to adopt it.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use farside_contract::{Op, REQUEST_MAX, Request, VERDICT_LEN, Verdict};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::errno::{Errno, OsError, OsResult, Step};
use crate::link::Helpers;
use crate::qtfs::near::SocketCarrier;
use crate::qtfs::wire::SocketType;
use crate::sys::scm;

struct ByDaemon {
    socket: PathBuf,
    helpers: Helpers,
}

/// Asks the daemon at its usual place, or at FARSIDE_UDS_SOCKET, anew for each connection: it may come and go.
pub fn by_daemon() -> Arc<dyn SocketCarrier> {
    let named = std::env::var_os(&*farside_contract::SOCKET_ENV.to_string_lossy());
    let socket = named.map_or_else(|| PathBuf::from(farside_contract::SOCKET_PATH), PathBuf::from);
    Arc::new(ByDaemon { socket, helpers: Helpers::default() })
}

impl SocketCarrier for ByDaemon {
    fn carry(&self, host_path: &Path, kind: SocketType, accepted: OwnedFd) {
        let (daemon, path) = (self.socket.clone(), host_path.to_owned());
        self.helpers.run(move || {
            // A refusal closes `accepted`: the program was connected already and sees its end.
            if let Err(e) = adopt(&daemon, &path, &accepted) {
                tracing::warn!("{kind:?} connection to the host's {}: {e}", path.display());
            }
        });
    }
}

fn adopt(daemon: &Path, host_path: &Path, accepted: &OwnedFd) -> OsResult<()> {
    let ask = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).step("socket")?;
    let address = UnixAddr::new(daemon).step_on("address", daemon.display())?;
    connect(std::os::fd::AsRawFd::as_raw_fd(&ask), &address).step_on("ask udsproxyd at", daemon.display())?;
    let mut bytes = [0; REQUEST_MAX];
    let request = Request { op: Op::Adopt, flags: 0, name: host_path.as_os_str().as_bytes() };
    let len = request.encode(&mut bytes).ok_or(OsError::new("encode the request", Errno::ENAMETOOLONG))?;
    scm::send(ask.as_fd(), &bytes[..len], &[accepted.as_fd()]).step("ask udsproxyd")?;
    let mut answer = [0; VERDICT_LEN];
    let got = scm::receive_waiting(ask.as_fd(), &mut answer).step("hear udsproxyd")?;
    if got.len == 0 {
        return Err(OsError::new("hear udsproxyd", Errno::ECONNRESET));
    }
    match Verdict::decode(&answer[..got.len]) {
        Ok(Verdict::Connected) => Ok(()),
        Ok(Verdict::Refused(errno)) => Err(OsError::new("connect there", Errno::from_raw(errno))),
        Ok(Verdict::NotRemote) => Err(OsError::new("connect there", Errno::EACCES)),
        Err(_) => Err(OsError::new("hear udsproxyd", Errno::EPROTO)),
    }
}
