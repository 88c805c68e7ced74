//! The words that bringing the offload up and down is spoken in. `system` says them to the kernel; the recording twin in
//! `rehearsal` keeps a model of a machine, so that a test can pull the plug after every word.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::journal::{Process, Space};
use super::trouble::Attempt;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Missing,
    Dir,
    File,
    Symlink,
    Other,
}

/// A program that `up` starts and leaves running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub name: &'static str,
    pub command: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Inside this directory, as its /.
    pub root: Option<PathBuf>,
    pub log: PathBuf,
}

/// A running virtual machine: its name, and the process that stands for it here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    pub name: String,
    pub process: Process,
}

pub trait Machine {
    fn say(&mut self, line: &str);
    fn now(&self) -> u64;

    // The journal: `save` returns when it is on the disk.
    fn load(&self) -> Attempt<Option<String>>;
    fn save(&mut self, text: &str) -> Attempt<()>;
    fn forget(&mut self) -> Attempt<()>;

    // Files, always in the DPU's own space.
    fn kind(&self, path: &Path) -> Kind;
    fn read(&self, path: &Path) -> Attempt<Vec<u8>>;
    fn make_dir(&mut self, path: &Path, mode: u32) -> Attempt<()>;
    fn write(&mut self, path: &Path, mode: u32, bytes: &[u8]) -> Attempt<()>;
    fn rename(&mut self, from: &Path, to: &Path) -> Attempt<()>;
    fn remove_file(&mut self, path: &Path) -> Attempt<()>;
    /// False if something is in it.
    fn remove_dir(&mut self, path: &Path) -> Attempt<bool>;
    fn remove_tree(&mut self, path: &Path) -> Attempt<()>;
    fn real_emulators(&self, rootfs: &Path) -> Vec<PathBuf>;

    // Mounts.
    /// How many mounts lie at the path; none where the space is gone.
    fn mounts_at(&self, space: Space, path: &Path) -> Attempt<usize>;
    /// A mount of the directory on itself that no other space sees.
    fn make_private(&mut self, dir: &Path) -> Attempt<()>;
    /// A mount namespace that is kept alive by a mount on the file `handle`.
    fn make_space(&mut self, handle: &Path) -> Attempt<()>;
    fn bind(&mut self, from: &Path, to: &Path, recursive: bool) -> Attempt<()>;
    /// Through the helper mount.qtfs, inside the offload's space; the process that serves the mount.
    fn mount_qtfs(&mut self, command: &[String]) -> Attempt<Process>;
    fn unmount(&mut self, space: Space, path: &Path) -> Attempt<()>;
    /// Takes a dead mount away, also where it is in use.
    fn detach(&mut self, space: Space, path: &Path) -> Attempt<()>;

    // Processes.
    /// A process that becomes the program when it is released, and ends by itself if it never is.
    fn start_held(&mut self, program: &Program) -> Attempt<Process>;
    fn release(&mut self, process: &Process) -> Attempt<()>;
    fn is_alive(&self, process: &Process) -> bool;
    /// SIGTERM, and SIGKILL at the deadline.
    fn stop(&mut self, process: &Process, patience: Duration) -> Attempt<()>;
    /// Processes inside the offload's space.
    fn strangers(&self) -> Vec<Process>;
    /// Virtual machines that libvirtd left or leaves running.
    fn guests(&self) -> Vec<Guest>;

    // Questions to the world.
    /// Connects to a TCP address; this machine's own address on that connection.
    fn reach(&self, addr: &str) -> Attempt<String>;
    /// The pid of who listens at the socket, 0 where it cannot be told; `None`: nobody listens.
    fn server_of(&self, socket: &Path) -> Option<i32>;
    /// Asks the file system of a mount inside the offload for something; an error is why it did not answer in time.
    fn mount_answers(&self, at: &Path) -> Attempt<()>;
    /// A command inside the offload, with the rootfs as its /; its output, or its last words as the trouble.
    fn ask(&self, rootfs: &Path, command: &[&str]) -> Attempt<String>;
    fn tail(&self, log: &Path) -> String;
    fn sleep(&self, time: Duration);
}
