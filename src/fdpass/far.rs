//! An fd made from a recipe, for a program of this machine.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, setsockopt, socket, socketpair,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::{Whence, lseek, pipe2};

use super::{Keeps, Maker, OnRefusal, Pump, Rebuilt, Refusal, memfd, placeholder};
use crate::errno::{Errno, OsError, OsResult, Step};
use crate::limits::{LISTENER_LOOK_AGAIN_MS, LISTENER_WAITERS_MAX, RECORD_MAX};
use crate::stream::Kind;
use crate::sys::nonblock::set_nonblocking;
use crate::sys::tempdir::PrivateDir;
use crate::sys::unix_diag::{Diag, SocketId};
use crate::sys::{tap, terminal, unix};
use crate::wire::recipe::{Access, Device, FileId, Recipe, SocketKind, Tap, TerminalState};

impl Maker {
    /// Makes all fds of one message. On an error nothing is left behind.
    ///
    /// # Errors
    /// The first step that failed; the message must not be delivered. With `OnRefusal::Placeholder` only want of fds or
    /// memory is one.
    pub fn rebuild(&self, recipes: &[Recipe], on_refusal: OnRefusal) -> OsResult<Vec<Rebuilt>> {
        let mut done: Vec<Rebuilt> = Vec::with_capacity(recipes.len());
        for recipe in recipes {
            let made = match recipe {
                Recipe::Same { index } => plain(done[usize::from(*index)].fd.try_clone().step("dup")?),
                Recipe::Refused { reason } if on_refusal == OnRefusal::Placeholder => {
                    refused(Refusal::There { reason: reason.clone() })?
                }
                other => match (self.make(other), on_refusal) {
                    (Err(error), OnRefusal::Placeholder) => refused(Refusal::Here { error, stream: other.stream() })?,
                    (made, _) => made?,
                },
            };
            done.push(made);
        }
        Ok(done)
    }

    fn make(&self, recipe: &Recipe) -> OsResult<Rebuilt> {
        match recipe {
            Recipe::Pipe { stream, access } => pipe(*stream, *access),
            Recipe::Socket { stream, kind, nonblock } => socket_pair(*stream, *kind, *nonblock),
            Recipe::Listener { stream, kind, backlog, nonblock } => listener(*stream, *kind, *backlog, *nonblock),
            Recipe::Device { device, access } => self.device(*device, *access).map(plain),
            Recipe::File { file, access, offset } => self.file(file, *access, *offset).map(plain),
            Recipe::HostFile { path, access, offset } => self.host_file(path, *access, *offset).map(plain),
            Recipe::Terminal { stream, access, state } => terminal(*stream, *access, state),
            Recipe::Memfd { stream, access, len, offset, seals } => {
                memfd::rebuild(*stream, *access, *len, *offset, *seals)
            }
            Recipe::Tap(tap) => self.tap(tap).map(plain),
            Recipe::Refused { reason } => Err(OsError::on("carry", reason, Errno::EOPNOTSUPP)),
            Recipe::Same { .. } => unreachable!("the caller has the earlier ones"),
        }
    }

    fn file(&self, file: &FileId, access: Access, offset: u64) -> OsResult<OwnedFd> {
        let Some(files) = &self.files else {
            return Err(OsError::on("carry", "a file: this node serves none", Errno::EOPNOTSUPP));
        };
        at_offset(files.reopen(file, access)?, offset)
    }

    fn host_file(&self, path: &[u8], access: Access, offset: u64) -> OsResult<OwnedFd> {
        let Some(mounted) = &self.mounted else {
            let what = format!("{}: this node looks at no mounts", path.escape_ascii());
            return Err(OsError::on("carry", what, Errno::EOPNOTSUPP));
        };
        at_offset(mounted.open(path, access)?, offset)
    }

    fn device(&self, device: Device, access: Access) -> OsResult<OwnedFd> {
        let (allowed, word) = match device {
            Device::Null | Device::Zero | Device::Full | Device::Random | Device::Urandom => (true, ""),
            Device::Kvm => (self.kvm, "kvm"),
            Device::VhostNet => (self.vhost_net, "vhost-net"),
            Device::Vfio | Device::VfioGroup(_) => (self.vfio, "vfio"),
        };
        let path = device.path();
        if !allowed {
            return Err(not_passed(path, &format!("devices = [\"{word}\"]")));
        }
        let flags = if access.nonblock { OFlag::O_NONBLOCK.bits() } else { 0 };
        let mut options = OpenOptions::new();
        options.read(access.read || !access.write).write(access.write).custom_flags(flags | OFlag::O_NOCTTY.bits());
        options.open(&path).map(OwnedFd::from).step_on("open", path)
    }

    fn tap(&self, tap: &Tap) -> OsResult<OwnedFd> {
        if !self.taps {
            return Err(not_passed(format!("the tap interface {}", tap.name), "taps = true"));
        }
        let flag = |on: bool, bit: i32| if on { bit } else { 0 };
        let flags = if tap.ethernet { libc::IFF_TAP } else { libc::IFF_TUN }
            | flag(tap.no_packet_info, libc::IFF_NO_PI)
            | flag(tap.vnet_header, libc::IFF_VNET_HDR)
            | flag(tap.multi_queue, libc::IFF_MULTI_QUEUE);
        let queue = tap::Queue { name: tap.name.clone(), flags, vnet_header_len: tap.vnet_header_len };
        let bridge = self.bridge.as_deref().filter(|_| tap.ethernet);
        tap::open(&queue, bridge, tap.nonblock)
    }
}

/// The line of node.toml that would allow it. Both machines' logs show this.
fn not_passed(what: String, line: &str) -> OsError {
    let remedy = format!("{what} ({line} under [pass] in node.toml of the machine that opens it would allow it)");
    OsError::on("open", remedy, Errno::EPERM)
}

fn at_offset(fd: OwnedFd, offset: u64) -> OsResult<OwnedFd> {
    let offset = i64::try_from(offset).map_err(|_| OsError::new("lseek", Errno::EINVAL))?;
    lseek(&fd, offset, Whence::SeekSet).step("lseek")?;
    Ok(fd)
}

/// An fd that no stream belongs to.
fn plain(fd: OwnedFd) -> Rebuilt {
    Rebuilt { fd, refusal: None, pump: None }
}

fn refused(refusal: Refusal) -> OsResult<Rebuilt> {
    Ok(Rebuilt { fd: placeholder::make()?, refusal: Some(refusal), pump: None })
}

/// The slave is the program's.
fn terminal(stream: u32, access: Access, state: &TerminalState) -> OsResult<Rebuilt> {
    let TerminalState { modes, characters, rows, columns } = *state;
    let (master, slave) = terminal::open(&terminal::State { modes, characters, rows, columns })?;
    set_nonblocking(&slave, access.nonblock)?;
    Ok(Rebuilt { fd: slave, refusal: None, pump: Some((stream, Pump::new(master, Kind::Master))) })
}

fn pipe(stream: u32, access: Access) -> OsResult<Rebuilt> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).step("pipe2")?;
    let (fd, pump) =
        if access.read { (reader, Pump::new(writer, Kind::Sink)) } else { (writer, Pump::new(reader, Kind::Source)) };
    set_nonblocking(&fd, access.nonblock)?;
    Ok(Rebuilt { fd, refusal: None, pump: Some((stream, pump)) })
}

fn sock_type(kind: SocketKind) -> OsResult<SockType> {
    match kind {
        SocketKind::Stream => Ok(SockType::Stream),
        SocketKind::SeqPacket => Ok(SockType::SeqPacket),
        SocketKind::Datagram => Err(OsError::on("carry", "a datagram socket", Errno::EOPNOTSUPP)),
    }
}

fn socket_pair(stream: u32, kind: SocketKind, nonblock: bool) -> OsResult<Rebuilt> {
    let (fd, ours) =
        socketpair(AddressFamily::Unix, sock_type(kind)?, None, SockFlag::SOCK_CLOEXEC).step("socketpair")?;
    set_nonblocking(&fd, nonblock)?;
    make_room(&ours, kind);
    Ok(Rebuilt { fd, refusal: None, pump: Some((stream, Pump::new(ours, Kind::of_socket(kind)))) })
}

/// A record that was sent over there fits here: the kernel measures it by the sender's buffer.
fn make_room(fd: &OwnedFd, kind: SocketKind) {
    if kind != SocketKind::Stream {
        unix::raise_send_buffer(fd.as_fd(), RECORD_MAX);
    }
}

/// A listener at a private path: the program only sees the fd. The path goes with the pump.
fn listener(stream: u32, kind: SocketKind, backlog: u32, nonblock: bool) -> OsResult<Rebuilt> {
    let fd = socket(AddressFamily::Unix, sock_type(kind)?, SockFlag::SOCK_CLOEXEC, None).step("socket")?;
    let dir = PrivateDir::new("listener")?;
    let address = UnixAddr::new(&dir.path().join(LISTENER_NAME)).step("socket address")?;
    bind(fd.as_raw_fd(), &address).step_on("bind", dir.path().display())?;
    let backlog = Backlog::new(i32::try_from(backlog.min(4096)).expect("small")).step("backlog")?;
    listen(&fd, backlog).step_on("listen", dir.path().display())?;
    set_nonblocking(&fd, nonblock)?;
    // Not the socket itself: when the program closes it, a connect must be refused.
    let ours = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(dir.path());
    let ours = OwnedFd::from(ours.step_on("open", dir.path().display())?);
    let socket = SocketId::of(fd.as_fd()).step("SO_COOKIE")?;
    let keeps = Keeps::Home(Box::new(Home { dir, kind, socket }));
    Ok(Rebuilt { fd, refusal: None, pump: Some((stream, Pump { fd: ours, kind: Kind::Listening, keeps })) })
}

/// Threads in `wait_for_room`, of all listeners.
static WAITERS: AtomicUsize = AtomicUsize::new(0);

fn wait_for_room(fd: &OwnedFd, address: &UnixAddr) -> Result<(), Errno> {
    let before = WAITERS.fetch_add(1, Ordering::Relaxed);
    let wait = || {
        setsockopt(fd, sockopt::SendTimeout, &TimeVal::seconds(1))?;
        connect(fd.as_raw_fd(), address)?;
        setsockopt(fd, sockopt::SendTimeout, &TimeVal::seconds(0))
    };
    let result = if before < LISTENER_WAITERS_MAX { wait() } else { Err(Errno::EAGAIN) };
    WAITERS.fetch_sub(1, Ordering::Relaxed);
    result
}

const LISTENER_NAME: &str = "s";

/// Where a listener that was made here is reached. Dropping it removes the place.
#[derive(Debug)]
pub struct Home {
    dir: PrivateDir,
    kind: SocketKind,
    /// The program's.
    socket: SocketId,
}

impl Home {
    pub fn address(&self) -> Address {
        Address { dir: self.dir.path().to_owned(), kind: self.kind }
    }

    pub fn socket(&self) -> SocketId {
        self.socket
    }
}

/// Which of these listeners no program holds any more. Nothing else tells: nobody has to try to connect. Waits a moment.
///
/// # Errors
/// The kernel does not tell (a module without unix_diag).
pub fn abandoned<T>(mut listeners: Vec<(T, SocketId)>) -> OsResult<Vec<T>> {
    let mut diag = Diag::open().step("sock_diag")?;
    // Only a second "gone" is one.
    for pause in [Duration::ZERO, Duration::from_millis(LISTENER_LOOK_AGAIN_MS)] {
        if listeners.is_empty() {
            break;
        }
        std::thread::sleep(pause);
        let mut gone = Vec::with_capacity(listeners.len());
        for (which, socket) in listeners {
            if diag.find(socket).step("sock_diag")?.is_none() {
                gone.push((which, socket));
            }
        }
        listeners = gone;
    }
    Ok(listeners.into_iter().map(|(which, _)| which).collect())
}

/// A listener's address, for a thread that connects to it.
#[derive(Debug)]
pub struct Address {
    dir: PathBuf,
    kind: SocketKind,
}

impl Address {
    /// One more client. Waits a little while the queue is full, as connect(2) does; not for ever, and not with too many
    /// others, because the thread is not its own.
    ///
    /// # Errors
    /// ECONNREFUSED when the program has closed its listening socket, EAGAIN when its queue stays full.
    pub fn connect(&self) -> OsResult<Pump> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, sock_type(self.kind)?, flags, None).step("socket")?;
        let address = UnixAddr::new(&self.dir.join(LISTENER_NAME)).step("socket address")?;
        let now = connect(fd.as_raw_fd(), &address);
        set_nonblocking(&fd, false)?;
        let done = match now {
            Err(Errno::EAGAIN) => wait_for_room(&fd, &address),
            other => other,
        };
        done.step_on("connect", self.dir.display())?;
        make_room(&fd, self.kind);
        Ok(Pump::new(fd, Kind::of_socket(self.kind)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::limits::HELPERS_MAX;

    #[test]
    fn a_full_listener_holds_few_threads() {
        let recipe = Recipe::Listener { stream: 1, kind: SocketKind::Stream, backlog: 1, nonblock: false };
        let made = Maker::default().rebuild(&[recipe], OnRefusal::Fail).unwrap().pop().unwrap();
        let Some((_, Pump { keeps: Keeps::Home(home), .. })) = made.pump else { panic!("a listener") };
        let mut queued = Vec::new();
        while let Ok(client) = home.address().connect() {
            queued.push(client);
        }
        let clients: Vec<_> = (0..HELPERS_MAX).map(|_| home.address()).collect();
        let threads = clients.into_iter().map(|address| {
            std::thread::spawn(move || {
                let begun = Instant::now();
                assert_eq!(address.connect().unwrap_err().errno, Errno::EAGAIN);
                begun.elapsed() > Duration::from_millis(500)
            })
        });
        let held = threads.collect::<Vec<_>>().into_iter().filter_map(|t| t.join().unwrap().then_some(())).count();
        assert!((1..=LISTENER_WAITERS_MAX).contains(&held), "{held} were held");
        drop(made.fd);
        assert_eq!(home.address().connect().unwrap_err().errno, Errno::ECONNREFUSED);
    }
}
