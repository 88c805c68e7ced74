//! The steps of `farside dpu up`, from the configuration: pure.
//!
//!   check ─▶ namespace ─▶ local trees ─▶ the host's trees ─▶ addresses, wrappers ─▶ uds daemon ─▶ virtlogd ─▶ libvirtd
//!
//! Mounts live in the offload's own mount namespace, files in the file system that everyone sees; a mount point below a
//! local tree is therefore made in that tree itself (`origin`).

use std::path::{Component, Path, PathBuf};

use super::machine::Program;
use super::trouble::{Attempt, Trouble};
use super::wrapper;
use crate::config::Offload;

/// The namespace's handle, and what is shown inside the offload in place of the DPU's own.
pub const RUN_DIR: &str = "/run/farside";
pub const SPACE: &str = "/run/farside/mnt-ns";
pub const LOG_DIR: &str = "/var/log/farside";
pub const LIBVIRT_SOCKET: &str = "/run/libvirt/libvirt-sock";
/// Where the shim asks: `farside_contract::SOCKET_PATH`.
const UDS_SOCKET: &str = "/run/farside/uds.sock";
/// Where udsproxyd has a socket named by its pid, as other daemons of farside have: `vouch::dir()`.
pub const VOUCH_DIR: &str = "/run/farside-vouch";
const VIRTLOGD_SOCKET: &str = "/run/libvirt/virtlogd-sock";
/// Succeeds inside the offload when libvirtd serves.
pub const LIBVIRT_ASK: [&str; 4] = ["/usr/bin/virsh", "-c", "qemu:///system", "uri"];
/// What serves a mount, by the name of its process.
pub const MOUNT_HELPER: &str = "mount.qtfs";
/// Its path inside the rootfs.
const SHIM: &str = "/usr/lib64/libudsproxy.so";
const REXEC: &str = "/usr/bin/rexec";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Bind mounts of the DPU's own trees: from, below the rootfs, with the mounts in it. /sys comes without the control
/// groups: libvirtd would put its stand-ins into them, which steers nothing on the host.
const LOCAL_TREES: [(&str, &str, bool); 9] = [
    ("/run", "run", false),
    ("/var/lib", "var/lib", false),
    ("/var/cache", "var/cache", false),
    ("/var/log", "var/log", false),
    ("/etc", "etc", false),
    ("/dev", "dev", true),
    ("/proc", "proc", true),
    ("/proc", "local_proc", true),
    ("/sys", "sys", false),
];

/// libvirtd must leave alone what is the host's: no chown, no labels, no namespace of the emulator, no control groups.
const QEMU_CONF: &str = "\
# Written by `farside dpu up`: libvirtd sees this file in the offload only. QEMU runs on the other machine, so what
# libvirtd would do to a local process (control groups, a private /dev, labels, changed owners) is switched off.
user = \"root\"
group = \"root\"
dynamic_ownership = 0
remember_owner = 0
security_driver = \"none\"
namespaces = [ ]
stdio_handler = \"file\"
cgroup_controllers = [ ]
";

/// Where things are on this machine, and who the peer is.
#[derive(Debug, Clone)]
pub struct Site {
    /// The host's node, `ADDR:PORT`.
    pub peer: String,
    /// This machine's address for it, and the port of its own daemon.
    pub listen: String,
    /// What /etc/farside/node.toml says, without which rexec and the shim's daemon know no peer.
    pub node_toml: Vec<u8>,
    pub rexec: PathBuf,
    pub shim: PathBuf,
    pub udsproxyd: PathBuf,
    pub mount_helper: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A connection to the host's node, made and dropped.
    Reach(String),
    /// No daemon of another making at the socket of one that `up` starts; `advice` says how to stop it.
    Alone {
        socket: PathBuf,
        advice: &'static str,
    },
    Rootfs(PathBuf),
    Dir {
        path: PathBuf,
        mode: u32,
    },
    /// A file of ours; one of other content that is there already is moved aside.
    File {
        path: PathBuf,
        mode: u32,
        bytes: Vec<u8>,
    },
    /// An empty file for a bind mount to lie on; whatever is there already will do.
    MountPoint(PathBuf),
    /// A directory that a program fills and that goes with the offload, unless it was there before.
    Scratch(PathBuf),
    /// A file or directory that a program makes, and may leave behind when it is killed.
    Leaves(PathBuf),
    Private(PathBuf),
    Space(PathBuf),
    Bind {
        from: PathBuf,
        to: PathBuf,
        recursive: bool,
    },
    Qtfs {
        dir: PathBuf,
        at: PathBuf,
        command: Vec<String>,
    },
    Start(Program),
    /// The program of that name serves its socket; with a command, that one succeeds inside the offload too.
    Ready {
        program: &'static str,
        socket: PathBuf,
        ask: Option<Vec<&'static str>>,
    },
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Reach(peer) => write!(f, "the host's node at {peer} answers"),
            Step::Alone { socket, .. } => write!(f, "nobody else serves {}", socket.display()),
            Step::Rootfs(dir) => write!(f, "{} has libvirtd and no emulator", dir.display()),
            Step::Dir { path, .. } => write!(f, "directory {}", path.display()),
            Step::File { path, .. } => write!(f, "file {}", path.display()),
            Step::MountPoint(path) => write!(f, "mount point {}", path.display()),
            Step::Leaves(path) => write!(f, "{} is free", path.display()),
            Step::Scratch(path) => write!(f, "directory {}", path.display()),
            Step::Private(dir) => write!(f, "{} keeps its mounts to itself", dir.display()),
            Step::Space(handle) => write!(f, "mount namespace {}", handle.display()),
            Step::Bind { from, to, .. } => write!(f, "{} shows {}", to.display(), from.display()),
            Step::Qtfs { dir, at, .. } => write!(f, "{} shows the host's {}", at.display(), dir.display()),
            Step::Start(program) => write!(f, "{} runs", program.name),
            Step::Ready { program, socket, .. } => write!(f, "{program} answers at {}", socket.display()),
        }
    }
}

/// A `Site`'s peer, taken apart; the brackets of an IPv6 address stay on.
fn host_and_port(addr: &str) -> Attempt<(&str, &str)> {
    addr.rsplit_once(':')
        .filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        .ok_or_else(|| Trouble::new(format!("'{addr}' is no ADDR:PORT"), "correct it in node.toml"))
}

/// The directories and programs of the configuration are paths that mean the same on both machines.
fn check_path(what: &str, path: &Path) -> Attempt<()> {
    let plain = path.is_absolute() && path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if plain && path != Path::new("/") {
        return Ok(());
    }
    Err(Trouble::new(format!("{what} '{}' is not a plain absolute path", path.display()), "correct it in node.toml"))
}

/// `path` of the machine as it lies below the rootfs.
fn inside(rootfs: &Path, path: &Path) -> PathBuf {
    rootfs.join(path.strip_prefix("/").unwrap_or(path))
}

/// Where a path inside the offload lies in the DPU's own space: below a local tree it is that tree's.
fn origin(rootfs: &Path, path: &Path) -> PathBuf {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let tree = LOCAL_TREES.iter().find(|(_, to, _)| relative.starts_with(to));
    match tree {
        Some((from, to, _)) => Path::new(from).join(relative.strip_prefix(to).unwrap_or(relative)),
        None => rootfs.join(relative),
    }
}

/// Where a daemon of the offload serves.
pub fn socket_of(name: &str) -> Option<&'static Path> {
    let socket = match name {
        "udsproxyd" => UDS_SOCKET,
        "virtlogd" => VIRTLOGD_SOCKET,
        "libvirtd" => LIBVIRT_SOCKET,
        _ => return None,
    };
    Some(Path::new(socket))
}

const STOP_FARSIDE: &str = "stop it (udsproxyd, engine or farside host): `farside dpu up` starts its own";
const STOP_LIBVIRT: &str = "stop it: systemctl stop libvirtd.socket libvirtd virtlogd.socket virtlogd";

fn alone(socket: &str, advice: &'static str) -> Step {
    Step::Alone { socket: socket.into(), advice }
}

pub fn steps(offload: &Offload, site: &Site) -> Attempt<Vec<Step>> {
    let rootfs = &offload.rootfs;
    check_path("rootfs", rootfs)?;
    let mut steps = vec![
        Step::Reach(site.peer.clone()),
        alone(UDS_SOCKET, STOP_FARSIDE),
        alone(LIBVIRT_SOCKET, STOP_LIBVIRT),
        alone(VIRTLOGD_SOCKET, STOP_LIBVIRT),
        Step::Rootfs(rootfs.clone()),
    ];
    namespace(&mut steps);
    local_trees(&mut steps, rootfs, site);
    for dir in &offload.mounts {
        check_path("mount", dir)?;
        host_tree(&mut steps, rootfs, dir, site);
    }
    addresses(&mut steps, site)?;
    for emulator in &offload.emulators {
        check_path("emulator", emulator)?;
        parents(&mut steps, &origin(rootfs, emulator));
        steps.push(Step::File { path: inside(rootfs, emulator), mode: 0o755, bytes: wrapper::text(emulator) });
    }
    if offload.kvm_placeholder {
        steps.push(Step::File { path: "/dev/kvm".into(), mode: 0o666, bytes: Vec::new() });
    }
    daemons(&mut steps, offload, site)?;
    Ok(steps)
}

fn namespace(steps: &mut Vec<Step>) {
    // As the uds daemon wants it for its socket: nobody but root.
    steps.push(Step::Dir { path: RUN_DIR.into(), mode: 0o700 });
    // A namespace's handle cannot lie on a mount that other namespaces copy.
    steps.push(Step::Private(RUN_DIR.into()));
    steps.push(Step::File { path: SPACE.into(), mode: 0o600, bytes: Vec::new() });
    steps.push(Step::Space(SPACE.into()));
}

fn local_trees(steps: &mut Vec<Step>, rootfs: &Path, site: &Site) {
    for (from, to, recursive) in LOCAL_TREES {
        parents(steps, &rootfs.join(to));
        steps.push(Step::Dir { path: rootfs.join(to), mode: 0o755 });
        steps.push(Step::Bind { from: from.into(), to: rootfs.join(to), recursive });
    }
    // The keys of this machine are not libvirtd's business: it sees the settings alone.
    let settings = Path::new(RUN_DIR).join("etc-farside");
    steps.push(Step::Dir { path: settings.clone(), mode: 0o755 });
    steps.push(Step::File { path: settings.join("node.toml"), mode: 0o644, bytes: site.node_toml.clone() });
    steps.push(Step::Dir { path: "/etc/farside".into(), mode: 0o755 });
    steps.push(Step::Bind { from: settings, to: inside(rootfs, Path::new("/etc/farside")), recursive: false });
    let conf = Path::new(RUN_DIR).join("qemu.conf");
    steps.push(Step::File { path: conf.clone(), mode: 0o644, bytes: QEMU_CONF.into() });
    cover_file(steps, rootfs, &conf, Path::new("/etc/libvirt/qemu.conf"));
    cover_file(steps, rootfs, &site.rexec, Path::new(REXEC));
    cover_file(steps, rootfs, &site.shim, Path::new(SHIM));
}

/// Shows `from` at the path inside the offload; a mount, so nothing of the rootfs changes.
fn cover_file(steps: &mut Vec<Step>, rootfs: &Path, from: &Path, path: &Path) {
    let mount_point = origin(rootfs, path);
    parents(steps, &mount_point);
    steps.push(Step::MountPoint(mount_point));
    steps.push(Step::Bind { from: from.into(), to: inside(rootfs, path), recursive: false });
}

/// One of the host's directories, at its own path.
fn host_tree(steps: &mut Vec<Step>, rootfs: &Path, dir: &Path, site: &Site) {
    let mount_point = origin(rootfs, dir);
    parents(steps, &mount_point);
    steps.push(Step::Dir { path: mount_point, mode: 0o755 });
    let at = inside(rootfs, dir);
    let words = [site.mount_helper.as_path(), dir, at.as_path()].map(|p| p.to_string_lossy().into_owned());
    let mut command = words.to_vec();
    command.extend(["-o".into(), format!("host={}", site.peer)]);
    steps.push(Step::Qtfs { dir: dir.into(), at, command });
}

/// What the wrappers (and the guide's scripts) read.
fn addresses(steps: &mut Vec<Step>, site: &Site) -> Attempt<()> {
    let (host, port) = host_and_port(&site.peer)?;
    let dir = Path::new("/run/rexec");
    steps.push(Step::Dir { path: dir.into(), mode: 0o755 });
    steps.push(Step::Dir { path: dir.join("pids"), mode: 0o755 });
    let mut file = |name: &str, text: String| {
        steps.push(Step::File { path: dir.join(name), mode: 0o644, bytes: text.into_bytes() });
    };
    file("hostaddr", format!("{host}\n"));
    file("rexecport", format!("{port}\n"));
    // Nothing of ours reads it: the guide's patched libvirt did, whose monitor had a port of its own.
    file("qmpport", format!("{port}\n"));
    Ok(())
}

fn daemons(steps: &mut Vec<Step>, offload: &Offload, site: &Site) -> Attempt<()> {
    let rootfs = &offload.rootfs;
    let log = |name: &str| Path::new(LOG_DIR).join(format!("{name}.log"));
    steps.push(Step::Dir { path: LOG_DIR.into(), mode: 0o755 });
    let (addr, port) = host_and_port(&site.listen)?;
    let (peer_addr, peer_port) = host_and_port(&site.peer)?;
    for path in [UDS_SOCKET, "/run/farside/uds.lock", "/run/farside/uds.d", "/run/qtfs"] {
        steps.push(Step::Leaves(path.into()));
    }
    steps.push(Step::Dir { path: VOUCH_DIR.into(), mode: 0o755 });
    let env = vec![("PATH".into(), PATH.into())];
    let udsproxyd = [&site.udsproxyd.to_string_lossy(), "1", addr, port, peer_addr, peer_port].map(str::to_string);
    steps.push(Step::Start(Program {
        name: "udsproxyd",
        command: udsproxyd.into(),
        env,
        root: None,
        log: log("udsproxyd"),
    }));
    steps.push(Step::Ready { program: "udsproxyd", socket: UDS_SOCKET.into(), ask: None });

    steps.push(Step::Scratch("/run/libvirt".into()));
    for file in ["/run/libvirtd.pid", "/run/virtlogd.pid"] {
        steps.push(Step::Leaves(file.into()));
    }
    let daemon = |name: &'static str, env: Vec<(String, String)>| {
        let mut all = vec![("PATH".to_string(), PATH.to_string()), ("LC_ALL".into(), "C".into())];
        // To our log, not to the DPU's journal: `up` shows its last lines when libvirtd does not answer.
        all.push(("LIBVIRT_LOG_OUTPUTS".into(), "3:stderr".into()));
        all.extend(env);
        Program {
            name,
            command: vec![format!("/usr/sbin/{name}")],
            env: all,
            root: Some(rootfs.clone()),
            log: log(name),
        }
    };
    steps.push(Step::Start(daemon("virtlogd", Vec::new())));
    steps.push(Step::Ready { program: "virtlogd", socket: VIRTLOGD_SOCKET.into(), ask: None });
    let mounts: Vec<String> = offload.mounts.iter().map(|m| m.to_string_lossy().into_owned()).collect();
    let shim = vec![("LD_PRELOAD".into(), SHIM.into()), ("FARSIDE_UDS_ONLY".into(), mounts.join(":"))];
    steps.push(Step::Start(daemon("libvirtd", shim)));
    steps.push(Step::Ready { program: "libvirtd", socket: LIBVIRT_SOCKET.into(), ask: Some(LIBVIRT_ASK.into()) });
    Ok(())
}

/// Every directory above `path`; those that exist are left alone.
fn parents(steps: &mut Vec<Step>, path: &Path) {
    let mut above: Vec<&Path> = path.ancestors().skip(1).filter(|p| p.parent().is_some()).collect();
    above.reverse();
    for dir in above {
        let step = Step::Dir { path: dir.into(), mode: 0o755 };
        if !steps.contains(&step) {
            steps.push(step);
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
pub mod tests;
