//! An fd of a near program: what it is, and how to make it again over there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::sys::stat::SFlag;
use nix::unistd::{Whence, lseek};

use super::{Described, Keeps, Maker, OnRefusal, Pump, memfd};
use crate::errno::{Errno, OsError, OsResult, Step};
use crate::stream::Kind;
use crate::sys::closer::Received;
use crate::sys::shared_file::SharedFile;
use crate::sys::terminal::Raw;
use crate::sys::{file, mount_ioctl, mountinfo, same_file, tap, terminal};
use crate::wire::recipe::{Access, Device, FileId, Recipe, SocketKind, Tap, TerminalState};

/// What an fd is for, where the kind alone does not say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Passed in a message: only what can truly be made again.
    Passed,
    /// Inherited by a command, fd 3 and above: a file that is only read is pumped from its offset.
    Inherited,
    /// A command's stdin: bytes flow to the program, whatever it is.
    Stdin,
    /// A command's stdout or stderr: bytes flow from the program, whatever it is.
    Output,
}

impl Maker {
    /// Describes all fds of one message, in order.
    ///
    /// # Errors
    /// EOPNOTSUPP names the first one that cannot be made again; the message must not be delivered. With
    /// `OnRefusal::Placeholder` its recipe says so instead.
    pub fn describe(&self, fds: Vec<(OwnedFd, Mode)>, on_refusal: OnRefusal) -> OsResult<Vec<Described>> {
        let mut done: Vec<Described> = Vec::with_capacity(fds.len());
        // Which earlier fd a later one may be the same file as: the program's shared offset and order depend on it.
        let fds: Vec<(Received, Mode)> = fds.into_iter().map(|(fd, mode)| (fd.into(), mode)).collect();
        let kept: Vec<(Received, Mode)> =
            fds.iter().map(|(fd, mode)| Ok((fd.try_clone().step("dup")?.into(), *mode))).collect::<OsResult<_>>()?;
        for (at, (fd, mode)) in fds.into_iter().enumerate() {
            let twin = (0..at).find(|&i| are_twins(&kept[i], (&fd, mode)));
            done.push(match twin {
                Some(index) => {
                    let index = u16::try_from(index).expect("at most 253 fds");
                    Described { recipe: Recipe::Same { index }, pump: None }
                }
                None => match (self.describe_one(fd, mode), on_refusal) {
                    (Err(e), OnRefusal::Placeholder) => {
                        Described { recipe: Recipe::Refused { reason: e.to_string() }, pump: None }
                    }
                    (described, _) => described?,
                },
            });
        }
        Ok(done)
    }

    fn describe_one(&self, fd: Received, mode: Mode) -> OsResult<Described> {
        let access = access_of(fd.as_fd())?;
        let stat = file::stat_as_known(fd.as_fd()).step("statx")?;
        let kind = SFlag::from_bits_truncate(stat.mode) & SFlag::S_IFMT;
        if kind == SFlag::S_IFREG || kind == SFlag::S_IFDIR {
            return self.describe_file(fd, kind, access, mode);
        }
        let fd = fd.into_inner();
        match kind {
            SFlag::S_IFIFO => Ok(pipe(fd, access, access.read && !access.write)),
            // One direction each: stdin and stdout may be one socket, and others may go on using it after the command.
            SFlag::S_IFSOCK if mode == Mode::Stdin => Ok(pipe(fd, access, true)),
            SFlag::S_IFSOCK if mode == Mode::Output => Ok(pipe(fd, access, false)),
            SFlag::S_IFSOCK => socket(fd, access.nonblock),
            SFlag::S_IFCHR => device(fd, &stat, access, mode),
            _ => Err(refused("something that is this machine's own", fd.as_fd())),
        }
    }

    fn describe_file(&self, fd: Received, kind: SFlag, access: Access, mode: Mode) -> OsResult<Described> {
        match mode {
            Mode::Stdin if kind == SFlag::S_IFREG => return file_pipe(fd.into_inner(), access, true),
            Mode::Output if kind == SFlag::S_IFREG => return file_pipe(fd.into_inner(), access, false),
            _ => {}
        }
        match Whose::is(fd.as_fd()) {
            Whose::Ours => {
                if let Some(recipe) = file_of_peer(fd.as_fd(), access)? {
                    return Ok(Described { recipe, pump: None });
                }
            }
            Whose::Users if mode == Mode::Passed => {
                return Err(refused("a file of a user's own file system", fd.as_fd()));
            }
            _ => {}
        }
        if let Some(path) = self.files.as_ref().and_then(|files| files.exported_path(fd.as_fd())) {
            let recipe = Recipe::HostFile { path, access, offset: offset_of(fd.as_fd())? };
            return Ok(Described { recipe, pump: None });
        }
        match kind {
            SFlag::S_IFREG if memfd::is_one(&fd) => memfd::describe(&fd, access),
            SFlag::S_IFREG if mode == Mode::Inherited && access.read && !access.write => {
                file_pipe(fd.into_inner(), access, true)
            }
            SFlag::S_IFREG => Err(refused("a regular file", fd.as_fd())),
            _ => Err(refused("a directory", fd.as_fd())),
        }
    }
}

/// Whether two fds of one message must be one there: two pumps that read the same bytes would divide them, and two that
/// write would lose their order.
fn are_twins((a, a_is): &(Received, Mode), (b, b_is): (&Received, Mode)) -> bool {
    let look = |fd: &Received| Some((file::stat_as_known(fd.as_fd()).ok()?, access_of(fd.as_fd()).ok()?));
    let same_open_file = || same_file::same_open_file(a, b);
    if *a_is == b_is && same_open_file() {
        return true;
    }
    let (Some((a, a_access)), Some((b, b_access))) = (look(a), look(b)) else { return false };
    let same_way = (a_access.read, a_access.write) == (b_access.read, b_access.write);
    match (a.kind(), b.kind()) {
        // Whoever opened it, and for what: a shell's `< <(command)` is open twice.
        (libc::S_IFIFO, libc::S_IFIFO) => same_way && (a.dev(), a.ino) == (b.dev(), b.ino),
        // Both are read from the offset that they share.
        (libc::S_IFREG, libc::S_IFREG) => {
            same_way && !a_access.write && *a_is != Mode::Passed && b_is != Mode::Passed && same_open_file()
        }
        _ => false,
    }
}

fn offset_of(fd: BorrowedFd<'_>) -> OsResult<u64> {
    let offset = lseek(fd, 0, Whence::SeekCur).step("lseek")?;
    u64::try_from(offset).map_err(|_| OsError::new("lseek", Errno::EOVERFLOW))
}

/// Whom a file's own file system asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// It may be one of our mounts: root's, of our kind.
    Ours,
    /// A FUSE mount of somebody else's, who need not answer whatever it is asked.
    Users,
    Kernel,
}

impl Whose {
    /// By the mount table alone; the file system is not asked. A mount of another mount namespace is known by its device.
    fn is(fd: BorrowedFd<'_>) -> Self {
        let Ok(stat) = file::stat_as_known(fd) else { return Self::Users };
        let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
        let named = mountinfo::find(&table, stat.mount_id);
        let mount = named.or_else(|| mountinfo::all(&table).find(|mount| mount.device == stat.dev()));
        match mount {
            Some(mount) if mount.kind == b"fuse.qtfs" && mount.is_roots() => Self::Ours,
            Some(mount) if mount.kind.starts_with(b"fuse") => Self::Users,
            Some(_) => Self::Kernel,
            // A memfd, or a mount that only another namespace has: it is not ours, and it is not asked either.
            None => Self::Kernel,
        }
    }
}

/// A file below one of our mounts: the machine that has it opens it there. `None`: its mount does not answer as ours do.
fn file_of_peer(fd: BorrowedFd<'_>, access: Access) -> OsResult<Option<Recipe>> {
    let Some((mount, node)) = mount_ioctl::identify(fd) else { return Ok(None) };
    Ok(Some(Recipe::File { file: FileId { mount, node }, access, offset: offset_of(fd)? }))
}

/// A new pipe over there; this fd stays and is pumped. `reads`: the program reads.
fn pipe(fd: OwnedFd, access: Access, reads: bool) -> Described {
    let access = Access { read: reads, write: !reads, append: false, ..access };
    let kind = if reads { Kind::Source } else { Kind::Sink };
    Described { recipe: Recipe::Pipe { stream: 0, access }, pump: Some(Pump::new(fd, kind)) }
}

/// As `pipe`, of a regular file.
fn file_pipe(fd: OwnedFd, access: Access, reads: bool) -> OsResult<Described> {
    let keeps = Keeps::File(Arc::new(SharedFile::new(fd.try_clone().step("dup")?)?));
    let kind = if reads { Kind::FileSource } else { Kind::FileSink };
    let Described { recipe, pump } = pipe(fd, access, reads);
    Ok(Described { recipe, pump: pump.map(|pump| Pump { kind, keeps, ..pump }) })
}

fn socket(fd: OwnedFd, nonblock: bool) -> OsResult<Described> {
    let kind = match (same_file::is_unix(fd.as_fd()), getsockopt(&fd, sockopt::SockType).step("SO_TYPE")?) {
        (true, SockType::Stream) => SocketKind::Stream,
        (true, SockType::SeqPacket) => SocketKind::SeqPacket,
        // Its peer may change with every datagram, and its end is never seen.
        (true, _) => return Err(refused("a unix datagram socket", fd.as_fd())),
        (false, SockType::Stream) => return Err(refused("a TCP socket, or another network's", fd.as_fd())),
        (false, _) => return Err(refused("a network socket", fd.as_fd())),
    };
    if getsockopt(&fd, sockopt::AcceptConn).step("SO_ACCEPTCONN")? {
        // The kernel does not tell a listener's backlog; libvirt's is 1, and a queue that is longer here only waits.
        let recipe = Recipe::Listener { stream: 0, kind, backlog: LISTENER_BACKLOG, nonblock };
        return Ok(Described { recipe, pump: Some(Pump::new(fd, Kind::Listener(kind))) });
    }
    let recipe = Recipe::Socket { stream: 0, kind, nonblock };
    Ok(Described { recipe, pump: Some(Pump::new(fd, Kind::of_socket(kind))) })
}

/// Clients that may wait in the far listener's queue; the near listener's own queue comes before it.
const LISTENER_BACKLOG: u32 = 16;

fn device(fd: OwnedFd, stat: &file::Stat, access: Access, mode: Mode) -> OsResult<Described> {
    let number = (u64::from(stat.rdev_major), u64::from(stat.rdev_minor));
    if let Some((device, ..)) = Device::NUMBERED.into_iter().find(|(_, major, minor)| (*major, *minor) == number) {
        return Ok(Described { recipe: Recipe::Device { device, access }, pump: None });
    }
    match mode {
        Mode::Stdin => return Ok(pipe(fd, access, true)),
        Mode::Output => return Ok(pipe(fd, access, false)),
        Mode::Inherited | Mode::Passed => {}
    }
    if number == TUN {
        return tap(&fd, access.nonblock);
    }
    if let Some(group) = vfio_group(fd.as_fd(), number.0) {
        return Ok(Described { recipe: Recipe::Device { device: Device::VfioGroup(group), access }, pump: None });
    }
    if terminal::is_master(&fd) {
        return Err(refused("a pseudo-terminal's master", fd.as_fd()));
    }
    if !terminal::is_terminal(&fd) {
        return Err(refused("a character device", fd.as_fd()));
    }
    let terminal::State { modes, characters, rows, columns } = terminal::state(&fd)?;
    let state = TerminalState { modes, characters, rows, columns };
    let keeps = Keeps::Terminal(Box::new(Raw::new(&fd)?));
    let recipe = Recipe::Terminal { stream: 0, access, state };
    Ok(Described { recipe, pump: Some(Pump { fd, kind: Kind::Terminal, keeps }) })
}

/// /dev/net/tun: Documentation/admin-guide/devices.txt.
const TUN: (u64, u64) = (10, 200);

fn tap(fd: &OwnedFd, nonblock: bool) -> OsResult<Described> {
    let Some(queue) = tap::of(fd)? else { return Err(refused("a tun device without an interface", fd.as_fd())) };
    let has = |flag: i32| queue.flags & flag != 0;
    let recipe = Recipe::Tap(Tap {
        ethernet: has(libc::IFF_TAP),
        no_packet_info: has(libc::IFF_NO_PI),
        vnet_header: has(libc::IFF_VNET_HDR),
        multi_queue: has(libc::IFF_MULTI_QUEUE),
        vnet_header_len: queue.vnet_header_len,
        name: queue.name,
        nonblock,
    });
    Ok(Described { recipe, pump: None })
}

/// VFIO's groups have no fixed number: their major is in /proc/devices, and which group it is the name tells. A name
/// alone would be anybody's word, who has a mount namespace.
fn vfio_group(fd: BorrowedFd<'_>, major: u64) -> Option<u32> {
    let devices = std::fs::read_to_string("/proc/devices").ok()?;
    let is_vfio = |line: &str| line.trim().split_once(' ') == Some((major.to_string().as_str(), "vfio"));
    devices.lines().any(is_vfio).then_some(())?;
    file::name_of(fd)?.to_str()?.strip_prefix("/dev/vfio/")?.parse().ok()
}

fn access_of(fd: BorrowedFd<'_>) -> OsResult<Access> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).step("F_GETFL")?);
    if flags.contains(OFlag::O_PATH) {
        // Whoever has one need not have been allowed to open the file.
        return Err(refused("a path that was not opened (O_PATH)", fd));
    }
    let mode = flags & OFlag::O_ACCMODE;
    Ok(Access {
        read: mode != OFlag::O_WRONLY,
        write: mode != OFlag::O_RDONLY,
        append: flags.contains(OFlag::O_APPEND),
        nonblock: flags.contains(OFlag::O_NONBLOCK),
    })
}

fn refused(what: &str, fd: BorrowedFd<'_>) -> OsError {
    let name = file::name_of(fd).map_or_else(String::new, |p| match p.to_string_lossy().strip_prefix("anon_inode:") {
        Some(kind) => format!(", {}", kind.trim_matches(['[', ']'])),
        None => format!(" ({})", p.display()),
    });
    OsError::on("carry", format!("{what}{name}"), Errno::EOPNOTSUPP)
}
