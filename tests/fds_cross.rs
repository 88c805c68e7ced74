//! Every kind of fd that a unix socket carries, between two machines: real programs pass them, use them on the other
//! machine, and say what they saw. Each test is a function of `uds/kinds.py` of the same name.

mod lab;
#[path = "common/skip.rs"]
mod skip;

use lab::{DPU_ADDR, Dpu, HOST_ADDR, Host, Lab, Running, bin, repository, shim};

const PORT: &str = "12121";

struct Two {
    lab: Lab,
    host: Running,
    servers: Running,
    dpu: Running,
}

fn script() -> String {
    repository().join("tests/uds/kinds.py").to_str().unwrap().to_owned()
}

impl Two {
    #[track_caller]
    fn up() -> Self {
        Self::up_with("[pass]\ndevices = ['kvm']\nbridge = 'br0'\n")
    }

    /// `pass` of the host's node.toml.
    #[track_caller]
    fn up_with(pass: &str) -> Self {
        let lab = Lab::up();
        lab.sh(Host, "mkdir -p /home/VMs && printf 0123456789 >/home/VMs/disk").ok();
        lab.sh(Host, "ip link add br0 type bridge && ip link set br0 up").ok();
        lab.write(Host, "/etc/farside/node.toml", &format!("[[export]]\npath = '/home/VMs'\n{pass}"));
        let servers = lab.spawn(Host, &["/usr/bin/python3", &script(), "serve"]);
        servers.wait_for("READY");
        let host = lab.spawn(Host, &[bin("engine"), "4", "1", HOST_ADDR, PORT, DPU_ADDR, PORT]);
        let dpu = lab.spawn(Dpu, &[bin("udsproxyd"), "1", DPU_ADDR, PORT, HOST_ADDR, PORT]);
        dpu.wait_for("session up");
        host.wait_for("session up");
        lab.dpu(&["mkdir", "-p", "/mnt/there"]).ok();
        let at = format!("host={HOST_ADDR}:{PORT}");
        lab.dpu(&[bin("mount_qtfs"), "/home/VMs", "/mnt/there", "-o", &at]).ok();
        Self { lab, host, servers, dpu }
    }

    #[track_caller]
    fn keeps(&self, promise: &str) {
        let preload = format!("LD_PRELOAD={}", shim().display());
        let said = self.lab.dpu(&["/usr/bin/env", &preload, "/usr/bin/python3", &script(), promise]);
        let logs = [&self.servers, &self.host, &self.dpu].map(Running::said);
        assert!(said.out().ends_with("KEPT\n"), "{}\n{}\n{}", said.out(), said.err(), logs.join("\n"));
    }
}

impl Drop for Two {
    fn drop(&mut self) {
        let _ = self.lab.dpu(&["umount", "/mnt/there"]);
    }
}

macro_rules! promises {
    ($($name:ident)+) => { $(
        #[test]
        fn $name() {
            Two::up().keeps(stringify!($name));
        }
    )+ };
}

promises! {
    files_and_directories
    files_of_the_host
    memory_with_its_seals
    terminals
    devices
    taps_by_policy
    fifos
    listeners
    sockets_of_records
    what_cannot_be_made_again_is_refused
}

#[test]
fn a_listeners_conversation_outlives_a_refused_fd() {
    let two = Two::up_with("");
    two.keeps("a_listeners_conversation_outlives_a_refused_fd");
    let (host, dpu) = (two.host.said(), two.dpu.said());
    let remedy = "open the tap interface vnet8 (taps = true under [pass] in node.toml of the machine that opens it would allow it)";
    assert!(host.contains(&format!("an fd can't be made here, its receiver gets a placeholder: {remedy}")), "{host}");
    assert!(dpu.contains(&format!("the peer can't make an fd, its receiver gets a placeholder: {remedy}")), "{dpu}");
    // Both ways: an eventfd is not described by whoever has it.
    for log in [&host, &dpu] {
        assert!(log.contains("an fd can't be passed, its receiver gets a placeholder: carry "), "{log}");
        assert!(log.contains("the peer can't pass an fd, its receiver gets a placeholder: carry "), "{log}");
    }
}

#[test]
fn kvm_by_policy() {
    if !std::path::Path::new("/dev/kvm").exists() {
        skip::skip("this machine has no /dev/kvm");
        return;
    }
    let two = Two::up();
    two.keeps("kvm_by_policy");
}
