//! Whether a peer may run a command, and how what was judged is what runs.
//!
//! ```text
//!   as typed ─PATH, cwd─▶ file, opened ─▶ its path as the kernel knows it ─▶ policy ─▶ grant
//!                                             │ only root can change what is there ──▶ execve of that path
//!                                             └ others can ──▶ the command opens it as its own user, finds the very
//!                                                              file that was judged, and runs that (execveat)
//! ```
//!
//! A script in a directory that others may change is refused where the policy tells files apart: its interpreter opens it
//! once more, by its name. Where any file is allowed none of this matters, and the command runs as it always does.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::fcntl::{OFlag, open, openat, readlink};
use nix::sys::stat::Mode;

use super::wire::Request;
use crate::errno::{Errno, OsError, OsResult, Step};
use crate::policy::{Environment, ExecGrant, ExecQuery};
use crate::trust::{Standing, SystemAccounts, SystemLinks};

/// What may run, and with what.
#[derive(Debug)]
pub(super) struct Leave {
    /// By which line, for the log.
    pub(super) by: String,
    /// `None`: as it was asked for.
    pub(super) program: Option<Judged>,
    grant: Option<ExecGrant>,
}

/// The file that was judged.
#[derive(Debug)]
pub(super) struct Judged {
    pub(super) path: CString,
    /// Device and inode, where somebody else than root might put another file there meanwhile.
    pub(super) only: Option<(u64, u64)>,
    /// As long as this is open no other file gets the same inode number.
    _held: OwnedFd,
}

/// # Errors
/// ENOENT: there is no such file. EACCES: no rule allows it; `on` says so.
pub(super) fn judge(standing: &Standing, request: &Request, candidates: &[CString]) -> OsResult<Leave> {
    let (trusted, peer) = match standing {
        Standing::Everything => return Ok(Leave { by: "by this machine itself".into(), program: None, grant: None }),
        Standing::Peer(trusted, peer) => (trusted, peer),
        Standing::Nothing => return Err(OsError::on("judge", "its key is not trusted any more", Errno::EACCES)),
    };
    let (held, path) = find(candidates, &request.cwd)?;
    let (args, who) = (&request.argv[1..], &request.identity);
    let query = ExecQuery { path: &path, args, uid: who.uid, gid: who.gid, groups: &who.groups };
    let allowed = match peer.policy.exec(&trusted.machine, &SystemAccounts, &SystemLinks, &query) {
        Ok(allowed) => allowed,
        Err(denied) => return Err(OsError::on("judge", denied, Errno::EACCES)),
    };
    let by = allowed.to_string();
    let grant = allowed.grant;
    let program = if grant.any_file { None } else { Some(settle(held, &path)?) };
    Ok(Leave { by, program, grant: Some(grant) })
}

impl Leave {
    /// Takes from the request what the rule does not leave it.
    pub(super) fn narrow(&self, request: &mut Request) {
        let Some(grant) = &self.grant else { return };
        grant.environment.narrow(&mut request.env);
        if !grant.any_file && grant.environment != Environment::All {
            request.inheritance.narrow();
        }
        let sets = &mut request.identity.capabilities;
        for set in [&mut sets.inheritable, &mut sets.permitted, &mut sets.ambient] {
            *set &= grant.capabilities.0;
        }
        sets.bounding &= grant.bounding.0;
    }
}

/// The first candidate that is there, as execvp(3) looks for it, and the kernel's name for it.
fn find(candidates: &[CString], cwd: &[u8]) -> OsResult<(OwnedFd, Vec<u8>)> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let mut directory = None;
    let mut missing = Errno::ENOENT;
    for candidate in candidates {
        let opened = if candidate.as_bytes().starts_with(b"/") {
            open(candidate.as_c_str(), flags, Mode::empty())
        } else {
            if directory.is_none() {
                let opened = open(OsStr::from_bytes(cwd), flags | OFlag::O_DIRECTORY, Mode::empty());
                directory = Some(opened.step_on("chdir", String::from_utf8_lossy(cwd))?);
            }
            openat(directory.as_ref().expect("opened above"), candidate.as_c_str(), flags, Mode::empty())
        };
        match opened {
            Ok(file) => {
                let link = format!("/proc/self/fd/{}", file.as_raw_fd());
                let path = readlink(link.as_str()).map_err(|e| OsError::on("readlink", link, e))?;
                return Ok((file, path.into_vec()));
            }
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => missing = errno,
        }
    }
    let name = candidates.first().map(|c| c.to_string_lossy().into_owned()).unwrap_or_default();
    Err(OsError::on("execve", name, missing))
}

fn settle(held: OwnedFd, path: &[u8]) -> OsResult<Judged> {
    let shown = String::from_utf8_lossy(path).into_owned();
    let refuse = |what: &str| OsError::on("judge", format!("denied: {shown} {what}"), Errno::EACCES);
    let c_path = CString::new(path).map_err(|_| refuse("has a NUL in its name"))?;
    if only_root_changes(Path::new(OsStr::from_bytes(path))) {
        return Ok(Judged { path: c_path, only: None, _held: held });
    }
    // The very file, whatever is at the path by now.
    let file = std::fs::File::open(format!("/proc/self/fd/{}", held.as_raw_fd()));
    let file = file.map_err(|e| OsError::on("open", &shown, crate::errno::errno_of(&e)))?;
    let mut head = [0; 4];
    if file.read_exact_at(&mut head, 0).is_err() || head != *b"\x7fELF" {
        return Err(refuse("is a script where others than root may write, and the rule is not for every file"));
    }
    let meta = file.metadata().map_err(|e| OsError::on("stat", &shown, crate::errno::errno_of(&e)))?;
    Ok(Judged { path: c_path, only: Some((meta.dev(), meta.ino())), _held: held })
}

/// Whether nobody but root can put another file at `path`, which has no symbolic links: it and every directory above.
fn only_root_changes(path: &Path) -> bool {
    let roots = |p: &Path| p.symlink_metadata().is_ok_and(|m| m.uid() == 0 && m.mode() & 0o022 == 0 && !m.is_symlink());
    path.ancestors().all(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn c(text: &str) -> CString {
        CString::new(text).unwrap()
    }

    #[test]
    fn a_file_is_found_by_path_and_by_directory_and_known_by_its_real_name() {
        let real = std::fs::canonicalize("/bin/sh").unwrap().into_os_string().into_vec();
        for (candidates, cwd) in
            [(vec![c("/nonexistent/sh"), c("/bin/sh")], "/"), (vec![c("bin/sh")], "/"), (vec![c("./sh")], "/bin")]
        {
            assert_eq!(find(&candidates, cwd.as_bytes()).unwrap().1, real, "{candidates:?}");
        }
        assert_eq!(find(&[c("/nonexistent/sh")], b"/").unwrap_err().errno, Errno::ENOENT);
    }

    #[test]
    fn what_others_may_change_is_held_and_scripts_there_are_refused() {
        let shell = std::fs::canonicalize("/bin/sh").unwrap();
        assert!(only_root_changes(&shell));
        let dir = std::env::temp_dir().join(format!("farside-judge-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        // Below /tmp, which is everybody's.
        let program = dir.join("sh");
        std::fs::copy(&shell, &program).unwrap();
        let (held, path) = find(&[c(program.to_str().unwrap())], b"/").unwrap();
        assert!(settle(held, &path).unwrap().only.is_some());
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        let (held, path) = find(&[c(program.to_str().unwrap())], b"/").unwrap();
        assert_eq!(settle(held, &path).unwrap_err().errno, Errno::EACCES);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
