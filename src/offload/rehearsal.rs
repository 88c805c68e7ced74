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
    words: u32,
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

    fn mount_qtfs(&mut self, command: &[String]) -> Attempt<()> {
        self.word("mount -t qtfs", |m| m.mount(Space::Offload, Path::new(&command[2])))
    }

    fn unmount(&mut self, space: Space, path: &Path) -> Attempt<()> {
        self.word("umount", |m| {
            let key = Self::key(space, path);
            let count = m.mounts.get_mut(&key).expect("what is unmounted is mounted");
            *count -= 1;
            m.mounts.retain(|_, count| *count > 0);
            Ok(())
        })
    }

    fn start_held(&mut self, program: &Program) -> Attempt<Process> {
        self.pids += 1;
        let process = Process { name: program.name.into(), pid: self.pids, start: 1, boot: "b".into() };
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
            }
            if process.name == "libvirtd" {
                m.nodes.insert("/run/libvirt/qemu".into(), Node::Dir);
            }
            Ok(())
        })
    }

    fn is_alive(&self, process: &Process) -> bool {
        self.running.contains(process)
    }

    fn stop(&mut self, process: &Process, _patience: Duration) -> Attempt<()> {
        self.word("kill", |m| {
            m.running.retain(|p| p != process);
            Ok(())
        })
    }

    fn strangers(&self) -> Vec<Process> {
        self.running.clone()
    }

    fn guests(&self) -> Vec<Guest> {
        self.guests.clone()
    }

    fn reach(&self, _addr: &str) -> Attempt<String> {
        Ok("192.168.10.11".into())
    }

    fn answers(&self, socket: &Path) -> bool {
        let who = if socket == Path::new(plan::LIBVIRT_SOCKET) { "libvirtd" } else { "" };
        self.running
            .iter()
            .any(|p| p.name == who || (who.is_empty() && socket.to_string_lossy().contains(&p.name[..3])))
    }

    fn ask(&self, _rootfs: &Path, _command: &[&str]) -> Attempt<String> {
        Ok(String::new())
    }

    fn tail(&self, _log: &Path) -> String {
        "last words".into()
    }

    fn sleep(&self, _time: Duration) {}
}

mod tests {
    use super::super::{down::down, journal::Journal, plan::tests as sample, up::up};
    use super::*;

    fn rehearse(machine: &mut Rehearsal) -> Attempt<()> {
        let steps = plan::steps(&sample::offload(), &sample::site()).unwrap();
        up(machine, Path::new("/another_rootfs"), &steps)
    }

    fn assert_as_before(machine: &Rehearsal, when: &str) {
        let fresh = Rehearsal::new();
        let left: Vec<_> = machine.nodes.iter().filter(|(path, node)| fresh.nodes.get(*path) != Some(node)).collect();
        let lost: Vec<_> = fresh.nodes.iter().filter(|(path, node)| machine.nodes.get(*path) != Some(node)).collect();
        assert!(left.is_empty() && lost.is_empty(), "{when}: left {left:?}, lost {lost:?}");
        assert!(machine.mounts.is_empty(), "{when}: mounts left {:?}", machine.mounts);
        assert!(machine.running.is_empty(), "{when}: running {:?}", machine.running);
        assert_eq!(machine.journal, None, "{when}: a journal is left");
    }

    #[test]
    fn up_then_down_leaves_nothing() {
        let mut machine = Rehearsal::new();
        rehearse(&mut machine).unwrap();
        assert_eq!(machine.started, ["udsproxyd", "virtlogd", "libvirtd"]);
        down(&mut machine, false).unwrap();
        assert_as_before(&machine, "after down");
    }

    #[test]
    fn a_crash_at_any_word_of_up_is_undone_by_down_and_by_the_next_up() {
        let mut whole = Rehearsal::new();
        rehearse(&mut whole).unwrap();
        for at in 0..whole.words() {
            for crash in [Crash::Before(at), Crash::After(at)] {
                let mut machine = Rehearsal::new();
                machine.crash = Some(crash);
                // A crash on the very last word may come after all was done.
                let _ = rehearse(&mut machine);
                machine.power_back();
                down(&mut machine, false).unwrap_or_else(|e| panic!("{crash:?}: {e}"));
                assert_as_before(&machine, &format!("{crash:?}, down"));

                machine.words = 0;
                machine.crash = Some(crash);
                let _ = rehearse(&mut machine);
                machine.power_back();
                rehearse(&mut machine).unwrap_or_else(|e| panic!("{crash:?}: {e}"));
                down(&mut machine, false).unwrap();
                assert_as_before(&machine, &format!("{crash:?}, up and down"));
            }
        }
    }

    #[test]
    fn a_crash_at_any_word_of_down_is_finished_by_the_next_down() {
        let mut whole = Rehearsal::new();
        rehearse(&mut whole).unwrap();
        let before = whole.words();
        down(&mut whole, false).unwrap();
        for at in before..whole.words() {
            for crash in [Crash::Before(at), Crash::After(at)] {
                let mut machine = Rehearsal::new();
                rehearse(&mut machine).unwrap();
                machine.crash = Some(crash);
                let _ = down(&mut machine, false);
                machine.power_back();
                down(&mut machine, false).unwrap_or_else(|e| panic!("{crash:?}: {e}"));
                assert_as_before(&machine, &format!("{crash:?}"));
            }
        }
    }

    #[test]
    fn a_daemon_that_does_not_come_up_is_named_with_its_last_words_and_all_is_undone() {
        let mut machine = Rehearsal::new();
        machine.stillborn = Some("libvirtd");
        let said = rehearse(&mut machine).unwrap_err().to_string();
        assert!(said.contains("libvirtd") && said.contains("last words"), "{said}");
        assert_as_before(&machine, "after the failure");
    }

    #[test]
    fn up_twice_says_so_and_starts_again_only_what_died() {
        let mut machine = Rehearsal::new();
        rehearse(&mut machine).unwrap();
        let words = machine.words();
        rehearse(&mut machine).unwrap();
        assert_eq!((machine.words(), machine.said.last().unwrap().as_str()), (words, "already up"));

        machine.running.retain(|p| p.name != "libvirtd");
        machine.started.clear();
        rehearse(&mut machine).unwrap();
        assert_eq!(machine.started, ["libvirtd"]);
        let journal = Journal::parse(machine.journal.as_ref().unwrap()).unwrap();
        assert!(journal.complete);
        assert_eq!(journal.processes().filter(|p| p.name == "libvirtd").count(), 1);
        down(&mut machine, false).unwrap();
        assert_as_before(&machine, "after a restart");
    }

    #[test]
    fn after_a_reboot_up_begins_anew_and_down_clears_the_disk() {
        let mut machine = Rehearsal::new();
        rehearse(&mut machine).unwrap();
        machine.reboot();
        machine.started.clear();
        rehearse(&mut machine).unwrap();
        assert_eq!(machine.started, ["udsproxyd", "virtlogd", "libvirtd"]);
        machine.reboot();
        down(&mut machine, false).unwrap();
        assert_as_before(&machine, "after a reboot and down");
    }

    #[test]
    fn running_guests_hold_down_back_by_name_unless_forced() {
        let mut machine = Rehearsal::new();
        rehearse(&mut machine).unwrap();
        let process = Process { name: "rexec".into(), pid: 99, start: 1, boot: "b".into() };
        machine.running.push(process.clone());
        machine.guests.push(Guest { name: "vm1".into(), process });
        let said = down(&mut machine, false).unwrap_err().to_string();
        assert!(said.contains("vm1") && said.contains("--force"), "{said}");
        down(&mut machine, true).unwrap();
        assert_as_before(&machine, "after down --force");
    }

    #[test]
    fn an_emulator_of_other_content_is_put_back() {
        let mut machine = Rehearsal::new();
        let path = Path::new("/another_rootfs/usr/bin/qemu-system-x86_64");
        rehearse(&mut machine).unwrap();
        assert_ne!(machine.read(path).unwrap(), b"a program");
        down(&mut machine, false).unwrap();
        assert_eq!(machine.read(path).unwrap(), b"a program");
    }
}
