//! Leaving the caller: fork while there is one thread, answer when the work is up.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use nix::unistd::{ForkResult, fork, pipe2, setsid};

/// The child's line to its waiting parent.
#[derive(Debug)]
pub struct Starting(OwnedFd);

/// Which process this is after `detach`.
#[derive(Debug)]
pub enum Detached {
    /// In the foreground still; holds what the child said: `None` for "up", else why not.
    Parent(Option<String>),
    Child(Starting),
}

/// Forks. The parent waits until the child says `up` or `failed`, or dies.
///
/// # Panics
/// When the process has other threads already: they would not exist in the child.
pub fn detach() -> nix::Result<Detached> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    assert_eq!(threads, 1, "fork comes before any thread");
    let (heard, said) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // SAFETY: the process has one thread, so the child's memory is whole.
    match unsafe { fork() }? {
        ForkResult::Parent { .. } => {
            drop(said);
            let mut text = Vec::new();
            // A child that dies leaves the pipe empty, which is no "up".
            let _ = File::from(heard).read_to_end(&mut text);
            let text = String::from_utf8_lossy(&text).into_owned();
            Ok(Detached::Parent(match text.as_str() {
                "+" => None,
                "" => Some("the mount process ended without a word".into()),
                why => Some(why.into()),
            }))
        }
        ForkResult::Child => {
            drop(heard);
            setsid()?;
            Ok(Detached::Child(Starting(said)))
        }
    }
}

impl Starting {
    /// The parent returns success; from here on nobody reads stdin, stdout and stderr.
    pub fn up(self) -> nix::Result<()> {
        let null = File::options().read(true).write(true).open("/dev/null").map_err(|e| crate::errno::errno_of(&e))?;
        nix::unistd::dup2_stdin(&null)?;
        nix::unistd::dup2_stdout(&null)?;
        nix::unistd::dup2_stderr(&null)?;
        // A parent that was killed does not listen any more.
        let _ = File::from(self.0).write_all(b"+");
        Ok(())
    }

    /// The parent prints `why` and fails.
    pub fn failed(self, why: &str) {
        let _ = File::from(self.0).write_all(why.as_bytes());
    }
}
