//! Both sides in one go: over an ssh that only runs what it is told, and over a real one.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::machines::{FARSIDE, Machine, Said};

/// Writes down what it was called with, and runs the last word as the other machine's shell would.
fn fake_ssh(dir: &Path, other: &Machine) {
    let exports: String =
        other.env().iter().map(|(name, path)| format!("export {name}='{}'\n", path.display())).collect();
    let bin = Path::new(FARSIDE).parent().unwrap();
    let script = format!(
        "#!/bin/sh\nfor word; do printf '<%s>' \"$word\" >>'{0}/said'; last=$word; done\necho >>'{0}/said'\n{exports}\
         PATH='{1}':/usr/bin:/bin\n[ ! -e '{0}/broken' ] || exit 255\necho 'Last login: never'\nexec sh -c \"$last\"\n",
        dir.display(),
        bin.display()
    );
    executable(&dir.join("ssh"), &script);
}

fn executable(path: &Path, script: &str) {
    fs::write(path, script).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn both_sides_trust_each_other_afterwards() {
    let (host, dpu) = (Machine::new("host"), Machine::new("dpu"));
    dpu.key();
    let bin = dpu.path("bin");
    fs::create_dir(&bin).unwrap();
    fake_ssh(&bin, &host);
    let typed = "farside enrol root@host --name host --allow exec,fs --here uds";
    let said = dpu.shell_with_path(&bin, typed).ok();
    assert_eq!(said.matches("is trusted: SHA256:").count(), 2, "{said}");
    let called = fs::read_to_string(bin.join("said")).unwrap();
    let lines: Vec<&str> = called.lines().collect();
    assert_eq!(lines[0], "<-T><--><root@host><farside key>", "no option that would weaken ssh's own checks");
    let line = dpu.key();
    let name = line.split(' ').nth(2).unwrap();
    assert_eq!(lines[1], format!("<-T><--><root@host><farside trust {name} '{line}' --allow exec,fs>"));
    assert!(dpu.farside(&["peers"]).ok().contains("uds ("));
    let there = host.farside(&["peers"]).ok();
    assert!(there.contains("exec (1 rule), fs (1 rule)") && there.contains(name), "{there}");
    // Again: nothing to do, and that is said.
    let said = dpu.shell_with_path(&bin, typed).ok();
    assert_eq!(said.matches("is trusted already").count(), 2, "{said}");
}

#[test]
fn what_ssh_could_take_for_an_option_is_refused() {
    let dpu = Machine::new("dpu");
    for destination in ["-oProxyCommand=id", "a b", ""] {
        let said = dpu.farside(&["enrol", "--", destination]).refused();
        assert!(said.contains("no destination for ssh"), "{said}");
    }
}

#[test]
fn a_side_that_fails_leaves_the_line_to_type() {
    let (host, dpu) = (Machine::new("host"), Machine::new("dpu"));
    dpu.key();
    let bin = dpu.path("bin");
    fs::create_dir(&bin).unwrap();
    fake_ssh(&bin, &host);
    // The other machine trusts another key under this machine's name already.
    let name = dpu.key().split(' ').nth(2).unwrap().to_owned();
    host.farside(&["trust", &name, &Machine::new("third").key()]).ok();
    let said = dpu.shell_with_path(&bin, "farside enrol host --name other").stderr;
    let last = said.lines().last().unwrap();
    assert!(last.contains("type there: farside trust") && said.contains("--add"), "{said}");
    fs::write(bin.join("broken"), "").unwrap();
    let said = dpu.shell_with_path(&bin, "farside enrol host").refused();
    assert!(said.contains("`farside key` failed there"), "{said}");
}

/// An sshd on loopback, and a client's configuration that knows it or does not.
struct Sshd {
    child: Child,
    dir: PathBuf,
    port: u16,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Sshd {
    fn start(dir: PathBuf, other: &Machine) -> Self {
        fs::create_dir(&dir).unwrap();
        let shown = dir.display();
        for key in ["server", "client"] {
            let file = dir.join(key);
            let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&file).status();
            assert!(made.unwrap().success(), "ssh-keygen");
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let env: String = other.env().iter().map(|(name, path)| format!(" {name}={}", path.display())).collect();
        let bin = Path::new(FARSIDE).parent().unwrap().display();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {shown}/server\nPidFile none\nUsePAM no\nStrictModes no\n\
             PermitRootLogin yes\nPasswordAuthentication no\nAuthorizedKeysFile {shown}/client.pub\n\
             SetEnv PATH={bin}:/usr/bin:/bin{env}\n"
        );
        fs::write(dir.join("sshd_config"), config).unwrap();
        let client = format!(
            "Port {port}\nIdentityFile {shown}/client\nIdentitiesOnly yes\nUserKnownHostsFile {shown}/known\n\
             GlobalKnownHostsFile /dev/null\nBatchMode yes\n"
        );
        fs::write(dir.join("ssh_config"), client).unwrap();
        executable(&dir.join("ssh"), &format!("#!/bin/sh\nexec /usr/bin/ssh -F '{shown}/ssh_config' \"$@\"\n"));
        let _ = fs::create_dir("/run/sshd");
        let log = fs::File::create(dir.join("log")).unwrap();
        let mut sshd = Command::new("/usr/sbin/sshd");
        sshd.args(["-D", "-e", "-f"])
            .arg(dir.join("sshd_config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let sshd = Self { child: sshd.spawn().unwrap(), dir, port };
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", sshd.port)).is_err() {
            assert!(Instant::now() < deadline, "sshd does not answer: {}", sshd.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        sshd
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

#[test]
fn a_real_ssh_does_it_and_a_strange_host_key_stops_it() {
    let root = nix::unistd::geteuid().is_root();
    if !root || !Path::new("/usr/sbin/sshd").exists() {
        crate::skip::skip("needs root, and sshd (tools/setup installs it)");
        return;
    }
    let (host, dpu) = (Machine::new("host"), Machine::new("dpu"));
    dpu.key();
    let sshd = Sshd::start(dpu.path("ssh"), &host);
    let enrol = || -> Said { dpu.shell_with_path(&sshd.dir, "farside enrol root@127.0.0.1 --name host --allow uds") };
    let said = enrol();
    assert!(said.stderr.contains("Host key verification failed"), "{said:?} {}", sshd.log());
    assert!(dpu.farside(&["peers"]).ok().contains("nobody"), "nobody is trusted on a stranger's word");
    let key = fs::read_to_string(sshd.dir.join("server.pub")).unwrap();
    fs::write(sshd.dir.join("known"), format!("[127.0.0.1]:{} {key}", sshd.port)).unwrap();
    let said = enrol();
    assert!(said.stdout.matches("is trusted: SHA256:").count() == 2, "{said:?} {}", sshd.log());
    assert!(host.farside(&["peers"]).ok().contains("uds ("));
}
