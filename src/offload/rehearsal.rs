//! The recording twin of `system`: a machine made of maps, whose plug can be pulled at any word; for tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::journal::{Process, Space};
use super::machine::{Guest, Kind, Machine, Program};
use super::plan;
use super::trouble::{Attempt, Trouble};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    Dir,
    File(Vec<u8>),
}

/// Where in the word that it falls the crash comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    Before(u32),
    After(u32),
}

#[derive(Debug, Default)]
pub struct Rehearsal {
    pub nodes: BTreeMap<PathBuf, Node>,
    pub mounts: BTreeMap<(&'static str, PathBuf), usize>,
    pub running: Vec<Process>,
    held: Vec<Process>,
    pub journal: Option<String>,
    pub guests: Vec<Guest>,
    pub said: Vec<String>,
    pub started: Vec<String>,
    pub crash: Option<Crash>,
    /// A program of that name ends as soon as it is released.
    pub stillborn: Option<&'static str>,
    /// A process that serves a socket of a daemon's in its place.
    pub usurper: Option<(PathBuf, i32)>,
    /// Who serves each mount of the host's.
    pub helpers: BTreeMap<PathBuf, Process>,
    /// A mount that does not answer, though its helper runs.
    pub silent: Option<PathBuf>,
    pub(super) words: u32,
    pids: i32,
}

impl Rehearsal {
    /// A DPU with a rootfs, a libvirt that does not run, and settings of its own.
    pub fn new() -> Self {
        let mut machine = Self::default();
        for dir in [
            "/run",
            "/var/lib/libvirt",
            "/var/cache",
            "/var/log",
            "/etc/farside",
            "/etc/libvirt",
            "/dev",
            "/proc",
            "/sys",
        ] {
            machine.add(dir, Node::Dir);
        }
        for dir in ["dev", "etc", "proc", "local_proc", "sys", "run", "var/lib", "var/cache", "var/log", "usr/lib64"] {
            machine.add(&format!("/another_rootfs/{dir}"), Node::Dir);
        }
        for file in ["usr/sbin/libvirtd", "usr/sbin/virtlogd", "usr/bin/virsh", "usr/bin/qemu-system-x86_64"] {
            machine.add(&format!("/another_rootfs/{file}"), Node::File(b"a program".to_vec()));
        }
        machine.add("/etc/libvirt/qemu.conf", Node::File(b"the DPU's own".to_vec()));
        machine
    }

    fn add(&mut self, path: &str, node: Node) {
        for above in Path::new(path).ancestors().skip(1) {
            self.nodes.entry(above.into()).or_insert(Node::Dir);
        }
        self.nodes.insert(path.into(), node);
    }

    pub fn words(&self) -> u32 {
        self.words
    }

    /// After a crash: what waited for its release has ended by itself.
    pub fn power_back(&mut self) {
        self.crash = None;
        self.held.clear();
    }

    /// What a reboot leaves: the disk.
    pub fn reboot(&mut self) {
        self.mounts.clear();
        self.running.clear();
        self.helpers.clear();
        self.nodes.retain(|path, _| path == Path::new("/run") || !path.starts_with("/run"));
    }

    fn word(&mut self, what: &str, act: impl FnOnce(&mut Self) -> Attempt<()>) -> Attempt<()> {
        let number = self.words;
        self.words += 1;
        let pulled = |at: u32| number >= at;
        match self.crash {
            Some(Crash::Before(at)) if pulled(at) => Err(Trouble::new(format!("crash before '{what}'"), "")),
            Some(Crash::After(at)) if number == at => {
                act(self)?;
                Err(Trouble::new(format!("crash after '{what}'"), ""))
            }
            Some(Crash::After(at)) if pulled(at) => Err(Trouble::new("no power", "")),
            _ => act(self),
        }
    }

    fn key(space: Space, path: &Path) -> (&'static str, PathBuf) {
        (if space == Space::Dpu { "dpu" } else { "offload" }, path.into())
    }

    fn new_process(&mut self, name: &str) -> Process {
        self.pids += 1;
        Process { name: name.into(), pid: self.pids, start: 1, boot: "b".into() }
    }

    fn mount(&mut self, space: Space, path: &Path) -> Attempt<()> {
        *self.mounts.entry(Self::key(space, path)).or_default() += 1;
        Ok(())
    }
}

impl Machine for Rehearsal {
    fn say(&mut self, line: &str) {
        self.said.push(line.into());
    }

    fn now(&self) -> u64 {
        1
    }

    fn load(&self) -> Attempt<Option<String>> {
        Ok(self.journal.clone())
    }

    fn save(&mut self, text: &str) -> Attempt<()> {
        self.word("save", |m| {
            m.journal = Some(text.into());
            Ok(())
        })
    }

    fn forget(&mut self) -> Attempt<()> {
        self.word("forget", |m| {
            m.journal = None;
            Ok(())
        })
    }

    fn kind(&self, path: &Path) -> Kind {
        match self.nodes.get(path) {
            None => Kind::Missing,
            Some(Node::Dir) => Kind::Dir,
            Some(Node::File(_)) => Kind::File,
        }
    }

    fn read(&self, path: &Path) -> Attempt<Vec<u8>> {
        match self.nodes.get(path) {
            Some(Node::File(bytes)) => Ok(bytes.clone()),
            _ => panic!("read of {}, which is no file", path.display()),
        }
    }

    fn make_dir(&mut self, path: &Path, _mode: u32) -> Attempt<()> {
        self.word("mkdir", |m| {
            assert!(m.nodes.insert(path.into(), Node::Dir).is_none(), "{} was there", path.display());
            Ok(())
        })
    }

    fn write(&mut self, path: &Path, _mode: u32, bytes: &[u8]) -> Attempt<()> {
        self.word("write", |m| {
            assert!(m.nodes.insert(path.into(), Node::File(bytes.into())).is_none(), "{} was there", path.display());
            Ok(())
        })
    }

    fn rename(&mut self, from: &Path, to: &Path) -> Attempt<()> {
        self.word("rename", |m| {
            let node = m.nodes.remove(from).expect("what is renamed is there");
            assert!(m.nodes.insert(to.into(), node).is_none(), "{} was there", to.display());
            Ok(())
        })
    }

    fn remove_file(&mut self, path: &Path) -> Attempt<()> {
        self.word("unlink", |m| {
            assert!(matches!(m.nodes.remove(path), Some(Node::File(_))), "{} is no file", path.display());
            Ok(())
        })
    }

    fn remove_dir(&mut self, path: &Path) -> Attempt<bool> {
        let empty = !self.nodes.keys().any(|p| p != path && p.starts_with(path));
        self.word("rmdir", |m| {
            if empty {
                m.nodes.remove(path);
            }
            Ok(())
        })?;
        Ok(empty)
    }

    fn remove_tree(&mut self, path: &Path) -> Attempt<()> {
        self.word("rm -r", |m| {
            m.nodes.retain(|p, _| !p.starts_with(path));
            Ok(())
        })
    }

    fn real_emulators(&self, _rootfs: &Path) -> Vec<PathBuf> {
        Vec::new()
    }

    fn mounts_at(&self, space: Space, path: &Path) -> Attempt<usize> {
        Ok(self.mounts.get(&Self::key(space, path)).copied().unwrap_or(0))
    }

    fn make_private(&mut self, dir: &Path) -> Attempt<()> {
        self.word("mount --make-private", |m| m.mount(Space::Dpu, dir))
    }

    fn make_space(&mut self, handle: &Path) -> Attempt<()> {
        self.word("unshare", |m| m.mount(Space::Dpu, handle))
    }

    fn bind(&mut self, _from: &Path, to: &Path, _recursive: bool) -> Attempt<()> {
        self.word("mount --bind", |m| {
            assert!(m.mounts.contains_key(&Self::key(Space::Dpu, Path::new(plan::SPACE))), "no namespace yet");
            m.mount(Space::Offload, to)
        })
    }

    fn mount_qtfs(&mut self, command: &[String]) -> Attempt<Process> {
        let helper = self.new_process(plan::MOUNT_HELPER);
        let (at, made) = (PathBuf::from(&command[2]), helper.clone());
        self.word("mount -t qtfs", |m| {
            m.helpers.insert(at.clone(), made);
            m.mount(Space::Offload, &at)
        })?;
        Ok(helper)
    }

    fn unmount(&mut self, space: Space, path: &Path) -> Attempt<()> {
        self.word("umount", |m| {
            let key = Self::key(space, path);
            let count = m.mounts.get_mut(&key).expect("what is unmounted is mounted");
            *count -= 1;
            m.mounts.retain(|_, count| *count > 0);
            m.helpers.remove(path);
            Ok(())
        })
    }

    fn detach(&mut self, space: Space, path: &Path) -> Attempt<()> {
        self.unmount(space, path)
    }

    fn start_held(&mut self, program: &Program) -> Attempt<Process> {
        let process = self.new_process(program.name);
        let made = process.clone();
        self.word("spawn", |m| {
            m.held.push(made);
            Ok(())
        })?;
        Ok(process)
    }

    fn release(&mut self, process: &Process) -> Attempt<()> {
        self.word("release", |m| {
            m.held.retain(|p| p != process);
            m.started.push(process.name.clone());
            if m.stillborn != Some(process.name.as_str()) {
                m.running.push(process.clone());
            }
            // What they leave in their own directories.
            if process.name == "udsproxyd" {
                m.nodes.insert("/run/farside/uds.d".into(), Node::Dir);
                m.nodes.insert("/run/farside/uds.d/tree".into(), Node::Dir);
                m.nodes.insert("/run/farside/uds.sock".into(), Node::File(Vec::new()));
                let voucher = Path::new(plan::VOUCH_DIR).join(process.pid.to_string());
                m.nodes.insert(voucher, Node::File(Vec::new()));
            }
            if process.name == "libvirtd" {
                m.nodes.insert("/run/libvirt/qemu".into(), Node::Dir);
            }
            Ok(())
        })
    }

    fn is_alive(&self, process: &Process) -> bool {
        self.running.contains(process) || self.helpers.values().any(|helper| helper == process)
    }

    fn stop(&mut self, process: &Process, _patience: Duration) -> Attempt<()> {
        self.word("kill", |m| {
            m.running.retain(|p| p != process);
            Ok(())
        })
    }

    fn strangers(&self) -> Vec<Process> {
        self.running.iter().chain(self.helpers.values()).cloned().collect()
    }

    fn guests(&self) -> Vec<Guest> {
        self.guests.clone()
    }

    fn reach(&self, _addr: &str) -> Attempt<String> {
        Ok("192.168.10.11".into())
    }

    fn server_of(&self, socket: &Path) -> Option<i32> {
        if let Some((_, pid)) = self.usurper.as_ref().filter(|(path, _)| path == socket) {
            return Some(*pid);
        }
        self.running.iter().find(|p| plan::socket_of(&p.name) == Some(socket)).map(|p| p.pid)
    }

    fn mount_answers(&self, at: &Path) -> Attempt<()> {
        let answers = self.helpers.contains_key(at) && self.silent.as_deref() != Some(at);
        if answers { Ok(()) } else { Err(Trouble::new("Transport endpoint is not connected", "")) }
    }

    fn ask(&self, _rootfs: &Path, _command: &[&str]) -> Attempt<String> {
        Ok(String::new())
    }

    fn tail(&self, _log: &Path) -> String {
        "last words".into()
    }

    fn sleep(&self, _time: Duration) {}
}
