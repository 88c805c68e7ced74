//! Debian's own libvirtd in its rootfs on the DPU, its QEMU on the host: what the offload promises, end to end.
//!
//! One rootfs for all tests of a run, made by `farside rootfs from-root` and seen below a copy-on-write layer.

mod lab;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use lab::{DPU_ADDR, Dpu, HOST_ADDR, Host, Lab, Machine, Running, bin, eventually, repository};

const VIRSH: [&str; 4] = ["virsh", "-q", "-c", "qemu:///system"];
const EMULATOR: &str = "/usr/bin/qemu-system-x86_64";

fn tool(name: &str) -> String {
    repository().join("tools").join(name).to_str().unwrap().to_string()
}

/// Large trees that libvirtd has no use for (compilers, SDKs), if this machine has them.
fn large_trees() -> Vec<String> {
    let du = "du -xs --block-size=1M /usr/local /usr/lib/*/ /usr/share/*/ 2>/dev/null \
              | awk '$1 > 100 && $2 !~ /-linux-gnu\\/?$/ { sub(\"/$\", \"\", $2); print $2 }'";
    let out = std::process::Command::new("sh").args(["-c", du]).output().expect("run du");
    String::from_utf8(out.stdout).unwrap().lines().map(str::to_string).collect()
}

fn build_rootfs(lab: &Lab) -> String {
    let mut words: Vec<String> = [bin("farside"), "rootfs", "from-root", "/another_rootfs"].map(str::to_string).into();
    words.extend(large_trees().into_iter().flat_map(|tree| ["--skip".to_string(), tree]));
    lab.dpu(&words.iter().map(String::as_str).collect::<Vec<_>>()).ok()
}

/// Kept from run to run: the second run only looks whether it is still true.
fn rootfs() -> &'static Path {
    static ROOTFS: OnceLock<PathBuf> = OnceLock::new();
    ROOTFS.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rootfs");
        std::fs::create_dir_all(&dir).unwrap();
        build_rootfs(&Lab::up_with(&["--rootfs", dir.to_str().unwrap()]));
        dir
    })
}

struct Offload {
    lab: Lab,
    before: Vec<String>,
}

impl Offload {
    /// Two machines with their settings, nothing running.
    fn prepared() -> Self {
        let guest = std::process::Command::new(tool("guest")).arg("dir").output().expect("run tools/guest");
        let guest = String::from_utf8(guest.stdout).unwrap().trim().to_string();
        let built = std::process::Command::new(tool("guest")).arg("build").status().expect("run tools/guest");
        assert!(built.success(), "tools/guest build");
        let lab = Lab::up_with(&["--rootfs-below", rootfs().to_str().unwrap(), "--bind", &format!("{guest}:ro")]);
        let exports = "export = [{ path = '/var/lib/libvirt' }, { path = '/home/VMs' }]";
        let host = format!("listen = '{HOST_ADDR}:7776'\npeer = '{DPU_ADDR}:7776'\n{exports}\n");
        lab.write(Host, "/etc/farside/node.toml", &host);
        let offload = format!(
            "[offload]\nrootfs = '/another_rootfs'\nmounts = ['/var/lib/libvirt', '/home/VMs']\nemulators = ['{EMULATOR}']\n"
        );
        let dpu = format!("listen = '{DPU_ADDR}:7776'\npeer = '{HOST_ADDR}:7776'\n{offload}");
        lab.write(Dpu, "/etc/farside/node.toml", &dpu);
        lab.sh(Host, &format!("cp {guest}/vmlinuz {guest}/initramfs /home/VMs/")).ok();
        // Whatever boots, boots on the host.
        lab.sh(Dpu, "rm -f /usr/bin/qemu-system-* /usr/libexec/qemu-system-* /usr/bin/kvm").ok();
        let mut offload = Self { lab, before: Vec::new() };
        offload.before = offload.traces();
        offload
    }

    fn node(&self) -> Running {
        let node = self.lab.spawn(Host, &[bin("farside"), "host"]);
        let knock = format!("exec 3<>/dev/tcp/{HOST_ADDR}/7776");
        let answers = || self.lab.dpu(&["bash", "-c", &knock]).status.success();
        eventually("the host's node answers", Duration::from_secs(15), answers, || node.said());
        node
    }

    #[track_caller]
    fn up(&self) -> String {
        self.lab.dpu(&[bin("farside"), "dpu", "up"]).ok()
    }

    #[track_caller]
    fn down(&self) -> String {
        self.lab.dpu(&[bin("farside"), "dpu", "down"]).ok()
    }

    #[track_caller]
    fn virsh(&self, words: &[&str]) -> String {
        self.lab.dpu(&[&VIRSH, words].concat()).ok()
    }

    /// What the DPU holds that `up` could leave: mounts, processes, and files of its own layer and volatile directories.
    fn traces(&self) -> Vec<String> {
        let all = "cut -d' ' -f2,3 /proc/mounts; ps -eo ppid=,args= | grep -vE \"^ *(0|$$) |^ *1 sleep 1000000\"; \
                   find /run /dev /tmp /etc/farside /etc/libvirt/*.conf /var/lib/farside /home /another_rootfs/home \
                   /another_rootfs/usr/bin /another_rootfs/usr/libexec -xdev 2>/dev/null; \
                   cat /etc/libvirt/qemu.conf | md5sum";
        let said = self.lab.dpu(&["sh", "-c", all]).out();
        let mut lines: Vec<String> = said.lines().filter(|l| !l.contains("sh -c cut")).map(str::to_string).collect();
        lines.sort();
        lines
    }

    #[track_caller]
    fn assert_nothing_left(&self) {
        let now = self.traces();
        let left: Vec<_> = now.iter().filter(|line| !self.before.contains(line)).collect();
        let lost: Vec<_> = self.before.iter().filter(|line| !now.contains(line)).collect();
        assert!(left.is_empty() && lost.is_empty(), "left: {left:#?}\nlost: {lost:#?}");
    }

    /// Defines and starts a guest; its QEMU's pid on the host.
    #[track_caller]
    fn start_guest(&self, name: &str, token: &str) -> String {
        let disk = self.lab.path(Host, "/home/VMs").join(format!("{name}.qcow2"));
        let made =
            std::process::Command::new(tool("guest")).arg("disk").arg(&disk).arg(format!("mark-{token}")).status();
        assert!(made.expect("run tools/guest").success());
        self.lab.sh(Dpu, &format!("{} xml {name} {token} >/tmp/{name}.xml", tool("guest"))).ok();
        self.virsh(&["define", &format!("/tmp/{name}.xml")]);
        self.lab.dpu(&["rm", &format!("/tmp/{name}.xml")]).ok();
        self.virsh(&["start", name]);
        let pids = self.lab.host(&["pgrep", "-f", &format!("^{EMULATOR} .*guest={name}")]).ok();
        assert_eq!(pids.lines().count(), 1, "QEMUs on the host: {pids}");
        pids.trim().to_string()
    }

    fn serial(&self, name: &str) -> String {
        self.lab.host(&["cat", &format!("/home/VMs/{name}.serial")]).out()
    }

    fn link(&self, machine: Machine, path: &str) -> String {
        self.lab.run(machine, &["readlink", path]).out().trim().to_string()
    }
}

#[test]
fn a_rootfs_has_no_emulator_and_no_keys_and_is_the_same_when_made_twice() {
    let lab = Lab::up_with(&["--rootfs-below", rootfs().to_str().unwrap()]);
    lab.dpu(&["test", "-x", "/another_rootfs/usr/sbin/libvirtd"]).ok();
    lab.dpu(&["test", "!", "-e", "/another_rootfs/etc/farside"]).ok();
    lab.dpu(&["test", "!", "-e", "/another_rootfs/etc/shadow"]).ok();
    let emulators = "find /another_rootfs -xdev -type f -name 'qemu-system-*' -perm /111 -exec head -c 4 {} \\; -quit";
    assert_eq!(lab.sh(Dpu, emulators).ok(), "#!/b", "an emulator of the rootfs is a wrapper");
    let said = lab.dpu(&["chroot", "/another_rootfs", EMULATOR, "--version"]).refused();
    assert!(said.contains("farside dpu up"), "{said}");

    let list = "cd /another_rootfs && find . -xdev -printf '%p %y %m %u %g %s %T@ %C@ %l\\n' | sort | md5sum";
    // Once for what this very machine has of its own: /etc/hosts is as old as the lab.
    build_rootfs(&lab);
    let before = lab.sh(Dpu, list).ok();
    let said = build_rootfs(&lab);
    assert!(said.contains("was up to date"), "{said}");
    assert_eq!(lab.sh(Dpu, list).ok(), before);
}

#[test]
fn a_rootfs_is_not_made_in_somebody_elses_directory() {
    let lab = Lab::up();
    lab.sh(Dpu, "mkdir /precious && echo 1 >/precious/file").ok();
    let said = lab.dpu(&[bin("farside"), "rootfs", "from-root", "/precious"]).refused();
    assert!(said.contains("/precious is not empty"), "{said}");
    assert_eq!(lab.dpu(&["ls", "-A", "/precious"]).ok(), "file\n");
}

#[test]
fn up_without_a_host_says_what_to_do_and_leaves_nothing() {
    let offload = Offload::prepared();
    let said = offload.lab.dpu(&[bin("farside"), "dpu", "up"]).refused();
    assert!(said.contains(&format!("{HOST_ADDR}:7776")) && said.contains("farside host"), "{said}");
    offload.assert_nothing_left();
    assert!(offload.down().contains("not up"));
    offload.assert_nothing_left();
}

#[test]
fn init_writes_a_template_once() {
    let lab = Lab::up();
    assert!(lab.dpu(&[bin("farside"), "dpu", "init"]).ok().contains("/etc/farside/node.toml"));
    lab.dpu(&["grep", "-q", "^\\[offload\\]", "/etc/farside/node.toml"]).ok();
    assert!(lab.dpu(&[bin("farside"), "dpu", "init"]).refused().contains("exists"));
}

#[test]
fn an_up_that_is_killed_at_any_time_is_undone_by_down() {
    let offload = Offload::prepared();
    let _node = offload.node();
    for after_ms in [3, 10, 20, 35, 50, 80, 120, 200, 400] {
        let script = format!(
            "{} dpu up >/dev/null 2>&1 & p=$!; sleep 0.{after_ms:03}; kill -9 $p || true; wait $p || true",
            bin("farside")
        );
        offload.lab.sh(Dpu, &script).ok();
        offload.down();
        offload.assert_nothing_left();
    }
}

#[test]
fn up_twice_is_once_and_down_undoes_it() {
    let offload = Offload::prepared();
    let _node = offload.node();
    offload.up();
    let settings =
        "tr '\\0' '\\n' </proc/$(pgrep -x libvirtd)/environ | grep -E '^(LD_PRELOAD|FARSIDE_UDS_ONLY)=' | sort";
    assert_eq!(
        offload.lab.sh(Dpu, settings).ok(),
        "FARSIDE_UDS_ONLY=/var/lib/libvirt:/home/VMs\nLD_PRELOAD=/usr/lib64/libudsproxy.so\n"
    );
    assert!(offload.up().contains("already up"));
    // The offload's mounts are its own: virsh reaches libvirtd, yet nobody sees them.
    assert_eq!(offload.virsh(&["uri"]).trim(), "qemu:///system");
    assert_eq!(offload.lab.sh(Dpu, "grep -c '/another_rootfs/' /proc/mounts || true").ok(), "0\n");
    offload.down();
    offload.assert_nothing_left();
}

#[test]
fn after_a_power_cut_of_the_dpu_up_begins_anew() {
    let offload = Offload::prepared();
    let _node = offload.node();
    offload.up();
    offload.lab.crash(Dpu);
    offload.lab.boot(Dpu);
    let said = offload.up();
    assert!(said.contains("started anew"), "{said}");
    offload.virsh(&["list"]);
    offload.down();
    offload.assert_nothing_left();
}

#[test]
fn the_main_job() {
    let offload = Offload::prepared();
    let _node = offload.node();
    offload.up();
    for daemon in ["virtlogd", "libvirtd"] {
        let pid = offload.lab.dpu(&["pgrep", "-x", daemon]).ok();
        assert_eq!(offload.link(Dpu, &format!("/proc/{}/root", pid.trim())), "/another_rootfs", "{daemon}'s root");
    }
    let token = format!("{:x}", std::process::id() * 7919);
    let qemu = offload.start_guest("vm1", &token);
    qemu_is_on_the_host(&offload, &qemu);
    eventually(
        "the guest boots",
        Duration::from_secs(120),
        || offload.serial("vm1").contains("FARSIDE-READY"),
        || offload.serial("vm1"),
    );
    for said in [format!("FARSIDE-TOKEN {token}"), format!("FARSIDE-DISK mark-{token}")] {
        assert!(offload.serial("vm1").contains(&said), "{said} is not in {}", offload.serial("vm1"));
    }
    the_guest_obeys(&offload);
    a_new_libvirtd_finds_it(&offload, &qemu);

    let refused = offload.lab.dpu(&[bin("farside"), "dpu", "down"]).refused();
    assert!(refused.contains("vm1"), "{refused}");
    let start = Instant::now();
    offload.virsh(&["destroy", "vm1"]);
    let gone = || !offload.lab.host(&["test", "-d", &format!("/proc/{qemu}")]).status.success();
    eventually("QEMU ends", Duration::from_secs(5).saturating_sub(start.elapsed()), gone, String::new);
    offload.virsh(&["undefine", "vm1"]);
    assert_eq!(offload.virsh(&["list", "--all", "--name"]).trim(), "");
    offload.down();
    offload.assert_nothing_left();
}

fn qemu_is_on_the_host(offload: &Offload, qemu: &str) {
    assert_eq!(offload.link(Host, &format!("/proc/{qemu}/exe")), EMULATOR);
    let its = offload.link(Host, &format!("/proc/{qemu}/ns/pid"));
    assert_eq!(its, offload.link(Host, "/proc/self/ns/pid"));
    assert_ne!(its, offload.link(Dpu, "/proc/self/ns/pid"));
    let on_dpu = "for p in /proc/[0-9]*; do readlink $p/exe || true; done | grep -c qemu-system || true";
    assert_eq!(offload.lab.sh(Dpu, on_dpu).ok(), "0\n", "an emulator runs on the DPU");
}

fn the_guest_obeys(offload: &Offload) {
    offload.virsh(&["dominfo", "vm1"]);
    offload.virsh(&["domstats", "vm1"]);
    offload.virsh(&["suspend", "vm1"]);
    assert_eq!(offload.virsh(&["domstate", "vm1"]).trim(), "paused");
    offload.virsh(&["resume", "vm1"]);
    assert_eq!(offload.virsh(&["domstate", "vm1"]).trim(), "running");
    let said = offload.virsh(&["qemu-monitor-command", "vm1", r#"{"execute":"query-status"}"#]);
    assert!(said.contains("running"), "{said}");
    offload.virsh(&["screenshot", "vm1", "/tmp/picture"]);
    offload.lab.dpu(&["grep", "-aqm", "1", "-e", "^P6", "-e", "PNG", "/tmp/picture"]).ok();
    offload.lab.dpu(&["rm", "/tmp/picture"]).ok();
}

fn a_new_libvirtd_finds_it(offload: &Offload, qemu: &str) {
    let id = offload.virsh(&["domid", "vm1"]);
    offload.lab.sh(Dpu, "kill -9 $(pgrep -x libvirtd)").ok();
    offload.up();
    assert_eq!(offload.virsh(&["domid", "vm1"]), id);
    offload.virsh(&["qemu-monitor-command", "vm1", r#"{"execute":"query-status"}"#]);
    let pids = offload.lab.host(&["pgrep", "-f", "guest=vm1"]).ok();
    assert_eq!(pids.trim(), qemu, "QEMU is still the same");
}

/// What `farside dpu status` says, and its exit status.
fn status(offload: &Offload) -> (Option<i32>, String) {
    let said = offload.lab.dpu(&[bin("farside"), "dpu", "status"]);
    (said.status.code(), said.out() + &said.err())
}

#[test]
fn up_beside_another_udsproxyd_fails_and_says_so() {
    let offload = Offload::prepared();
    let _node = offload.node();
    let other = |socket: &[&str]| {
        let words = [bin("udsproxyd"), "1", DPU_ADDR, "7776", HOST_ADDR, "7776"];
        let other = offload.lab.spawn(Dpu, &[&words, socket].concat());
        other.wait_for("serving on");
        other
    };
    let up = || offload.lab.dpu(&[bin("farside"), "dpu", "up"]).refused();
    // It has the socket that libvirtd's shim asks at, and answers there.
    let first = other(&[]);
    let said = up();
    let pid = offload.lab.dpu(&["pgrep", "-x", "udsproxyd"]).ok();
    let line = format!("another daemon (pid {}) serves /run/farside/uds.sock; stop it", pid.trim());
    assert!(said.contains(&line), "{said}");
    assert_eq!(status(&offload), (Some(3), "not up\n".into()));
    offload.lab.dpu(&["pkill", "-TERM", "-x", "udsproxyd"]).ok();
    drop(first);
    // It has the port alone.
    let second = other(&["--socket", "/tmp/other/uds.sock"]);
    let said = up();
    assert!(said.contains("udsproxyd does not come up: it has ended") && said.contains("EADDRINUSE"), "{said}");
    assert_eq!(status(&offload), (Some(3), "not up\n".into()));
    offload.lab.dpu(&["pkill", "-TERM", "-x", "udsproxyd"]).ok();
    drop(second);
    offload.lab.dpu(&["rm", "-rf", "/tmp/other"]).ok();
    offload.up();
    assert_eq!(status(&offload).0, Some(0));
    offload.down();
}

#[test]
fn what_was_killed_is_named_by_status_and_mended_by_up() {
    let offload = Offload::prepared();
    let _node = offload.node();
    assert_eq!(status(&offload), (Some(3), "not up\n".into()));
    offload.up();
    assert_eq!(status(&offload).0, Some(0), "{}", status(&offload).1);
    for (kill, part) in [
        (
            "pkill -9 -f '^[^ ]*mount.qtfs /home/VMs'",
            "the mount /another_rootfs/home/VMs is dead, because its mount.qtfs (pid ",
        ),
        ("pkill -9 -x libvirtd", "libvirtd (pid "),
        ("pkill -9 -x udsproxyd; pkill -9 -f '^[^ ]*mount.qtfs /var/lib/libvirt'", "udsproxyd (pid "),
    ] {
        offload.lab.sh(Dpu, kill).ok();
        let (code, said) = status(&offload);
        assert!(code == Some(4) && said.contains(&format!("dead: {part}")), "{kill}: {code:?} {said}");
        let said = offload.up();
        assert!(said.contains(&format!("dead: {part}")) && !said.contains("already up"), "{said}");
        assert_eq!(status(&offload).0, Some(0), "{}", status(&offload).1);
        offload.virsh(&["list"]);
    }
    let inside = "nsenter --mount=/run/farside/mnt-ns test -e /another_rootfs/home/VMs/vmlinuz";
    offload.lab.sh(Dpu, inside).ok();
    offload.down();
    offload.assert_nothing_left();
}

#[test]
fn down_undoes_an_offload_whose_parts_were_killed() {
    let offload = Offload::prepared();
    let node = offload.node();
    offload.up();
    offload.lab.sh(Dpu, "pkill -9 -f '^[^ ]*mount.qtfs '; pkill -9 -x libvirtd; pkill -9 -x udsproxyd").ok();
    let (code, said) = status(&offload);
    assert!(code == Some(4) && said.matches("dead: ").count() == 4, "{code:?} {said}");
    offload.down();
    offload.assert_nothing_left();
    // A mount whose host is gone runs, and answers nothing.
    offload.up();
    offload.lab.host(&["pkill", "-KILL", "-x", "farside"]).ok();
    drop(node);
    let dead = || status(&offload).0 == Some(4);
    eventually("the mounts are seen to be dead", Duration::from_secs(30), dead, || status(&offload).1);
    let said = offload.lab.dpu(&[bin("farside"), "dpu", "up"]).refused();
    assert!(said.contains("does not answer") && said.contains("`farside dpu down`, then `farside dpu up`"), "{said}");
    offload.down();
    offload.assert_nothing_left();
}

#[test]
fn a_refused_tap_fails_its_operation_and_not_the_guest() {
    let offload = Offload::prepared();
    offload.lab.sh(Dpu, "ip link add br7 type bridge && ip link set br7 up").ok();
    let node = offload.node();
    offload.up();
    let qemu = offload.start_guest("vm3", "x");
    let attach = ["attach-interface", "vm3", "bridge", "br7", "--model", "virtio", "--live"];
    let said = offload.lab.dpu(&[&VIRSH, &attach[..]].concat()).refused();
    assert!(said.contains("error: "), "{said}");
    // The guest runs on, and its monitor answers: the second time as the first.
    offload.lab.dpu(&[&VIRSH, &attach[..]].concat()).refused();
    assert_eq!(offload.virsh(&["domstate", "vm3"]).trim(), "running");
    let status = offload.virsh(&["qemu-monitor-command", "vm3", "--hmp", "info status"]);
    assert!(status.contains("running"), "{status}");
    offload.lab.host(&["test", "-d", &format!("/proc/{qemu}")]).ok();
    let remedy = "(taps = true under [pass] in node.toml of the machine that opens it would allow it)";
    assert!(node.said().contains(remedy), "{}", node.said());
    // On the DPU the guest's own log says it, where virsh's user looks.
    let log = offload.lab.read(Dpu, "/var/log/libvirt/qemu/vm3.log");
    assert!(log.contains(remedy), "{log}");
    offload.virsh(&["destroy", "vm3"]);
    offload.down();
    offload.lab.sh(Dpu, "ip link del br7").ok();
    offload.assert_nothing_left();
}

#[test]
fn down_with_force_destroys_the_guests() {
    let offload = Offload::prepared();
    let _node = offload.node();
    offload.up();
    let qemu = offload.start_guest("vm2", "x");
    offload.lab.dpu(&[bin("farside"), "dpu", "down", "--force"]).ok();
    let gone = || !offload.lab.host(&["test", "-d", &format!("/proc/{qemu}")]).status.success();
    eventually("QEMU ends", Duration::from_secs(5), gone, String::new);
    offload.assert_nothing_left();
}
