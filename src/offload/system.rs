//! The steps of `machine`, taken on this machine.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;

use super::ask::{self, Enter, finish};
use super::journal::{Process, Space};
use super::machine::{Guest, Kind, Machine, Program};
use super::plan::{MOUNT_HELPER, SPACE};
use super::trouble::{Attempt, Trouble};
use super::wrapper;
use crate::errno::Errno;
use crate::limits;
use crate::sys::{mountns, pidfd::PidFd};

/// On the disk, not in /run: mount points that `up` made outlive a reboot, and `down` takes them away after it too.
pub const STATE_DIR: &str = "/var/lib/farside";
const JOURNAL: &str = "journal.toml";
const GUESTS: &str = "/run/libvirt/qemu";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const REACH: Duration = Duration::from_secs(5);

pub struct System {
    state_dir: PathBuf,
    /// Held programs, by pid: their standard input is the gate.
    held: HashMap<i32, Child>,
    /// One `up` or `down` at a time; the lock is on the directory.
    lock: Option<Flock<File>>,
}

impl System {
    /// For a change: nobody else changes the offload meanwhile.
    pub fn lock(state_dir: &Path) -> Attempt<Self> {
        std::fs::create_dir_all(state_dir).map_err(|e| Trouble::io("mkdir", state_dir, &e))?;
        let dir = File::open(state_dir).map_err(|e| Trouble::io("open", state_dir, &e))?;
        let lock = Flock::lock(dir, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => Trouble::new("another `farside dpu` is at work", "wait for it"),
            errno => Trouble::new(format!("flock {}: {}", state_dir.display(), errno.desc()), ""),
        })?;
        let mut system = Self::look(state_dir);
        system.lock = Some(lock);
        Ok(system)
    }

    /// For reading alone.
    pub fn look(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.into(), held: HashMap::new(), lock: None }
    }

    fn journal(&self) -> PathBuf {
        self.state_dir.join(JOURNAL)
    }

    fn in_space<T>(&self, space: Space, act: impl FnOnce() -> T) -> Attempt<T> {
        match space {
            Space::Dpu => Ok(act()),
            Space::Offload => Ok(mountns::inside(Path::new(SPACE), act)?),
        }
    }
}

impl Drop for System {
    fn drop(&mut self) {
        // With a journal in it, it stays.
        if self.lock.is_some() {
            let _ = std::fs::remove_dir(&self.state_dir);
        }
    }
}

fn io<'a>(op: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> Trouble + 'a {
    move |e| Trouble::io(op, path, &e)
}

/// Field 22 of /proc/PID/stat; none if it has ended, zombies included.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    if state == "Z" || state == "X" { None } else { fields.nth(18)?.parse().ok() }
}

fn process(name: &str, pid: i32) -> Option<Process> {
    let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_string();
    Some(Process { name: name.into(), pid, start: start_time(pid)?, boot })
}

impl Machine for System {
    fn say(&mut self, line: &str) {
        println!("dpu: {line}");
    }

    fn now(&self) -> u64 {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
    }

    fn load(&self) -> Attempt<Option<String>> {
        let path = self.journal();
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Trouble::io("read", &path, &e)),
        }
    }

    fn save(&mut self, text: &str) -> Attempt<()> {
        let (path, new) = (self.journal(), self.state_dir.join("journal.new"));
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            File::open(&self.state_dir)?.sync_all()
        };
        write().map_err(io("write", &path))
    }

    fn forget(&mut self) -> Attempt<()> {
        let path = self.journal();
        std::fs::remove_file(&path).map_err(io("remove", &path))
    }

    fn kind(&self, path: &Path) -> Kind {
        match std::fs::symlink_metadata(path) {
            Err(_) => Kind::Missing,
            Ok(m) if m.is_dir() => Kind::Dir,
            Ok(m) if m.is_file() => Kind::File,
            Ok(m) if m.is_symlink() => Kind::Symlink,
            Ok(_) => Kind::Other,
        }
    }

    fn read(&self, path: &Path) -> Attempt<Vec<u8>> {
        std::fs::read(path).map_err(io("read", path))
    }

    fn make_dir(&mut self, path: &Path, mode: u32) -> Attempt<()> {
        DirBuilder::new().mode(mode).create(path).map_err(io("mkdir", path))
    }

    fn write(&mut self, path: &Path, mode: u32, bytes: &[u8]) -> Attempt<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path).map_err(io("create", path))?;
        file.write_all(bytes).map_err(io("write", path))?;
        file.set_permissions(std::fs::Permissions::from_mode(mode)).map_err(io("chmod", path))
    }

    fn rename(&mut self, from: &Path, to: &Path) -> Attempt<()> {
        std::fs::rename(from, to).map_err(io("rename", from))
    }

    fn remove_file(&mut self, path: &Path) -> Attempt<()> {
        std::fs::remove_file(path).map_err(io("remove", path))
    }

    fn remove_dir(&mut self, path: &Path) -> Attempt<bool> {
        match std::fs::remove_dir(path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(false),
            Err(e) => Err(Trouble::io("rmdir", path, &e)),
        }
    }

    fn remove_tree(&mut self, path: &Path) -> Attempt<()> {
        std::fs::remove_dir_all(path).map_err(io("remove", path))
    }

    fn real_emulators(&self, rootfs: &Path) -> Vec<PathBuf> {
        wrapper::real_emulators(rootfs)
    }

    fn mounts_at(&self, space: Space, path: &Path) -> Attempt<usize> {
        if space == Space::Offload && !mountns::is_handle(Path::new(SPACE)) {
            return Ok(0);
        }
        let points = self.in_space(space, mountns::mount_points)??;
        Ok(points.iter().filter(|p| *p == path).count())
    }

    fn make_private(&mut self, dir: &Path) -> Attempt<()> {
        Ok(mountns::make_private(dir)?)
    }

    fn make_space(&mut self, handle: &Path) -> Attempt<()> {
        Ok(mountns::create(handle)?)
    }

    fn bind(&mut self, from: &Path, to: &Path, recursive: bool) -> Attempt<()> {
        Ok(self.in_space(Space::Offload, || mountns::bind(from, to, recursive))??)
    }

    fn mount_qtfs(&mut self, command: &[String]) -> Attempt<Process> {
        let mut child = Command::new(&command[0]);
        child.args(&command[1..]);
        let said = self.in_space(Space::Offload, || finish(child, limits::OFFLOAD_ASK))?;
        let failed = |why: String, advice| Trouble::new(format!("{}: {why}", command.join(" ")), advice);
        said.map_err(|why| failed(why, "is it exported by the host?"))?;
        // It has left a process behind, with the same words.
        let helper = self.strangers().into_iter().find(|p| ask::has_command_line(p.pid, command));
        let helper = helper.map(|process| Process { name: MOUNT_HELPER.into(), ..process });
        helper.ok_or_else(|| failed("it has ended at once".into(), "its last line is in the system's log"))
    }

    fn detach(&mut self, space: Space, path: &Path) -> Attempt<()> {
        Ok(self.in_space(space, || mountns::detach(path))??)
    }

    fn unmount(&mut self, space: Space, path: &Path) -> Attempt<()> {
        let unmount_tree = || {
            let points = mountns::mount_points()?;
            let below = points.iter().filter(|p| p.starts_with(path) && *p != path);
            below.rev().try_for_each(|p| mountns::unmount(p))?;
            mountns::unmount(path)
        };
        let deadline = Instant::now() + limits::OFFLOAD_STOP;
        loop {
            match self.in_space(space, unmount_tree)? {
                // What used it has just ended, or is about to.
                Err(e) if e.errno == Errno::EBUSY && Instant::now() < deadline => self.sleep(limits::OFFLOAD_POLL),
                Err(e) if e.errno == Errno::EBUSY => {
                    return Err(Trouble::new(e.to_string(), "end what uses it (fuser -m), then run this again"));
                }
                result => return Ok(result?),
            }
        }
    }

    fn start_held(&mut self, program: &Program) -> Attempt<Process> {
        let log = OpenOptions::new().append(true).create(true).open(&program.log).map_err(io("open", &program.log))?;
        let errors = log.try_clone().map_err(io("open", &program.log))?;
        let enter = Enter { root: program.root.as_deref(), held: true, env: &program.env };
        let mut command = enter.command(&program.command)?;
        command.stdin(Stdio::piped()).stdout(log).stderr(errors);
        let child = command.spawn().map_err(|e| Trouble::io("start", Path::new(program.name), &e))?;
        let pid = i32::try_from(child.id()).map_err(|_| Trouble::new("a pid beyond the kernel's own bound", ""))?;
        let lost =
            || Trouble::new(format!("{} ended before it began", program.name), program.log.display().to_string());
        let known = process(program.name, pid).ok_or_else(lost)?;
        self.held.insert(pid, child);
        Ok(known)
    }

    fn release(&mut self, process: &Process) -> Attempt<()> {
        let gate = self.held.get_mut(&process.pid).and_then(|child| child.stdin.take());
        let mut gate = gate.ok_or_else(|| Trouble::new(format!("{} is not held", process.name), ""))?;
        gate.write_all(b"g").map_err(|e| Trouble::io("start", Path::new(&process.name), &e))
    }

    /// A process that got the same pid later has another start time.
    fn is_alive(&self, known: &Process) -> bool {
        process(&known.name, known.pid).as_ref() == Some(known)
    }

    fn stop(&mut self, known: &Process, patience: Duration) -> Attempt<()> {
        let held = match PidFd::open(known.pid) {
            Ok(held) => held,
            Err(e) if e.errno == Errno::ESRCH => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        // Compared after it is held: from here on the number cannot become another's.
        if !self.is_alive(known) {
            return Ok(());
        }
        for (signal, patience) in [(Signal::SIGTERM, patience), (Signal::SIGKILL, limits::OFFLOAD_STOP)] {
            match held.signal(signal) {
                Err(e) if e.errno != Errno::ESRCH => return Err(e.into()),
                _ => {}
            }
            if held.ends_within(patience)? {
                return Ok(());
            }
            self.say(&format!("{} (pid {}) does not end on {signal}", known.name, known.pid));
        }
        Err(Trouble::new(format!("{} (pid {}) does not end", known.name, known.pid), "look at what it waits for"))
    }

    fn strangers(&self) -> Vec<Process> {
        let handle = Path::new(SPACE);
        let Ok(space) = std::fs::metadata(handle) else { return Vec::new() };
        if !mountns::is_handle(handle) {
            return Vec::new();
        }
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        let inside = entries.flatten().filter(|e| {
            std::fs::metadata(e.path().join("ns/mnt")).is_ok_and(|m| (m.dev(), m.ino()) == (space.dev(), space.ino()))
        });
        let named = inside.filter_map(|e| {
            let pid = e.file_name().to_str()?.parse::<i32>().ok()?;
            let name = std::fs::read_to_string(e.path().join("comm")).ok()?;
            process(name.trim(), pid)
        });
        named.collect()
    }

    /// libvirtd keeps NAME.pid with the stand-in's pid; the name on its command line says that it is still that one.
    fn guests(&self) -> Vec<Guest> {
        let Ok(entries) = std::fs::read_dir(GUESTS) else { return Vec::new() };
        let alive = entries.flatten().filter_map(|entry| {
            let file = entry.file_name().into_string().ok()?;
            let name = file.strip_suffix(".pid")?;
            let pid = std::fs::read_to_string(entry.path()).ok()?.trim().parse::<i32>().ok()?;
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let says = format!("guest={name}");
            let its = line.split(|&b| b == 0 || b == b',').any(|word| word == says.as_bytes());
            its.then(|| process(name, pid)).flatten().map(|process| Guest { name: name.into(), process })
        });
        alive.collect()
    }

    fn reach(&self, addr: &str) -> Attempt<String> {
        use std::net::{TcpStream, ToSocketAddrs};
        let no = |e: std::io::Error| {
            Trouble::new(
                format!("the host's node at {addr}: {e}"),
                "start `farside host` there, or correct peer in node.toml",
            )
        };
        let mut addrs = addr.to_socket_addrs().map_err(no)?;
        let first = addrs
            .next()
            .ok_or_else(|| Trouble::new(format!("'{addr}' names no address"), "correct peer in node.toml"))?;
        let stream = TcpStream::connect_timeout(&first, REACH).map_err(no)?;
        Ok(stream.local_addr().map_err(no)?.ip().to_string())
    }

    fn server_of(&self, socket: &Path) -> Option<i32> {
        ask::server_of(socket)
    }

    fn mount_answers(&self, at: &Path) -> Attempt<()> {
        ask::mount_answers(at)
    }

    fn ask(&self, rootfs: &Path, words: &[&str]) -> Attempt<String> {
        let said = finish(Enter { root: Some(rootfs), held: false, env: &[] }.command(words)?, limits::OFFLOAD_ASK);
        said.map_err(|said| Trouble::new(format!("{}: {said}", words.join(" ")), ""))
    }

    fn tail(&self, log: &Path) -> String {
        let text = std::fs::read(log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(limits::LOG_TAIL_LINES)..].join("\n")
    }

    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
}
