//! Commands that put themselves into the background: `-daemonize -pidfile F`, as libvirt probes QEMU.
//!
//! ```text
//!   rexec (waits) ── fork ──▶ stand-in: runs the command ── its parent exits 0 ──▶ F := own pid, fds 0-2 := /dev/null
//!      exits with the parent's status ◀── report ──┘        stays, takes signals, until the far daemon has ended
//! ```
//!
//! F was written on the other machine, with a pid of that machine; a kill(2) of that number here would hit nobody or
//! somebody else. So F gets the number of the process that stands in here, in place, before the caller sees our exit.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::errno::{OsResult, Step};
use crate::sys::stand_in;

#[derive(Debug)]
pub(super) struct Background {
    /// How the waiting parent hears the status; `None` for a command that stays in the foreground.
    report: Option<std::io::PipeWriter>,
    pid_file: Option<PathBuf>,
}

impl Background {
    /// Forks if the command will daemonize; must be called while the process has one thread. The parent never returns
    /// from here.
    pub(super) fn begin(argv: &[Vec<u8>]) -> OsResult<Self> {
        let Some(pid_file) = pid_file(argv) else { return Ok(Self { report: None, pid_file: None }) };
        let (mut told, report) = std::io::pipe().step("pipe")?;
        if stand_in::fork_away()? {
            return Ok(Self { report: Some(report), pid_file: Some(pid_file) });
        }
        drop(report);
        let mut code = [0; 4];
        match told.read_exact(&mut code) {
            Ok(()) => std::process::exit(i32::from_le_bytes(code)),
            // It has said why on stderr.
            Err(_) => std::process::exit(super::client::FAILED),
        }
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.report.is_some()
    }

    /// The command has ended and left nothing: the parent may exit.
    pub(super) fn report(&mut self, code: i32) {
        if let Some(mut to) = self.report.take() {
            // A parent that was killed hears nothing, nor needs to.
            let _ = to.write_all(&code.to_le_bytes());
        }
    }

    /// The command has left a daemon: this process becomes it.
    pub(super) fn stay(&mut self, code: i32) -> OsResult<()> {
        if let Some(path) = &self.pid_file {
            let shown = path.display().to_string();
            // In place: the far daemon may hold a lock on the file.
            let mut file = OpenOptions::new().write(true).open(path).step_on("open", &shown)?;
            let text = format!("{}\n", std::process::id());
            file.write_all(text.as_bytes()).step_on("write", &shown)?;
            file.set_len(text.len() as u64).step_on("truncate", &shown)?;
        }
        stand_in::let_go_of_stdio()?;
        self.report(code);
        Ok(())
    }
}

/// The file behind `-pidfile`, when `-daemonize` is there too: QEMU's own options, with one dash or two.
fn pid_file(argv: &[Vec<u8>]) -> Option<PathBuf> {
    let is = |arg: &[u8], name: &[u8]| {
        let bare = arg.strip_prefix(b"--").or_else(|| arg.strip_prefix(b"-"));
        bare == Some(name)
    };
    if !argv.iter().skip(1).any(|a| is(a, b"daemonize")) {
        return None;
    }
    let at = argv.iter().position(|a| is(a, b"pidfile"))?;
    argv.get(at + 1).map(|f| PathBuf::from(std::ffi::OsStr::from_bytes(f)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(line: &str) -> Option<PathBuf> {
        pid_file(&line.split(' ').map(|a| a.as_bytes().to_vec()).collect::<Vec<_>>())
    }

    #[test]
    fn only_a_command_that_daemonizes_and_says_where_leaves_a_stand_in() {
        assert_eq!(found("qemu -S -pidfile /a/b.pid -daemonize"), Some("/a/b.pid".into()));
        assert_eq!(found("qemu --daemonize --pidfile /a/b.pid"), Some("/a/b.pid".into()));
        assert_eq!(found("qemu -pidfile /a/b.pid"), None);
        assert_eq!(found("qemu -daemonize"), None);
        assert_eq!(found("qemu -daemonize -pidfile"), None);
    }
}
