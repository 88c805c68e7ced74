//! The host's file server: one link is one mounted directory, served until the link ends.
//!
//! The peer is hostile until proven: it names node ids and single names, never paths or handles, and everything that
//! it says is bounded. Permission is checked by the near kernel, which alone knows its callers' groups and
//! capabilities; a peer that may mount a directory read-write is root there, as with NFS and no_root_squash. What is
//! mounted on the host below an export belongs to it.

mod attrs;
mod crew;
mod dirs;
mod fdcache;
mod files;
mod holders;
mod locks;
mod mounts;
mod names;
mod nodes;
mod passed;
mod pins;
mod places;
mod rights;
mod session;
mod sockets;
mod sweeper;
mod tree;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::config::{Access, Export};
use crate::limits::{FILE_THREADS, FILE_THREADS_DEFAULT, NODE_FDS_MAX, PATH_MAX};
use crate::link::conn::Conn;
use crate::policy::{FsOps, MountGrant};
use crate::qtfs::frames::{self, read_frame};
use crate::qtfs::wire::{Kind, Mount, Mounted, frame};
use crate::sys::caller;
use crate::trust::{Standing, SystemLinks};

use passed::Served;
use session::Session;
use tree::Tree;

/// A Mount: a path and little else. Nothing longer is read from one who has not mounted anything.
const FIRST_FRAME_MAX: usize = PATH_MAX + 64;

/// What this machine lets its peer mount, and with how many threads.
#[derive(Debug, Clone)]
pub struct Exports {
    exports: Vec<Export>,
    threads: usize,
    node_fds: usize,
    served: Served,
}

/// Why a link ended otherwise than by its near side closing it, or never began.
#[derive(Debug)]
pub struct ServeError(pub String);

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ServeError {}

impl Exports {
    /// `threads`: request threads of each link, clamped to `FILE_THREADS`; `None` is the default.
    pub fn new(exports: Vec<Export>, threads: Option<usize>) -> Self {
        let threads = threads.unwrap_or(FILE_THREADS_DEFAULT).clamp(*FILE_THREADS.start(), *FILE_THREADS.end());
        Self { exports, threads, node_fds: NODE_FDS_MAX, served: Served::default() }
    }

    /// Keeps fewer fds of inodes than usual, each link at most `count`: slower, and right all the same.
    pub fn with_node_fds(mut self, count: usize) -> Self {
        self.node_fds = count.clamp(1, NODE_FDS_MAX);
        self
    }

    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The export that holds `path`, the deepest if there are several, and the rest of the path below it.
    fn holding<'a, 'p>(&'a self, path: &'p Path) -> Option<(&'a Export, &'p Path)> {
        let below = |e: &'a Export| path.strip_prefix(&e.path).ok().map(|rest| (e, rest));
        self.exports.iter().filter_map(below).max_by_key(|(e, _)| e.path.components().count())
    }

    /// Opens what a mount asks for; the directory, and whether it is read-only.
    fn open(&self, mount: &Mount) -> Result<(OwnedFd, bool), (Errno, String)> {
        let path = PathBuf::from(OsStr::from_bytes(&mount.path));
        let shown = path.display();
        let plain = |c: Component<'_>| matches!(c, Component::RootDir | Component::Normal(_));
        if !path.is_absolute() || !path.components().all(plain) {
            return Err((Errno::EINVAL, format!("{shown}: the host's directory must be an absolute path without ..")));
        }
        let Some((export, rest)) = self.holding(&path) else {
            let how = "add it to /etc/farside/node.toml there as [[export]] path = \"...\"";
            return Err((Errno::EACCES, format!("{shown}: the host does not export it; {how}")));
        };
        let failed = |e: Errno| (e, format!("{shown}: {}", e.desc()));
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC);
        // The administrator may have named a link; what is below is the peer's choice and stays below.
        let top = openat2(AT_FDCWD, &export.path, how).map_err(failed)?;
        let beneath = how.resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let root = match rest.as_os_str().is_empty() {
            true => top,
            false => openat2(top, rest, beneath).map_err(failed)?,
        };
        Ok((root, mount.read_only || export.access == Access::Ro))
    }
}

/// Serves one file link (`Role::Files`) until it ends, on the calling thread and more of its own. The caller has answered the
/// HELLO. The calling thread must do nothing else afterwards: it gets a umask and ids of its own, for good.
///
/// # Errors
/// One line about a link that never became a mount. What ends a mounted link is logged.
pub fn serve(conn: Conn, exports: &Exports, standing: &Standing) -> Result<(), ServeError> {
    let name = format!("files for {} ({})", conn.peer_addr, conn.known.name);
    let failed = |what: &dyn fmt::Display| ServeError(format!("{name}: {what}"));
    let first_came = conn.first_came();
    let peer = conn.known.name.clone();
    let (reader, mut writer, closer) = conn.split().map_err(|e| failed(&e))?;
    let mut reader = frames::reader(reader);
    let mut first = vec![0; FIRST_FRAME_MAX];
    let Some((kind, len)) = read_frame(&mut reader, &mut first).map_err(|e| failed(&e))? else { return Ok(()) };
    if kind != Kind::Mount {
        return Err(failed(&format_args!("the first frame is {kind:?}, not Mount")));
    }
    first_came.tell();
    let mount = Mount::decode(&first[..len]).map_err(|e| failed(&e))?;
    let Beginning { tree, mode, by } = match begin(&mount, exports, standing) {
        Ok(found) => found,
        Err((errno, text)) => {
            note(&peer, &mount, &format!("refused: {text}"));
            let no = Mounted::No { errno: errno as i32, text: text.clone() };
            // The near side may be gone; the line here is the same.
            let _ = writer.write_all(&frame(Kind::Mounted, &no.encode()));
            return Err(failed(&text));
        }
    };
    let threads = exports.threads;
    let inflight = u16::try_from(threads - 1).expect("FILE_THREADS is small");
    let mut token = [0; 16];
    crate::sys::random::fill(&mut token).map_err(|e| failed(&e))?;
    let yes = Mounted::Yes { read_only: tree.read_only, inflight, mode, token };
    writer.write_all(&frame(Kind::Mounted, &yes.encode())).map_err(|e| failed(&e))?;
    let read_only = if tree.read_only { " read-only" } else { "" };
    tracing::info!(peer = peer, "{name}: mounts {}{read_only}: {by}", mount.path.escape_ascii());
    note(&peer, &mount, &format!("{by}{read_only}"));
    let session = Session::new(tree, reader, writer, closer, threads, (peer, name));
    exports.served.add(token, &session);
    session.run();
    exports.served.remove(token);
    Ok(())
}

/// For the audit log.
fn note(peer: &str, mount: &Mount, verdict: &str) {
    crate::audit::note(|| format!("peer={peer} fs {}: {verdict}", mount.path.escape_ascii()));
}

/// The tree that a mount asks for, and its root's mode; or the near side's errno and words.
fn begin(mount: &Mount, exports: &Exports, standing: &Standing) -> Result<Beginning, (Errno, String)> {
    caller::prepare_thread().map_err(|e| (e, "the host's file service must run as root".to_string()))?;
    let (root, read_only) = exports.open(mount)?;
    let (grant, by) = may_mount(&root, standing)?;
    let told = |e: Errno| (e, e.desc().to_string());
    let mode = crate::sys::file::stat(root.as_fd()).map_err(told)?.mode;
    let tree = Tree::new(root, mount.base, read_only || grant.read_only, exports.node_fds).map_err(told)?;
    Ok(Beginning { tree: Tree { without: grant.without, ..tree }, mode, by })
}

struct Beginning {
    tree: Tree,
    mode: u32,
    /// By which rule, for the log.
    by: String,
}

/// What the peer's rules say of the very directory that was opened.
fn may_mount(root: &OwnedFd, standing: &Standing) -> Result<(MountGrant, String), (Errno, String)> {
    let everything = MountGrant { read_only: false, without: FsOps::default(), partly: FsOps::default() };
    let (trusted, peer) = match standing {
        Standing::Everything => return Ok((everything, "by this machine itself".into())),
        Standing::Peer(trusted, peer) => (trusted, peer),
        Standing::Nothing => return Err((Errno::EACCES, "its key is not trusted any more".into())),
    };
    let link = format!("/proc/self/fd/{}", root.as_raw_fd());
    let path = std::fs::read_link(&link).map_err(|e| (crate::errno::errno_of(&e), format!("{link}: {e}")))?;
    let allowed = peer.policy.mount(&trusted.machine, &SystemLinks, path.as_os_str().as_bytes());
    let allowed = allowed.map_err(|denied| (Errno::EACCES, format!("{}: {denied}", path.display())))?;
    if !allowed.grant.partly.is_empty() {
        let why = "/etc/qtfs/whitelist allows some operations in a part of it only; mount that part";
        return Err((Errno::EACCES, format!("{}: {why}", path.display())));
    }
    Ok((allowed.grant, allowed.to_string()))
}

impl Tree {
    fn new(root: OwnedFd, base: u64, read_only: bool, node_fds: usize) -> nix::Result<Self> {
        Ok(Self {
            nodes: nodes::Nodes::new(root, base, node_fds)?,
            files: files::Files::new(base),
            locks: Arc::new(locks::Locks::new(read_only)),
            read_only,
            without: FsOps::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exports() -> Exports {
        let export = |path: &str, access| Export { path: path.into(), access };
        Exports::new(vec![export("/a", Access::Rw), export("/a/b", Access::Ro)], Some(10_000))
    }

    #[test]
    fn the_deepest_export_decides() {
        let exports = exports();
        let found = |p: &'static str| exports.holding(Path::new(p)).map(|(e, rest)| (e.access, rest.to_path_buf()));
        assert_eq!(found("/a/x"), Some((Access::Rw, "x".into())));
        assert_eq!(found("/a/b/y"), Some((Access::Ro, "y".into())));
        assert_eq!(found("/ab"), None);
        assert_eq!(found("/"), None);
    }

    #[test]
    fn threads_are_clamped() {
        assert_eq!(exports().threads(), *FILE_THREADS.end());
    }

    #[test]
    fn a_path_that_climbs_is_refused_before_it_is_looked_at() {
        for path in ["/a/../etc", "a", "", "/a/b/../../../etc"] {
            let mount = Mount { path: path.into(), read_only: false, base: 0 };
            assert_eq!(exports().open(&mount).unwrap_err().0, Errno::EINVAL, "{path}");
        }
    }
}
