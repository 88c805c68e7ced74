//! The DPU's end of a mount: /dev/fuse on one side, the file link on the other.
//!
//! ```text
//!   /dev/fuse ──▶ readers (threads) ──▶ link ──▶ far side
//!       ▲            └ INIT, IOCTL, the hidden directory: answered here
//!       └──── supervisor (one thread) ◀── link: replies; a broken link: EIO for all, redial, mount again
//! ```
//!
//! Every lookup and every read asks the host; `opens` has the one exception and its proof. The node ids are the far side's; a new link begins
//! them anew above a base of its own, so what was open before the break says ESTALE and every path works again.

mod alias;
mod device;
mod link;
mod mounted;
mod opens;
mod relay;
mod watch;

pub use mounted::SeenMounts;

use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, OFlag};
use nix::mount::{MntFlags, MsFlags};
use nix::sys::stat::Mode;

use crate::errno::{OsError, OsResult, Step};
use crate::limits::{FUSE_READERS, MOUNT_DEADLINE_MS};
use crate::link::Access;
use crate::link::conn::{Closer, dial};
use crate::qtfs::frames::{self, FrameReader, read_frame};
use crate::qtfs::wire::{BASE_MAX, Kind, Mount, Mounted, frame};
use crate::sys::file;
use crate::sys::kick::Kickable;
use crate::wire::hello::{Hello, Lane, Role, Verdict};

pub use alias::SocketCarrier;

use alias::Aliases;
use device::Device;
use link::Link;
use opens::Opens;

/// What to mount, and where.
#[derive(Debug, Clone)]
pub struct MountSpec {
    /// The host's directory, as the host names it.
    pub source: PathBuf,
    pub target: PathBuf,
    /// The far side's `ADDR:PORT`.
    pub host: String,
    /// How the two know each other.
    pub access: Access,
    pub read_only: bool,
    /// MS_NOSUID and the like; MS_RDONLY comes from `read_only` and from the export.
    pub flags: MsFlags,
}

/// One line: what failed, on what.
#[derive(Debug)]
pub struct MountError(pub String);

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for MountError {}

impl From<OsError> for MountError {
    fn from(e: OsError) -> Self {
        Self(e.to_string())
    }
}

/// All that the threads of one mount share.
struct Near {
    spec: MountSpec,
    device: Device,
    link: Link,
    aliases: Arc<Aliases>,
    /// The hidden directory's name, while it can be looked up.
    hidden_name: std::sync::Mutex<Option<String>>,
    /// Which link this is: the first is 1.
    epoch: AtomicU64,
    /// What the far side calls this link.
    token: std::sync::Mutex<[u8; 16]>,
    opens: Opens,
    /// Nobody has the mount any more.
    over: AtomicBool,
    readers: std::sync::Mutex<Vec<Kickable>>,
}

/// A mount that is up. It ends by umount(8) alone.
pub struct Mounting {
    near: Arc<Near>,
    readers: Vec<std::thread::JoinHandle<()>>,
}

/// What a thread of the mount does.
type Body = Box<dyn FnOnce(&Arc<Near>) + Send>;

/// A link that the far side has accepted a mount on.
struct Dialled {
    reader: FrameReader,
    writer: Box<dyn std::io::Write + Send>,
    closer: Closer,
    read_only: bool,
    inflight: u16,
    token: [u8; 16],
    mode: u32,
}

/// Our words on a new file link.
pub(crate) fn hello() -> Hello {
    let mut node = [0; 16];
    // Only tells two processes apart; without it all are one.
    let _ = crate::sys::random::fill(&mut node);
    let name = nix::unistd::gethostname().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Hello {
        role: Role::Files,
        lane: Lane::Bulk,
        verdict: Verdict::Ok,
        node,
        session: 0,
        index: 0,
        workers: 1,
        initial_window: 0,
        record_max: 0,
        features: 0,
        name,
        reason: String::new(),
        voucher: Vec::new(),
    }
}

/// Dials and asks for the directory.
fn dial_mount(spec: &MountSpec, epoch: u64) -> Result<Dialled, MountError> {
    use std::os::unix::ffi::OsStrExt;
    let timeout = Duration::from_millis(MOUNT_DEADLINE_MS);
    let conn = dial(&spec.host, &hello(), timeout, &spec.access).map_err(|e| MountError(e.to_string()))?;
    let failed = |what: &dyn fmt::Display| MountError(format!("{}: {what}", spec.host));
    let (reader, mut writer, closer) = conn.split().map_err(|e| failed(&e))?;
    let base = (epoch << 48) % BASE_MAX;
    let ask = Mount { path: spec.source.as_os_str().as_bytes().to_vec(), read_only: spec.read_only, base };
    writer.write_all(&frame(Kind::Mount, &ask.encode())).map_err(|e| failed(&e))?;
    let mut reader = frames::reader(reader);
    let mut buf = [0; 1024];
    let deadline = watch::Deadline::start(&closer, timeout).map_err(|e| failed(&e))?;
    let answer = read_frame(&mut reader, &mut buf).map_err(|e| failed(&e))?;
    if !deadline.in_time() {
        return Err(failed(&"no answer to the mount request"));
    }
    let Some((Kind::Mounted, len)) = answer else { return Err(failed(&"closed the link instead of mounting")) };
    match Mounted::decode(&buf[..len]).map_err(|e| failed(&e))? {
        Mounted::Yes { read_only, inflight, mode, token } => {
            if mode & libc::S_IFMT != libc::S_IFDIR {
                return Err(failed(&format_args!("{} is no directory there", spec.source.display())));
            }
            Ok(Dialled { reader, writer, closer, read_only, inflight, mode, token })
        }
        Mounted::No { text, .. } => Err(failed(&text)),
    }
}

/// Mounts; returns when programs can use it. Without a `carrier` the host's sockets are only seen, and connect() says
/// ECONNREFUSED.
///
/// # Errors
/// One line; nothing is left mounted.
pub fn mount(spec: MountSpec, carrier: Option<Arc<dyn SocketCarrier>>) -> Result<Mounting, MountError> {
    let dialled = dial_mount(&spec, 1)?;
    let device = Device::open()?;
    let mut flags = spec.flags;
    flags.set(MsFlags::MS_RDONLY, dialled.read_only);
    device.mount(&spec.source, &spec.target, dialled.mode, flags)?;
    let target = spec.target.clone();
    up(spec, device, dialled, carrier).inspect_err(|_| {
        // Whoever looked in already keeps a dead mount; nobody else sees it.
        let _ = nix::mount::umount2(&target, MntFlags::MNT_DETACH);
    })
}

fn up(
    spec: MountSpec,
    device: Device,
    dialled: Dialled,
    carrier: Option<Arc<dyn SocketCarrier>>,
) -> Result<Mounting, MountError> {
    let (aliases, inlets) = Aliases::new()?;
    let near = Arc::new(Near {
        spec,
        device,
        link: Link::new(),
        aliases,
        hidden_name: std::sync::Mutex::new(None),
        epoch: AtomicU64::new(1),
        token: std::sync::Mutex::new(dialled.token),
        opens: Opens::default(),
        over: AtomicBool::new(false),
        readers: std::sync::Mutex::default(),
    });
    let start = |name: &str, body: Body| {
        let near = near.clone();
        let body = move || body(&near);
        std::thread::Builder::new().name(name.into()).spawn(body).step("thread")
    };
    let Dialled { reader, writer, closer, inflight, .. } = dialled;
    // Before the first request can come: one that finds no link fails.
    near.link.up(writer, closer, usize::from(inflight));
    start("link", Box::new(move |near| near.supervise(reader)))?;
    let readers =
        (0..FUSE_READERS).map(|_| start("fuse", Box::new(Near::read_device))).collect::<OsResult<Vec<_>>>()?;
    if let Some(carrier) = carrier {
        near.aliases.open(near.open_hidden()?);
        let (jobs, woken) = inlets.split();
        start("alias-bind", Box::new(move |near| near.aliases.bind_all(&jobs, &near.device)))?;
        start("alias-accept", Box::new(move |near| near.aliases.accept_all(&woken, &*carrier)))?;
    }
    // The first request of all; a kernel that is too old says no here.
    let root = std::fs::symlink_metadata(&near.spec.target).step_on("stat", near.spec.target.display())?;
    start("watch", Box::new(move |near| watch::watch(near, root.dev())))?;
    Ok(Mounting { near, readers })
}

impl Mounting {
    /// Serves until the mount is gone.
    pub fn run(self) {
        while !self.near.is_over() {
            std::thread::park_timeout(Duration::from_millis(100));
        }
        self.near.aliases.end();
        self.near.link.cut();
        // They may be waiting for a request that never comes.
        while !self.readers.iter().all(std::thread::JoinHandle::is_finished) {
            self.near.readers.lock().expect("never poisoned: panics abort").iter().for_each(|r| r.kick());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn target(&self) -> &Path {
        &self.near.spec.target
    }
}

impl Near {
    /// The hidden directory, on a copy of the mount of its own.
    fn open_hidden(&self) -> OsResult<OwnedFd> {
        use std::os::unix::ffi::OsStrExt;
        let name = format!(".qtfs-{}", hello().node.map(|b| format!("{b:02x}")).concat());
        let target = std::ffi::CString::new(self.spec.target.as_os_str().as_bytes()).expect("it was mounted on");
        let copy = file::clone_mount(&target).step_on("open_tree", self.spec.target.display())?;
        *self.hidden_name.lock().expect("never poisoned: panics abort") = Some(name.clone());
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let path = format!("/proc/self/fd/{}/{name}", copy.as_raw_fd());
        let hidden = nix::fcntl::openat(AT_FDCWD, path.as_str(), flags, Mode::empty());
        *self.hidden_name.lock().expect("never poisoned: panics abort") = None;
        hidden.step("open the hidden directory")
    }

    fn finish(&self) {
        self.over.store(true, Ordering::Release);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}
