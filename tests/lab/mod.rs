//! Two machines for a test: `tools/lab` under a name of the test's own, taken down when the `Lab` is dropped.
//!
//!   let lab = Lab::up();
//!   let node = lab.spawn(Host, &[bin("farside"), "host"]);
//!   assert_eq!(lab.dpu(&["rexec", "/bin/echo", "hi"]).ok(), "hi\n");
//!
//! Needs root and what `tools/setup` installs; a test that cannot have it fails and says so. Tests may run at the same
//! time: every lab has its own network, and its machines may use the same addresses and ports as another's.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part of the harness")]

#[path = "../common/built_shim.rs"]
mod built_shim;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use Machine::{Dpu, Host};

pub const HOST_ADDR: &str = "192.168.10.10";
pub const DPU_ADDR: &str = "192.168.10.11";
/// A command that takes longer hangs: the test fails there rather than by the runner's deadline.
const COMMAND_DEADLINE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    Host,
    Dpu,
}

impl Machine {
    fn word(self) -> &'static str {
        match self {
            Host => "host",
            Dpu => "dpu",
        }
    }
}

/// The path of one of this package's programs as cargo built it for the tests; the lab has it at the same path.
/// `FARSIDE_BIN_DIR` names another directory: an installed package, say.
pub fn bin(name: &str) -> &'static str {
    let built = match name {
        "farside" => env!("CARGO_BIN_EXE_farside"),
        "rexec" => env!("CARGO_BIN_EXE_rexec"),
        "rexec_server" => env!("CARGO_BIN_EXE_rexec_server"),
        "rexec-supervisor" => env!("CARGO_BIN_EXE_rexec-supervisor"),
        "udsproxyd" => env!("CARGO_BIN_EXE_udsproxyd"),
        "engine" => env!("CARGO_BIN_EXE_engine"),
        "mount_qtfs" => env!("CARGO_BIN_EXE_mount_qtfs"),
        other => panic!("no program '{other}'"),
    };
    match std::env::var("FARSIDE_BIN_DIR") {
        Ok(dir) => String::leak(format!("{dir}/{name}")),
        Err(_) => built,
    }
}

/// The shim: that of `FARSIDE_BIN_DIR` where it is set, else as it would be installed.
pub fn shim() -> PathBuf {
    match std::env::var_os("FARSIDE_BIN_DIR") {
        Some(dir) => Path::new(&dir).join("libudsproxy.so"),
        None => built_shim::path(),
    }
}

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What a command said, and how it ended.
#[derive(Debug)]
pub struct Said {
    pub command: String,
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Said {
    /// Standard output of a command that must succeed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{}", self.report());
        self.out()
    }

    /// Standard error of a command that must fail.
    #[track_caller]
    pub fn refused(self) -> String {
        assert!(!self.status.success(), "this was to be refused: {}", self.report());
        self.err()
    }

    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    fn report(&self) -> String {
        format!("{}: {}\nstdout: {}\nstderr: {}", self.command, self.status, self.out(), self.err())
    }
}

/// A command that runs until it is dropped; its output is in files.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Both outputs so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        eventually(
            &format!("'{text}' in the output"),
            Duration::from_secs(20),
            || self.said().contains(text),
            || self.said(),
        );
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait for a command of the lab")
    }

    /// The pid outside the lab, of the process that entered it: when that one ends, the command gets SIGKILL. Another
    /// signal is sent inside: `lab.host(&["pkill", "-TERM", "-x", name])`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The lab makes a command die with its caller; the caller is this child.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `holds`, or fails with what `shown` says.
#[track_caller]
pub fn eventually(what: &str, within: Duration, mut holds: impl FnMut() -> bool, shown: impl Fn() -> String) {
    let deadline = Instant::now() + within;
    while !holds() {
        assert!(Instant::now() < deadline, "after {within:?} still not: {what}\n{}", shown());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[derive(Debug)]
pub struct Lab {
    name: String,
    scratch: PathBuf,
    logs: AtomicU32,
}

impl Lab {
    /// Two machines that trust each other with everything.
    #[track_caller]
    pub fn up() -> Self {
        Self::up_with(&[])
    }

    /// Two machines that have never heard of each other.
    #[track_caller]
    pub fn strangers() -> Self {
        Self::start(&[])
    }

    /// With options of `lab up`, such as `["--rootfs-below", dir]`.
    #[track_caller]
    pub fn up_with(options: &[&str]) -> Self {
        let lab = Self::start(options);
        lab.introduce();
        lab
    }

    /// In the four commands of the README.
    #[track_caller]
    pub fn introduce(&self) {
        let [host, dpu] = [Host, Dpu].map(|machine| self.run(machine, &[bin("farside"), "key"]).ok());
        let trust = |machine, name, line: &str| {
            self.run(machine, &[bin("farside"), "trust", name, line.trim_end(), "--allow", "exec,uds,fs"]).ok();
        };
        trust(Host, "dpu", &dpu);
        trust(Dpu, "host", &host);
    }

    #[track_caller]
    fn start(options: &[&str]) -> Self {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let name = format!("test-{}-{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let scratch = std::env::temp_dir().join(format!("farside-{name}"));
        std::fs::create_dir_all(&scratch).expect("a scratch directory");
        let lab = Self { name, scratch, logs: AtomicU32::new(0) };
        lab.word(&[&["up"], options].concat()).ok();
        lab
    }

    #[track_caller]
    pub fn host(&self, command: &[&str]) -> Said {
        self.run(Host, command)
    }

    #[track_caller]
    pub fn dpu(&self, command: &[&str]) -> Said {
        self.run(Dpu, command)
    }

    #[track_caller]
    pub fn run(&self, machine: Machine, command: &[&str]) -> Said {
        self.word(&[&["exec", machine.word()], command].concat())
    }

    #[track_caller]
    pub fn run_with(&self, machine: Machine, env: &[(&str, &str)], command: &[&str]) -> Said {
        let assignments: Vec<String> = env.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let mut words = vec!["/usr/bin/env"];
        words.extend(assignments.iter().map(String::as_str));
        words.extend(command);
        self.run(machine, &words)
    }

    /// A script of sh, for what needs a pipe or a redirection.
    #[track_caller]
    pub fn sh(&self, machine: Machine, script: &str) -> Said {
        self.run(machine, &["/bin/sh", "-ec", script])
    }

    /// A command that stays; it ends when the result is dropped.
    #[track_caller]
    pub fn spawn(&self, machine: Machine, command: &[&str]) -> Running {
        self.spawn_with(machine, &[], command)
    }

    #[track_caller]
    pub fn spawn_with(&self, machine: Machine, env: &[(&str, &str)], command: &[&str]) -> Running {
        let log = self.scratch.join(format!("log-{}", self.logs.fetch_add(1, Ordering::Relaxed)));
        let out = std::fs::File::create(&log).expect("a log file");
        let err = out.try_clone().expect("a second handle of the log file");
        let child = self
            .command(&[&["exec", machine.word()], command].concat())
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .expect("run tools/lab");
        Running { child, log }
    }

    /// The command itself, for a test that wants to hold its pipes.
    pub fn raw(&self, machine: Machine, command: &[&str]) -> Command {
        self.command(&[&["exec", machine.word()], command].concat())
    }

    /// A machine's file, read from outside.
    #[track_caller]
    pub fn read(&self, machine: Machine, path: &str) -> String {
        let seen = self.path(machine, path);
        std::fs::read_to_string(&seen).unwrap_or_else(|e| panic!("{path} of the {}: {e}", machine.word()))
    }

    #[track_caller]
    pub fn write(&self, machine: Machine, path: &str, text: &str) {
        let seen = self.path(machine, path);
        std::fs::create_dir_all(seen.parent().expect("a path with a directory")).expect("a directory of the machine");
        std::fs::write(&seen, text).unwrap_or_else(|e| panic!("{path} of the {}: {e}", machine.word()));
    }

    /// Where a machine's path is seen from outside. Symlinks that are absolute lead out of the machine.
    #[track_caller]
    pub fn path(&self, machine: Machine, path: &str) -> PathBuf {
        self.word(&["path", machine.word(), path]).ok().trim_end().into()
    }

    #[track_caller]
    pub fn cut(&self, how: &str) {
        self.word(&["cut", how]).ok();
    }

    #[track_caller]
    pub fn shape(&self, how: &[&str]) {
        self.word(&[&["shape"], how].concat()).ok();
    }

    #[track_caller]
    pub fn restore(&self) {
        self.word(&["restore"]).ok();
    }

    #[track_caller]
    pub fn crash(&self, machine: Machine) {
        self.word(&["crash", machine.word()]).ok();
    }

    #[track_caller]
    pub fn boot(&self, machine: Machine) {
        self.word(&["boot", machine.word()]).ok();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(repository().join("tools/lab"));
        command.args(words).env("LAB_NAME", &self.name);
        // What programs say, and hand on, must not depend on who runs the tests.
        let locale =
            |name: &std::ffi::OsStr| name == "LANGUAGE" || name == "TZ" || name.as_encoded_bytes().starts_with(b"LC_");
        for (name, _) in std::env::vars_os().filter(|(name, _)| locale(name)) {
            command.env_remove(name);
        }
        command.env("LANG", "C.UTF-8");
        command
    }

    #[track_caller]
    fn word(&self, words: &[&str]) -> Said {
        let mut command = self.command(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("run tools/lab");
        finish(child, words.join(" "))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A panicking test must not panic again; what is left shows in the next run's `lab status`.
        let _ = self.command(&["down"]).stdin(Stdio::null()).status();
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

/// Reads both outputs while the command runs, so that neither pipe fills up, and ends it at the deadline.
#[track_caller]
fn finish(mut child: Child, command: String) -> Said {
    let out = drain(child.stdout.take());
    let err = drain(child.stderr.take());
    let deadline = Instant::now() + COMMAND_DEADLINE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait for a command of the lab") {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{command}: did not end within {COMMAND_DEADLINE:?}");
        }
        std::thread::sleep(Duration::from_millis(3));
    };
    let (stdout, stderr) = (out.recv().unwrap_or_default(), err.recv().unwrap_or_default());
    Said { command, status, stdout, stderr }
}

/// A process left behind may keep the pipe open after the command has ended: two seconds, then what has come.
struct Drained(std::sync::mpsc::Receiver<Vec<u8>>);

impl Drained {
    fn recv(self) -> Option<Vec<u8>> {
        let mut all = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            match self.0.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(part) => all.extend(part),
                Err(_) => return Some(all),
            }
        }
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> Drained {
    let (send, parts) = std::sync::mpsc::channel();
    let mut pipe = pipe.expect("the output is a pipe");
    std::thread::spawn(move || {
        let mut buffer = [0; 16 << 10];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            if send.send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    Drained(parts)
}
