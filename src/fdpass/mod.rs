//! fds that cross: fd to recipe on the near side, recipe to fd on the far side.
//!
//! ```text
//!   near: fd ──describe──▶ Recipe ────wire────▶ rebuild ──▶ fd for the far program
//!                     └──▶ Pump ═══ one more stream ═══ Pump ◀──┘
//! ```
//!
//! One room for rexec's inherited fds and for SCM_RIGHTS. What cannot be made again is refused by name: a program must
//! not run on a lie. Blocking calls may happen here, so a helper thread runs it, never a worker.

mod far;
mod memfd;
mod near;
mod placeholder;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::OFlag;

use crate::errno::{OsError, OsResult};
use crate::stream::Kind;
use crate::sys::shared_file::SharedFile;
use crate::sys::terminal::Raw;
use crate::wire::recipe::{Access, FileId, Recipe};

pub use far::{Address, Home, abandoned};
pub use memfd::Fill;
pub use near::Mode;

/// Opens files of this machine by what its file server calls them.
pub trait Files: Send + Sync {
    /// The file or directory again, with a position of its own at 0.
    ///
    /// # Errors
    /// ESTALE: the mount or the node is not known here (any more). EROFS: it is exported read-only.
    fn reopen(&self, file: &FileId, access: Access) -> OsResult<OwnedFd>;

    /// The path by which the peer may ask for this file or directory; `None` when it lies below no export.
    fn exported_path(&self, fd: BorrowedFd<'_>) -> Option<Vec<u8>>;
}

/// Opens files of the peer's machine where this one has mounted them.
pub trait Mounted: Send + Sync {
    /// # Errors
    /// EOPNOTSUPP when the peer's path is mounted nowhere here; what open(2) says of it.
    fn open(&self, host_path: &[u8], access: Access) -> OsResult<OwnedFd>;
}

/// open(2)'s flags for a file that is opened again.
pub fn open_flags(access: Access) -> OFlag {
    let mut flags = match (access.read, access.write) {
        (true, true) => OFlag::O_RDWR,
        (false, true) => OFlag::O_WRONLY,
        _ => OFlag::O_RDONLY,
    };
    flags.set(OFlag::O_APPEND, access.append);
    flags.set(OFlag::O_NONBLOCK, access.nonblock);
    flags
}

/// What this node makes for its peer, besides what everybody may have.
#[derive(Clone, Default)]
pub struct Maker {
    /// Opens the peer's files below this node's exports.
    pub files: Option<Arc<dyn Files>>,
    pub mounted: Option<Arc<dyn Mounted>>,
    pub kvm: bool,
    pub vhost_net: bool,
    pub vfio: bool,
    /// Queues of tun and tap interfaces.
    pub taps: bool,
    /// The bridge that a tap interface is put on.
    pub bridge: Option<String>,
}

impl std::fmt::Debug for Maker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Maker")
    }
}

/// This node's end of an fd that crossed: what the worker moves bytes with.
#[derive(Debug)]
pub struct Pump {
    pub fd: OwnedFd,
    pub kind: Kind,
    pub keeps: Keeps,
}

/// What lives as long as a pump does, and is needed for it.
#[derive(Debug)]
pub enum Keeps {
    Nothing,
    /// Of a regular file: several holders of one position.
    File(Arc<SharedFile>),
    /// What the terminal was before.
    Terminal(Box<Raw>),
    /// What is done when the memory has its bytes.
    Fill(Box<Fill>),
    /// Where to connect to the listener that was made here.
    Home(Box<Home>),
}

impl Pump {
    pub fn new(fd: OwnedFd, kind: Kind) -> Self {
        Self { fd, kind, keeps: Keeps::Nothing }
    }
}

/// An fd on its way to the other machine.
#[derive(Debug)]
pub struct Described {
    /// Its stream id is filled in when the stream has been announced.
    pub recipe: Recipe,
    pub pump: Option<Pump>,
}

/// What becomes of a message when one of its fds can't be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnRefusal {
    /// The message is not delivered, and its stream ends.
    Fail,
    /// The program gets a placeholder in the fd's place, on which every use fails with EBADF.
    Placeholder,
}

/// Why an fd is a placeholder.
#[derive(Debug)]
pub enum Refusal {
    /// It could not be made here. `stream`: which stream it announced.
    Here { error: OsError, stream: Option<u32> },
    /// The machine that passed it could not describe it.
    There { reason: String },
}

/// An fd made here from a recipe.
#[derive(Debug)]
pub struct Rebuilt {
    /// For the program.
    pub fd: OwnedFd,
    /// `None`: it is what its recipe says.
    pub refusal: Option<Refusal>,
    /// The announced stream, and this node's end.
    pub pump: Option<(u32, Pump)>,
}
