//! What this machine is known by, its symbolic links, and its machine-wide lists.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use super::guarded::{Guard, read};
use super::{Attempt, TrustError};
use crate::auth::check_name;
use crate::errno::{Errno, OsError, OsResult, errno_of};
use crate::policy::{ExecList, FsList, Links, Machine};

/// Everything that tells this machine from a copy of it, the best first; empty in a container that has nothing.
pub(super) fn ids() -> Vec<String> {
    let read = |path: &str| std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let known = |kind: &str, id: Option<String>| {
        id.filter(|id| !id.is_empty() && id != "uninitialized" && id.len() <= 128 && !id.contains(char::is_control))
            .map(|id| format!("{kind}:{id}"))
    };
    let machine = known("machine-id", read("/etc/machine-id"));
    let board = known("dmi", read("/sys/class/dmi/id/product_uuid"));
    machine.into_iter().chain(board).collect()
}

/// The host name as far as it is a peer's name.
pub(super) fn name() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let short = host.split('.').next().unwrap_or_default();
    let fine: String =
        short.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).take(64).collect();
    let name = fine.trim_start_matches('-');
    if check_name(name).is_ok() { name.to_owned() } else { "host".into() }
}

/// Both lists below `etc`; one that cannot be used lets nothing through and says why.
pub(super) fn lists(etc: &Path) -> Machine {
    let (exec, fs) = (etc.join("rexec/whitelist"), etc.join("qtfs/whitelist"));
    // A listed command that cannot be followed counts as it is written alone: the list allows less.
    let links = |path: &[u8]| SystemLinks.without_any(path).ok();
    let refuse = |what: &str, e: &TrustError| {
        tracing::error!("{e}: no peer may {what} until this is put right");
        format!("{e}; until then no peer may {what}")
    };
    let exec_list = || -> Attempt<ExecList> {
        let Some(text) = read(&exec, Guard::ReadOnly)? else { return Ok(ExecList::Absent) };
        Ok(ExecList::parse(&exec, &text, &links)?)
    };
    let fs_list = || -> Attempt<FsList> {
        let Some(text) = read(&fs, Guard::Own)? else { return Ok(FsList::Absent) };
        Ok(FsList::parse(&fs, &text)?)
    };
    Machine {
        exec: exec_list().unwrap_or_else(|e| ExecList::Refused(refuse("run commands", &e))),
        fs: fs_list().unwrap_or_else(|e| FsList::Refused(refuse("mount directories", &e))),
    }
}

/// The paths of the two lists, for `Store::stamp`.
pub(super) fn list_paths(etc: &Path) -> [PathBuf; 2] {
    [etc.join("rexec/whitelist"), etc.join("qtfs/whitelist")]
}

/// What a path really is, as far as it exists; what is behind that has no links yet.
///
/// # Errors
/// It cannot be told.
pub fn real_path(path: &Path) -> OsResult<PathBuf> {
    let real = SystemLinks.without_any(path.as_os_str().as_bytes());
    let real = real.map_err(|errno| OsError::on("follow the symbolic links of", path.display(), errno))?;
    Ok(std::ffi::OsString::from_vec(real).into())
}

/// Asks the file system: not for a worker.
#[derive(Debug, Clone, Copy)]
pub struct SystemLinks;

impl Links for SystemLinks {
    /// What does not exist yet has no links; what is above it may.
    fn without_any(&self, path: &[u8]) -> Result<Vec<u8>, Errno> {
        let path = Path::new(OsStr::from_bytes(path));
        for above in path.ancestors() {
            let real = match above.canonicalize().map_err(|e| errno_of(&e)) {
                Ok(real) => real,
                Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
                Err(errno) => return Err(errno),
            };
            let rest = path.strip_prefix(above).expect("ancestors are prefixes");
            let whole = if rest.as_os_str().is_empty() { real } else { real.join(rest) };
            return Ok(whole.into_os_string().into_vec());
        }
        Err(Errno::ENOENT)
    }

    fn without_top(&self, path: &[u8]) -> Option<Vec<u8>> {
        let path = Path::new(OsStr::from_bytes(path));
        let mut names = path.components().skip(1).take(2);
        let first = Path::new("/").join(names.next()?);
        let second = names.next().filter(|_| first == Path::new("/var")).map(|name: Component<'_>| first.join(name));
        let top = second.unwrap_or(first);
        let real = top.is_symlink().then(|| top.canonicalize().ok()).flatten()?;
        let rest = path.strip_prefix(&top).ok()?;
        let whole = if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        Some(whole.into_os_string().into_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_a_name_that_is_one() {
        assert_eq!(check_name(&name()), Ok(()));
    }

    #[test]
    fn links_are_followed_as_far_as_there_is_something() {
        let dir = crate::sys::tempdir::PrivateDir::new("links").unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::os::unix::fs::symlink("/etc", real.join("link")).unwrap();
        let path = real.join("link/no/such");
        let without = |path: &Path| SystemLinks.without_any(path.as_os_str().as_bytes()).unwrap();
        assert_eq!(without(&path), b"/etc/no/such");
        assert_eq!(without(Path::new("/no/such")), b"/no/such");
        assert_eq!(SystemLinks.without_top(path.as_os_str().as_bytes()), None);
        std::os::unix::fs::symlink(real.join("loop"), real.join("loop")).unwrap();
        let looped = real.join("loop/x").into_os_string().into_vec();
        assert_eq!(SystemLinks.without_any(&looped), Err(Errno::ELOOP), "it may stand for anything");
        if Path::new("/var/run").is_symlink() {
            assert_eq!(SystemLinks.without_top(b"/var/run/x/y"), Some(b"/run/x/y".to_vec()));
            assert_eq!(SystemLinks.without_top(b"/var/run"), Some(b"/run".to_vec()));
        }
    }
}
