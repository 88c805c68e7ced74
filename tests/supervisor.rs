//! What is in the memory of the processes that run commands, and what each of them can reach.

#[path = "common/skip.rs"]
mod skip;

mod lab;

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use farside::sys::caps;
use farside::sys::inheritance::{Inheritance, Limit};
use farside::sys::spawn::{Identity, Order, Plan, Program, Report, Supervisor};
use lab::{DPU_ADDR, Dpu, HOST_ADDR, Host, Lab, Running, bin, eventually, repository};

/// As the kernel cuts it.
const COMM: &str = "rexec-superviso";
/// A supervisor's own memory: the stack, libc's data, and what the linker has written to.
/// A dev build is linked with std, whose tables for unwinding it never uses; a release build has 90 KiB.
const PRIVATE_KIB_MAX: u64 = if cfg!(debug_assertions) { 450 } else { 200 };

// ---- a lab: the real daemons, with a real key --------------------------------------------------------------------

/// A line of `supervisor/memory.py`.
#[derive(Debug)]
struct Memory {
    private_kib: u64,
    found: String,
}

fn memory_of(lab: &Lab, name: &str) -> Vec<Memory> {
    let script = repository().join("tests/supervisor/memory.py");
    let said = lab.host(&["/usr/bin/python3", script.to_str().unwrap(), "/etc/farside/host.key", name]).ok();
    let lines = said.lines().map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        Memory { private_kib: words[2].parse().expect("a number"), found: words[3].into() }
    });
    lines.collect()
}

#[track_caller]
fn serve(lab: &Lab) -> Running {
    let server = lab.spawn_with(Host, &[("CMD_NET_ADDR", "tcp://0.0.0.0:7777")], &[bin("rexec_server")]);
    server.wait_for("serving on");
    server
}

fn rexec(lab: &Lab, words: &[&str]) -> Running {
    let addr = format!("tcp://{HOST_ADDR}:7777");
    lab.spawn_with(Dpu, &[("CMD_NET_ADDR", &addr)], &[&[bin("rexec")], words].concat())
}

#[test]
fn no_supervisor_has_the_machines_key_and_each_is_small() {
    const COMMANDS: usize = 20;
    let lab = Lab::up();
    let server = serve(&lab);
    let _commands: Vec<Running> = (0..COMMANDS).map(|_| rexec(&lab, &["sleep", "70100"])).collect();
    let count = || memory_of(&lab, COMM).len();
    eventually("a supervisor for each", Duration::from_secs(20), || count() == COMMANDS, || server.said());
    let begun = || lab.host(&["pgrep", "-fxc", "sleep 70100"]).out().trim() == COMMANDS.to_string();
    eventually("every command runs", Duration::from_secs(20), begun, || server.said());
    for one in memory_of(&lab, COMM) {
        assert!(one.found == "-" && one.private_kib <= PRIVATE_KIB_MAX, "{one:?}");
    }
    // The same search finds it where it is.
    let daemon = memory_of(&lab, "rexec_server");
    assert!(daemon.len() == 1 && daemon[0].found.contains("seed"), "{daemon:?}");
}

#[test]
fn a_daemon_keeps_its_key_in_memory_that_is_locked_and_in_no_core() {
    let lab = Lab::up();
    let _server = serve(&lab);
    let proxy = lab.spawn(Host, &[bin("udsproxyd"), "1", HOST_ADDR, "7776", DPU_ADDR, "7776"]);
    proxy.wait_for("serving on");
    let files = lab
        .spawn(Host, &[bin("engine"), "1", "1", HOST_ADDR, "7775", DPU_ADDR, "7775", "--socket", "/run/engine.sock"]);
    files.wait_for("serving on");
    for name in ["rexec_server", "udsproxyd", "engine"] {
        let found = memory_of(&lab, name).pop().expect(name).found;
        let is_kept =
            |area: &str| ["seed", "lo", "dd", "wf"].iter().all(|word| area.split([':', ',']).any(|w| w == *word));
        assert!(found.split(';').any(is_kept), "{name}: {found}");
    }
}

const NOBODY: [&str; 6] = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];

/// Files of /proc/PID belong to root when the process may not be looked into by its own user, proc_pid(5).
#[test]
fn a_daemons_own_user_may_look_into_neither_the_daemon_nor_its_supervisors() {
    let lab = Lab::up();
    let own = [("FARSIDE_CONFIG_DIR", "/tmp/nobody"), ("CMD_NET_ADDR", "tcp://0.0.0.0:7777")];
    let as_nobody = |words: &[&str]| lab.run_with(Host, &own, &[&NOBODY[..], words].concat()).ok();
    let caller = lab.dpu(&[bin("farside"), "key"]).ok();
    as_nobody(&[bin("farside"), "trust", "dpu", caller.trim_end(), "--allow", "exec"]);
    let key = as_nobody(&[bin("farside"), "key"]);
    lab.dpu(&[bin("farside"), "trust", "nobody", key.trim_end()]).ok();
    let server = lab.spawn_with(Host, &own, &[&NOBODY[..], &[bin("rexec_server")]].concat());
    server.wait_for("serving on");
    lab.write(Dpu, "/etc/farside/node.toml", "[local]\nusers = ['nobody']\n");
    let vouching = lab.spawn_with(Dpu, &[("CMD_NET_ADDR", "tcp://127.0.0.1:7999")], &[bin("rexec_server")]);
    vouching.wait_for("serving on");
    // The command's parent is its supervisor, and its parent the server.
    let script = "id -u; s=$PPID; d=$(awk '{print $4}' /proc/$s/stat); \
                  for p in $s $d; do stat -c %u /proc/$p/environ; head -c 1 /proc/$p/mem 2>&1; head -c 1 /proc/$p/environ 2>&1; done";
    let ask = [&NOBODY[..], &[bin("rexec"), "sh", "-c", script]].concat();
    let said = lab.run_with(Dpu, &[("CMD_NET_ADDR", &format!("tcp://{HOST_ADDR}:7777"))], &ask).out();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!((lines.len(), lines[0]), (7, "65534"), "{said}");
    for of_process in lines[1..].chunks(3) {
        let refused = of_process[1..].iter().all(|line| line.contains("Permission denied"));
        assert!(of_process[0] == "0" && refused, "{said}");
    }
}

// ---- a process of ours that starts commands as a daemon does -----------------------------------------------------

fn program() -> Program {
    Program::open(Path::new(bin("rexec-supervisor"))).expect("the supervisor's program")
}

fn plan(words: &[&str], fds: Vec<(OwnedFd, i32)>) -> Plan {
    let string = |text: &str| std::ffi::CString::new(text).unwrap();
    Plan {
        programs: vec![string(words[0])],
        only: None,
        argv: words.iter().map(|word| string(word)).collect(),
        env: vec![],
        own_pid: None,
        cwd: c"/".into(),
        umask: 0o22,
        inheritance: Inheritance::default(),
        identity: None,
        no_new_privs: false,
        fds,
    }
}

/// The command's pid, once it runs.
#[track_caller]
fn pid_of(supervisor: &Supervisor) -> i32 {
    match supervisor.report() {
        Some(Report::Started { pid, .. }) => pid,
        other => panic!("not started: {other:?}"),
    }
}

fn parent_of(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)).and_then(|n| n.parse().ok()).expect("a pid")
}

fn end(supervisor: Supervisor) {
    supervisor.order(Order::KillAll);
    while supervisor.report().is_some() {}
    supervisor.wait();
}

/// A directory that goes with its test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("supervisor-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn private_kib(pid: i32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("memory of a process");
    let private =
        rollup.lines().filter(|line| line.starts_with("Private_Clean:") || line.starts_with("Private_Dirty:"));
    private.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn a_supervisor_is_as_small_beside_a_daemon_with_much_memory_and_a_long_command_line() {
    let mut much = vec![0_u8; 256 << 20];
    much.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    let long = "x".repeat(100_000);
    let words: Vec<&str> = ["/bin/sh", "-c", "sleep 70101; :"].into_iter().chain([&*long; 10]).collect();
    let program = program();
    let all: Vec<Supervisor> = (0..8).map(|_| Supervisor::start(&program, &plan(&words, vec![])).unwrap()).collect();
    for supervisor in &all {
        // All of them before the first ends: the last one would have the program's pages for itself. And each when it has
        // let go of its plan, which it does after it has told that the command runs.
        let pid = parent_of(pid_of(supervisor));
        let kib = || private_kib(pid);
        eventually("it is small", Duration::from_secs(5), || kib() <= PRIVATE_KIB_MAX, || format!("{} KiB", kib()));
    }
    all.into_iter().for_each(end);
    assert_eq!(much.iter().map(|byte| u64::from(*byte)).sum::<u64>(), 256 << 8);
}

fn fds_of(pid: i32) -> Vec<(i32, String)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("fds of a process").flatten();
    let mut all: Vec<(i32, String)> = entries
        .map(|fd| {
            let to = fs::read_link(fd.path()).unwrap_or_default();
            (fd.file_name().to_str().unwrap().parse().unwrap(), to.to_str().unwrap().to_owned())
        })
        .collect();
    all.sort();
    all
}

#[test]
fn neither_the_supervisor_nor_the_command_has_an_fd_of_the_daemons() {
    let null = || -> OwnedFd { fs::File::open("/dev/null").unwrap().into() };
    let held = null();
    // One that exec does not close.
    nix::fcntl::fcntl(&held, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let _others: Vec<_> = (0..20).map(|_| std::io::pipe().unwrap()).collect();
    let high = null();
    let fds = vec![(high, 300), (null(), 1), (null(), 0)];
    let supervisor = Supervisor::start(&program(), &plan(&["/bin/sleep", "70102"], fds)).unwrap();
    let pid = pid_of(&supervisor);
    let shown = || format!("fd {} is the daemon's; the command has {:?}", held.as_raw_fd(), fds_of(pid));
    let theirs = || fds_of(pid).into_iter().map(|(number, _)| number).collect::<Vec<_>>();
    // A program has its libraries open for a moment.
    eventually("the fds that were handed over", Duration::from_secs(5), || theirs() == [0, 1, 300], shown);
    let ours = || fds_of(parent_of(pid));
    let settled = || ours().iter().map(|(_, to)| to.split(':').next().unwrap().to_owned()).collect::<Vec<_>>();
    eventually(
        "a socket and a signalfd",
        Duration::from_secs(5),
        || settled() == ["socket", "anon_inode"],
        || format!("{:?}", ours()),
    );
    end(supervisor);
}

#[test]
fn a_program_that_is_replaced_serves_on_whoever_has_opened_it() {
    let scratch = Scratch::new("replaced");
    let path = scratch.0.join("rexec-supervisor");
    fs::copy(bin("rexec-supervisor"), &path).unwrap();
    let opened = Program::open(&path).unwrap();
    let next = scratch.0.join("next");
    fs::write(&next, "not a program").unwrap();
    fs::set_permissions(&next, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::rename(&next, &path).unwrap();
    let supervisor = Supervisor::start(&opened, &plan(&["/bin/true"], vec![])).unwrap();
    pid_of(&supervisor);
    assert!(matches!(supervisor.report(), Some(Report::Ended { wait_status: 0, left: false })));
    supervisor.wait();
    // Whoever opens the new one hears what the kernel says of it.
    let wrong = Supervisor::start(&Program::open(&path).unwrap(), &plan(&["/bin/true"], vec![])).unwrap_err();
    assert_eq!((wrong.op, wrong.errno), ("execve", farside::errno::Errno::ENOEXEC));
    assert!(wrong.to_string().contains("rexec-supervisor"), "{wrong}");
}

#[test]
fn a_server_without_its_supervisor_does_not_start_and_says_so_in_one_line() {
    let scratch = Scratch::new("missing");
    for name in ["rexec_server", "farside"] {
        let server = scratch.0.join(name);
        fs::copy(bin(name), &server).unwrap();
        let mut command = Command::new(&server);
        command.env("CMD_NET_ADDR", "tcp://127.0.0.1:0").env("FARSIDE_CONFIG_DIR", scratch.0.join("etc"));
        if name == "farside" {
            command.args(["host", "--listen", "127.0.0.1:0"]);
        }
        let out = command.args(["--log", "error"]).env("FARSIDE_RUN_DIR", &scratch.0).output().unwrap();
        let said = String::from_utf8(out.stderr).unwrap();
        let wanted = scratch.0.join("rexec-supervisor");
        let told = said.contains(wanted.to_str().unwrap()) && said.contains("install it") && said.contains("ENOENT");
        assert!(out.status.code() == Some(1) && said.lines().count() == 1 && told, "{said}");
    }
}

#[test]
fn whoever_starts_it_by_hand_is_told_what_it_is() {
    let out = Command::new(bin("rexec-supervisor")).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).starts_with("rexec-supervisor: is started by rexec_server"));
}

#[test]
fn a_user_with_too_many_processes_may_still_be_given_one_more() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        skip::skip("needs root to become somebody else");
        return;
    }
    let none = Limit { soft: 0, hard: 0 };
    let nproc = nix::sys::resource::Resource::RLIMIT_NPROC as u32;
    let limits = vec![(u8::try_from(nproc).unwrap(), none)];
    let capabilities = caps::Sets { inheritable: 0, permitted: 0, bounding: 0, ambient: 0 };
    let plan = Plan {
        inheritance: Inheritance { limits, ..Inheritance::default() },
        identity: Some(Identity { uid: 65_534, gid: 65_534, groups: Vec::new(), capabilities }),
        ..plan(&["/bin/true"], vec![])
    };
    let supervisor = Supervisor::start(&program(), &plan).unwrap();
    let (started, ended) = (supervisor.report(), supervisor.report());
    assert!(matches!(started, Some(Report::Started { no_priority: false, .. })), "{started:?}");
    assert!(matches!(ended, Some(Report::Ended { wait_status: 0, .. })), "{ended:?}");
    supervisor.wait();
}
