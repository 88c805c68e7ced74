//! Two machines on one kernel: network and mount namespaces with a veth pair between them, and a directory in memory.
//!
//! ```text
//!   near 192.168.10.11 ── eth0 ═══ eth0 ── 192.168.10.10 far
//!     WORK/near, and WORK/far empty           WORK/far: the echo server's sockets
//! ```
//!
//! All of it is below a process id namespace of its own, whose first process is this one: whatever ends it ends every
//! proxy, and leaves no mount, link or process behind.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{SigSet, Signal};

/// Told to ourselves: we are the first process of the namespaces.
pub(super) const INSIDE: &str = "--inside";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Near,
    Far,
}

impl Side {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Near => "near",
            Self::Far => "far",
        }
    }

    /// Of the network that links without encryption may use.
    pub(super) fn address(self) -> &'static str {
        match self {
            Self::Near => "192.168.10.11",
            Self::Far => "192.168.10.10",
        }
    }
}

/// Starts this program again as the first process of new namespaces; returns only with an error.
pub(super) fn enter() -> String {
    let exe = match std::env::current_exe() {
        Ok(exe) => exe,
        Err(e) => return format!("our own path: {e}"),
    };
    if !nix::unistd::geteuid().is_root() {
        return "compare makes two machines of namespaces: it needs root".into();
    }
    let error = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(exe)
        .args(std::env::args_os().skip(1))
        .arg(INSIDE)
        .exec();
    format!("unshare(1) of util-linux: {error}")
}

/// The first process of a namespace gets no signal that it does not ask for.
fn end_by_signal() {
    let mut signals = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().for_each(|s| signals.add(s));
    let _ = signals.thread_block();
    std::thread::spawn(move || {
        let number = signals.wait().map_or(0, |signal| signal as i32);
        std::process::exit(128 + number);
    });
}

pub(super) struct Machines {
    near: Child,
    far: Child,
    pub(super) work: PathBuf,
}

impl Machines {
    /// # Errors
    /// One line: what is missing, or is not allowed here.
    pub(super) fn up() -> Result<Self, String> {
        end_by_signal();
        let work = nix::unistd::mkdtemp(&std::env::temp_dir().join("proxy-bench.XXXXXX"));
        let work = work.map_err(|e| format!("a directory in {}: {e}", std::env::temp_dir().display()))?;
        in_memory(&work)?;
        for dir in ["near", "far", "log"] {
            fs::create_dir(work.join(dir)).map_err(|e| format!("{}/{dir}: {e}", work.display()))?;
        }
        // For counts of system calls; without it they are not measured, which says why.
        let tracefs = Path::new("/sys/kernel/tracing");
        if !tracefs.join("events").exists() {
            let _ = mount(Some("tracefs"), tracefs, Some("tracefs"), MsFlags::empty(), None::<&str>);
        }
        let machines = Self { near: pause()?, far: pause()?, work };
        machines.wire()?;
        Ok(machines)
    }

    fn wire(&self) -> Result<(), String> {
        let (near, far) = (self.near.id().to_string(), self.far.id().to_string());
        let link = ["link", "add", "eth0", "netns", &near, "type", "veth", "peer", "name", "eth0", "netns", &far];
        done(Command::new("ip").args(link))?;
        let sink = self.work.join("far").display().to_string();
        for side in [Side::Near, Side::Far] {
            let address = format!("{}/24", side.address());
            self.run(side, &["ip", "addr", "add", &address, "dev", "eth0"])?;
            self.run(side, &["ip", "link", "set", "eth0", "up"])?;
            self.run(side, &["ip", "link", "set", "lo", "up"])?;
            // Thousands of connections a second: their ports must be free again within the run.
            let ports = "echo 1 >/proc/sys/net/ipv4/tcp_tw_reuse; echo 10000 65535 >/proc/sys/net/ipv4/ip_local_port_range; \
                         echo 8192 >/proc/sys/net/core/somaxconn; echo 8192 >/proc/sys/net/ipv4/tcp_max_syn_backlog";
            self.run(side, &["sh", "-ec", ports])?;
        }
        self.run(Side::Near, &["mount", "-t", "tmpfs", "none", &sink])?;
        // sshd wants a directory of its own there.
        self.run(Side::Far, &["sh", "-ec", "mount -t tmpfs none /run; mkdir /run/sshd"])
    }

    /// The program, run on that machine.
    pub(super) fn command(&self, side: Side, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let pid = match side {
            Side::Near => self.near.id(),
            Side::Far => self.far.id(),
        };
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid.to_string(), "-m", "-n", "--"]).arg(program).stdin(Stdio::null());
        command
    }

    /// Runs it there to its end.
    ///
    /// # Errors
    /// One line with what it said.
    pub(super) fn run(&self, side: Side, words: &[&str]) -> Result<(), String> {
        done(self.command(side, words[0]).args(&words[1..])).map(drop)
    }

    /// Starts a program that stays; what it says goes to a file.
    ///
    /// # Errors
    /// One line.
    pub(super) fn start(&self, name: &str, command: &mut Command) -> Result<Service, String> {
        let log = self.work.join("log").join(name);
        let out = File::create(&log).map_err(|e| format!("{}: {e}", log.display()))?;
        let err = out.try_clone().map_err(|e| format!("{}: {e}", log.display()))?;
        let child = command.stdout(out).stderr(err).spawn().map_err(|e| format!("{name}: {e}"))?;
        Ok(Service { child, log })
    }

    /// 1 Gbit/s one way each, as the target says; `false`: as fast as it goes again.
    ///
    /// # Errors
    /// One line.
    pub(super) fn shape(&self, on: bool) -> Result<(), String> {
        for side in [Side::Near, Side::Far] {
            let tbf = [
                "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "1gbit", "burst", "64kb", "latency", "50ms",
            ];
            self.run(side, if on { &tbf } else { &["tc", "qdisc", "del", "dev", "eth0", "root"] })?;
        }
        Ok(())
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for machine in [&mut self.near, &mut self.far] {
            let _ = machine.kill();
            let _ = machine.wait();
        }
        let _ = umount2(&self.work, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.work);
    }
}

/// A program that stays until this is dropped.
pub(super) struct Service {
    child: Child,
    log: PathBuf,
}

impl Service {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// The end of what it said.
    pub(super) fn said(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().rev().take(6).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Its children are its own business, or their connections' end.
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, Signal::SIGTERM);
        for _ in 0..50 {
            if self.has_ended() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn in_memory(dir: &Path) -> Result<(), String> {
    mount(Some("none"), dir, Some("tmpfs"), MsFlags::empty(), None::<&str>)
        .map_err(|e| format!("tmpfs at {}: {e}", dir.display()))
}

/// A process that holds a machine's namespaces.
fn pause() -> Result<Child, String> {
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--", "sh", "-c", "echo ready; exec sleep infinity"]);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("unshare(1) of util-linux: {e}"))?;
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().expect("it is piped"));
    out.read_line(&mut line).map_err(|e| format!("a machine: {e}"))?;
    if line.trim() != "ready" {
        return Err("no namespaces may be made here".into());
    }
    Ok(child)
}

/// Runs it to its end and gives what it printed.
///
/// # Errors
/// One line: the command, and what it said.
pub(super) fn done(command: &mut Command) -> Result<String, String> {
    let shown = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{shown}: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_string());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " | ");
    Err(format!("{shown}: {}: {said}", output.status))
}
