//! `farside enter`: becomes a program inside the offload's mount namespace, with the rootfs as its /.
//!
//! Held, it first waits for one byte on its standard input. `up` writes the pid to its journal, then that byte: a crash
//! in between closes the pipe, and a process that nobody knows of never comes to run.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::{CloneFlags, setns};

use super::trouble::{Attempt, Trouble};
use crate::errno::Step;

#[derive(Debug)]
pub struct Order {
    pub space: Option<PathBuf>,
    pub root: Option<PathBuf>,
    pub held: bool,
    /// The program's whole environment, `KEY=VALUE`; none: this one's. Not this one's for a daemon, because its
    /// LD_PRELOAD is a path inside the rootfs.
    pub env: Vec<String>,
    pub command: Vec<OsString>,
}

/// Returns only if it failed.
pub fn enter(order: &Order) -> Attempt<()> {
    if order.held && !released() {
        return Err(Trouble::new("not released: `dpu up` has ended before its time", "run `farside dpu down`"));
    }
    if let Some(space) = &order.space {
        let handle = File::open(space).map_err(|e| Trouble::io("open", space, &e))?;
        setns(handle, CloneFlags::CLONE_NEWNS).step_on("setns", space.display())?;
    }
    if let Some(root) = &order.root {
        nix::unistd::chroot(root.as_path()).step_on("chroot", root.display())?;
    }
    nix::unistd::chdir("/").step_on("chdir", "/")?;
    let (program, arguments) = order.command.split_first().ok_or_else(|| Trouble::new("no command", ""))?;
    let mut command = Command::new(program);
    command.args(arguments);
    if !order.env.is_empty() {
        command.env_clear().envs(order.env.iter().filter_map(|assignment| assignment.split_once('=')));
    }
    if order.held {
        // A daemon: no terminal of anyone's, and nothing to read.
        nix::unistd::setsid().step("setsid")?;
        command.stdin(std::process::Stdio::null());
    }
    let error = command.exec();
    Err(Trouble::io("exec", Path::new(program), &error))
}

fn released() -> bool {
    let mut byte = [0];
    std::io::stdin().read_exact(&mut byte).is_ok()
}
