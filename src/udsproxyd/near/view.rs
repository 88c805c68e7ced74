//! A socket's path as its caller sees it, turned into the path that the far machine knows.
//!
//! ```text
//!   typed ──▶ the parent directory, opened below the caller's own root (or from its cwd)
//!               ├─ on a qtfs mount: SRC + what is below the mount + the last component
//!               └─ anywhere else:   as typed (made absolute)
//! ```
//!
//! The parent need not exist here: the nearest ancestor that does decides. Paths are compared as the kernel writes them
//! for an fd (/proc/self/fd/N), root, mount point and directory alike, so that a caller in a chroot or in another mount
//! namespace needs no special case.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2, readlinkat};
use nix::sys::stat::Mode;
use tracing::warn;

use super::mounts::Mounts;
use super::path::{below, climbs, join};
use crate::errno::{Errno, OsResult, Step};

/// This machine's /proc, opened before any thread leaves the daemon's root.
#[derive(Debug)]
pub(super) struct Proc {
    all: OwnedFd,
    own_fds: OwnedFd,
    mounts: Mounts,
}

/// The asking process. Its pid can't become another's while it waits for its verdict; so whoever uses what this says
/// looks first whether the asker is still there.
#[derive(Debug)]
pub(super) struct Caller<'a> {
    proc: &'a Proc,
    pid: i32,
    root: OwnedFd,
}

/// What the far side is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) name: Vec<u8>,
    /// All of these must be allowed: the name itself, and where it leads to here if that is something else.
    pub(super) judged: Vec<Vec<u8>>,
}

impl Target {
    /// A name that is the same everywhere.
    pub(super) fn as_is(name: &[u8]) -> Self {
        Self { name: name.to_vec(), judged: vec![name.to_vec()] }
    }
}

/// Symbolic links that a socket's own name may be; as many as path_resolution(7) once allowed.
const LINKS_MAX: u8 = 8;

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

impl Proc {
    pub(super) fn open() -> OsResult<Self> {
        let dir = |path: &str| open(path, DIRECTORY, Mode::empty()).step_on("open", path);
        Ok(Self { all: dir("/proc")?, own_fds: dir("/proc/self/fd")?, mounts: Mounts::default() })
    }

    /// The process that is asking now.
    pub(super) fn caller(&self, pid: i32) -> Result<Caller<'_>, Errno> {
        if pid <= 0 {
            // Not in our pid namespace: its paths can't be looked up, and guessing could reach another socket.
            return Err(Errno::EPERM);
        }
        let root = openat(&self.all, format!("{pid}/root").as_str(), DIRECTORY, Mode::empty());
        if let Err(errno @ (Errno::EACCES | Errno::EPERM)) = root {
            warn!(pid, %errno, "a caller's root can't be seen: this daemon needs CAP_SYS_PTRACE");
        }
        Ok(Caller { proc: self, pid, root: root? })
    }

    /// An fd's path, as the kernel writes it.
    fn path_of(&self, fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
        Ok(readlinkat(&self.own_fds, fd.as_raw_fd().to_string().as_str())?.into_vec())
    }
}

impl Caller<'_> {
    /// `cwd` is the directory that a relative name starts from.
    pub(super) fn target(&self, typed: &[u8], cwd: Option<&OwnedFd>) -> Result<Target, Errno> {
        if self.is_plain(typed) {
            return Ok(Target::as_is(typed));
        }
        let own = openat(&self.proc.all, self.pid.to_string().as_str(), DIRECTORY, Mode::empty())?;
        let root = self.proc.path_of(self.root.as_fd())?;
        let seen = Seen { caller: self, own, root };
        if let Some((start, rest)) = seen.own_proc_link(typed) {
            return seen.resolve(&seen.absolute(start.as_fd(), rest)?, None, LINKS_MAX);
        }
        if typed.first() == Some(&b'/') {
            return seen.resolve(typed, Some(typed), LINKS_MAX);
        }
        let cwd = cwd.ok_or(Errno::EINVAL)?;
        seen.resolve(&seen.absolute(cwd.as_fd(), typed)?, None, LINKS_MAX)
    }

    /// Whether a path needs no translation: it leads through no link, and to no mount of ours. Most do, and these few
    /// calls are all that they cost.
    fn is_plain(&self, typed: &[u8]) -> bool {
        let Some(end) = typed.iter().rposition(|b| *b == b'/') else { return false };
        if typed[0] != b'/' || climbs(typed) || typed.starts_with(b"/proc/") {
            return false;
        }
        let (parent, last) = (if end == 0 { b"/" } else { &typed[..end] }, &typed[end + 1..]);
        let how = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS;
        openat2(&self.root, OsStr::from_bytes(parent), OpenHow::new().flags(DIRECTORY).resolve(how)).is_ok_and(|dir| {
            self.proc.mounts.is_other(dir.as_fd()) && readlinkat(&dir, OsStr::from_bytes(last)).is_err()
        })
    }
}

/// What a translation needs to know of its caller.
struct Seen<'a> {
    caller: &'a Caller<'a>,
    /// /proc/PID.
    own: OwnedFd,
    /// The path of its root, as the kernel writes it.
    root: Vec<u8>,
}

impl Seen<'_> {
    /// /proc/self/fd/N/x, cwd/x and root/x mean the caller's, not ours: programs reach long paths so.
    fn own_proc_link<'t>(&self, typed: &'t [u8]) -> Option<(OwnedFd, &'t [u8])> {
        let pid = self.caller.pid.to_string();
        let rest = typed.strip_prefix(b"/proc/")?;
        let rest = ["self", "thread-self", &pid].iter().find_map(|who| rest.strip_prefix(who.as_bytes()))?;
        let rest = rest.strip_prefix(b"/")?;
        let slash = |from: &[u8]| from.iter().position(|b| *b == b'/');
        let end = if rest.starts_with(b"fd/") { 3 + slash(&rest[3..])? } else { slash(rest)? };
        let (link, rest) = (&rest[..end], &rest[end + 1..]);
        if !link.starts_with(b"fd/") && link != b"cwd" && link != b"root" {
            return None;
        }
        let start = openat(&self.own, OsStr::from_bytes(link), DIRECTORY, Mode::empty()).ok()?;
        Some((start, rest))
    }

    /// A path from the caller's root for `rest` below `start`.
    fn absolute(&self, start: BorrowedFd<'_>, rest: &[u8]) -> Result<Vec<u8>, Errno> {
        let start = self.caller.proc.path_of(start)?;
        let inside = below(&start, &self.root).ok_or(Errno::EXDEV)?;
        Ok([inside, b"/", rest].concat())
    }

    /// `path` from the caller's root, to the far machine's name; elsewhere than on a mount it is asked for as `typed`,
    /// if that was an absolute path. The socket itself may be a symbolic link: `links` more are followed.
    fn resolve(&self, path: &[u8], typed: Option<&[u8]>, links: u8) -> Result<Target, Errno> {
        let (dir, missing) = self.nearest_ancestor(path)?;
        let proc = self.caller.proc;
        let dir_path = proc.path_of(dir.as_fd())?;
        if let Some(source_dir) = proc.mounts.host_path(dir.as_fd(), &dir_path, &self.own, &self.root)? {
            let name = join(&source_dir, missing);
            return Ok(Target::as_is(&name));
        }
        let parent = below(&dir_path, &self.root).unwrap_or(&dir_path);
        if !missing.contains(&b'/')
            && let Ok(link) = readlinkat(&dir, OsStr::from_bytes(missing))
        {
            let links = links.checked_sub(1).ok_or(Errno::ELOOP)?;
            let link = link.as_bytes();
            let next = if link.starts_with(b"/") { link.to_vec() } else { join(parent, link) };
            return self.resolve(&next, typed, links);
        }
        let real = join(parent, missing);
        match typed {
            // A path that climbs is asked for by where it leads: nobody can say what it passes over there.
            Some(typed) if typed != real && !climbs(typed) => {
                Ok(Target { name: typed.to_vec(), judged: vec![real, typed.to_vec()] })
            }
            _ => Ok(Target::as_is(&real)),
        }
    }

    /// The deepest directory on the way to `path` that exists, and the components that follow it (at least the last).
    fn nearest_ancestor<'p>(&self, path: &'p [u8]) -> Result<(OwnedFd, &'p [u8]), Errno> {
        let mut end = path.iter().rposition(|b| *b == b'/').ok_or(Errno::EINVAL)?;
        loop {
            let (parent, rest) = (&path[..end], &path[end + 1..]);
            if climbs(rest) {
                return Err(Errno::ENOENT);
            }
            let parent = if parent.is_empty() { b"/" } else { parent };
            let how = OpenHow::new().flags(DIRECTORY).resolve(ResolveFlag::RESOLVE_IN_ROOT);
            match openat2(&self.caller.root, OsStr::from_bytes(parent), how) {
                Ok(dir) => return Ok((dir, rest)),
                Err(Errno::EAGAIN) => {}
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) if end > 0 => {
                    end = path[..end].iter().rposition(|b| *b == b'/').unwrap_or(0);
                }
                Err(errno) => return Err(errno),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    /// Asks about ourselves.
    fn target(typed: &[u8], cwd: Option<&Path>) -> Result<Target, Errno> {
        let proc = Proc::open().unwrap();
        let caller = proc.caller(std::process::id().cast_signed()).unwrap();
        let cwd = cwd.map(|p| open(p, DIRECTORY, Mode::empty()).unwrap());
        caller.target(typed, cwd.as_ref())
    }

    fn tree(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("uds-view-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("real/deep")).unwrap();
        symlink("real", dir.join("link")).unwrap();
        dir.canonicalize().unwrap()
    }

    #[test]
    fn elsewhere_a_path_goes_as_typed_and_is_judged_by_where_it_leads() {
        let dir = tree("typed");
        let dir = dir.to_str().unwrap();
        let typed = format!("{dir}/link/deep/s");
        let got = target(typed.as_bytes(), None).unwrap();
        assert_eq!(got.name, typed.as_bytes());
        assert_eq!(got.judged, [format!("{dir}/real/deep/s").into_bytes(), typed.into_bytes()]);
        let climbing = target(format!("{dir}/link/../real/s").as_bytes(), None).unwrap();
        assert_eq!(climbing.name, format!("{dir}/real/s").as_bytes());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn relative_paths_start_from_the_callers_directory() {
        let dir = tree("relative");
        let real = dir.to_str().unwrap();
        for (typed, expected) in [("s", "/real/deep/s"), ("../s", "/real/s"), ("../../link/s", "/real/s")] {
            let got = target(typed.as_bytes(), Some(&dir.join("link/deep"))).unwrap();
            assert_eq!(String::from_utf8(got.name).unwrap(), format!("{real}{expected}"), "{typed}");
        }
        assert_eq!(target(b"s", None), Err(Errno::EINVAL));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn directories_that_only_the_far_machine_has_are_kept() {
        let got = target(b"/nonexistent/deeper/s", None).unwrap();
        assert_eq!(got.name, b"/nonexistent/deeper/s");
        assert_eq!(target(b"/nonexistent/../s", None), Err(Errno::ENOENT));
    }

    #[test]
    fn the_callers_own_proc_links_are_followed_for_it() {
        let dir = tree("proc");
        let handle = std::fs::File::open(dir.join("link")).unwrap();
        let typed = format!("/proc/self/fd/{}/deep/s", handle.as_raw_fd());
        let got = target(typed.as_bytes(), None).unwrap();
        assert_eq!(got.name, format!("{}/real/deep/s", dir.display()).as_bytes());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
