//! Files that nobody else may have written: opened once, judged by what was opened, replaced as a whole.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, geteuid, linkat, unlinkat};
use zeroize::Zeroizing;

use super::{Attempt, TrustError};
use crate::errno::{Errno, OsError, Step};
use crate::limits::POLICY_FILE_MAX;
use crate::sys::random;

/// Who may have done what to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guard {
    /// Read by its owner alone.
    Secret,
    /// Written by its owner alone.
    Own,
    /// As dpu-utilities wants its list of commands: exactly 0400, and root's.
    ReadOnly,
}

/// A directory that was opened and judged; its files are reached through it.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// `None`: there is none.
    pub(super) fn open(path: &Path) -> Attempt<Option<Self>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Self::judged(nix::fcntl::open(path, flags, Mode::empty()), path.into())
    }

    pub(super) fn sub(&self, name: &str) -> Attempt<Option<Self>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        Self::judged(openat(&self.fd, name, flags, Mode::empty()), self.path.join(name))
    }

    fn judged(opened: nix::Result<OwnedFd>, path: PathBuf) -> Attempt<Option<Self>> {
        let fd = match opened {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(OsError::on("open", path.display(), errno).into()),
        };
        let file = File::from(fd);
        judge(&file, &path, Guard::Own)?;
        Ok(Some(Self { fd: file.into(), path }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// `None`: there is none. The text is cleared when it is dropped, since it may be a secret.
    pub(super) fn read(&self, name: &str, guard: Guard) -> Attempt<Option<Zeroizing<String>>> {
        read_opened(openat(&self.fd, name, READ, Mode::empty()), &self.path.join(name), guard)
    }

    /// Names of files, in order.
    pub(super) fn names(&self) -> Attempt<Vec<String>> {
        let said = |errno| OsError::on("read", self.path.display(), errno);
        let mut dir =
            nix::dir::Dir::openat(&self.fd, ".", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(said)?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            // A name that is no text is none of ours.
            if let Ok(name) = entry.map_err(said)?.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Waits until nobody else changes anything here; until the guard is dropped or this process ends. The file is for
    /// its owner alone, so no other user can hold it.
    pub(super) fn lock(&self) -> Attempt<Flock<File>> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let path = self.path.join(".lock");
        let fd = openat(&self.fd, ".lock", flags, Mode::from_bits_truncate(0o600)).step_on("open", path.display())?;
        let file = File::from(fd);
        judge(&file, &path, Guard::Secret)?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| OsError::on("flock", path.display(), e).into())
    }

    /// The file anew, with mode 0600, in one step for every reader.
    pub(super) fn write(&self, name: &str, text: &str) -> Attempt<()> {
        let (temp, path) = (self.temp(text)?, self.path.join(name));
        let done = renameat(&self.fd, temp.as_str(), &self.fd, name).step_on("rename to", path.display());
        self.settled(&temp, done.is_err());
        done?;
        self.sync()
    }

    /// As `write`, where there must be no file of that name yet.
    pub(super) fn create(&self, name: &str, text: &str) -> Attempt<()> {
        let (temp, path) = (self.temp(text)?, self.path.join(name));
        let done = linkat(&self.fd, temp.as_str(), &self.fd, name, AtFlags::empty()).step_on("create", path.display());
        self.settled(&temp, true);
        done?;
        self.sync()
    }

    fn temp(&self, text: &str) -> Attempt<String> {
        let mut tag = [0; 8];
        random::fill(&mut tag)?;
        let name = format!(".new.{:016x}", u64::from_ne_bytes(tag));
        let path = self.path.join(&name);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&self.fd, name.as_str(), flags, Mode::from_bits_truncate(0o600))
            .step_on("create", path.display())?;
        let mut file = File::from(fd);
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        if let Err(e) = written.step_on("write", path.display()) {
            self.settled(&name, true);
            return Err(e.into());
        }
        Ok(name)
    }

    /// A name that has served; one that stays behind is only litter.
    fn settled(&self, temp: &str, is_there: bool) {
        if is_there && let Err(e) = unlinkat(&self.fd, temp, UnlinkatFlags::NoRemoveDir) {
            tracing::warn!("cannot remove {}: {e}", self.path.join(temp).display());
        }
    }

    /// Replaces what is at `to`.
    pub(super) fn rename(&self, from: &str, to: &str) -> Attempt<()> {
        renameat(&self.fd, from, &self.fd, to).step_on("rename", self.path.join(from).display())?;
        self.sync()
    }

    pub(super) fn remove(&self, name: &str) -> Attempt<()> {
        unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir).step_on("remove", self.path.join(name).display())?;
        self.sync()
    }

    pub(super) fn make_sub(&self, name: &str) -> Attempt<Self> {
        if let Some(dir) = self.sub(name)? {
            return Ok(dir);
        }
        let path = self.path.join(name);
        match nix::sys::stat::mkdirat(&self.fd, name, Mode::from_bits_truncate(0o700)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(OsError::on("mkdir", path.display(), errno).into()),
        }
        self.sync()?;
        self.sub(name)?.ok_or_else(|| OsError::on("open", path.display(), Errno::ENOENT).into())
    }

    fn sync(&self) -> Attempt<()> {
        nix::unistd::fsync(self.fd.as_fd()).step_on("fsync", self.path.display()).map_err(TrustError::from)
    }
}

const READ: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);

/// A file outside of the directories above; `None`: there is none.
pub(super) fn read(path: &Path, guard: Guard) -> Attempt<Option<Zeroizing<String>>> {
    read_opened(nix::fcntl::open(path, READ, Mode::empty()), path, guard)
}

fn read_opened(opened: nix::Result<OwnedFd>, path: &Path, guard: Guard) -> Attempt<Option<Zeroizing<String>>> {
    let shown = path.display();
    let file = match opened {
        Ok(fd) => File::from(fd),
        Err(Errno::ENOENT) => return Ok(None),
        Err(Errno::ELOOP) => {
            return Err(TrustError(format!(
                "{shown}: is a symbolic link, which is not followed; put the file itself there"
            )));
        }
        Err(errno) => return Err(OsError::on("open", shown, errno).into()),
    };
    judge(&file, path, guard)?;
    let mut bytes = Zeroizing::new(Vec::new());
    (&file).take(POLICY_FILE_MAX + 1).read_to_end(&mut bytes).step_on("read", &shown)?;
    if bytes.len() as u64 > POLICY_FILE_MAX {
        return Err(TrustError(format!("{shown}: longer than {} KiB", POLICY_FILE_MAX >> 10)));
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Some(Zeroizing::new(text.to_owned()))),
        Err(_) => Err(TrustError(format!("{shown}: is no UTF-8 text"))),
    }
}

fn judge(file: &File, path: &Path, guard: Guard) -> Attempt<()> {
    let shown = path.display();
    let meta = file.metadata().step_on("fstat", &shown)?;
    let (mode, owner) = (meta.mode() & 0o7777, meta.uid());
    let kind_fits = meta.is_file() || (guard == Guard::Own && meta.is_dir());
    let owner_fits = owner == 0 || (guard != Guard::ReadOnly && owner == geteuid().as_raw());
    let wrong = if !kind_fits {
        "is no regular file".into()
    } else if !owner_fits {
        format!("belongs to user {owner}, who could change it; chown root it")
    } else {
        match guard {
            Guard::Secret if mode & 0o077 != 0 => {
                format!(
                    "is secret, and others may read it (mode {mode:04o}); chmod 600 it, and make a new key if they did"
                )
            }
            Guard::Own if mode & 0o022 != 0 => format!("may be written by others (mode {mode:04o}); chmod go-w it"),
            Guard::ReadOnly if mode & 0o777 != 0o400 => format!("has mode {mode:04o} and not 0400; chmod 400 it"),
            _ => return Ok(()),
        }
    };
    Err(TrustError(format!("{shown}: {wrong}")))
}
