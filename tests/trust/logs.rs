//! What a peer or a user of this machine can make a log say, and how often.

use super::*;

/// Connects to a path so many times, one after the other, and prints the last errno.
fn connects(path: &str, times: u32) -> String {
    format!(
        "import socket\nfor _ in range({times}):\n s = socket.socket(socket.AF_UNIX); no = s.connect_ex('{path}'); s.close()\nprint(no)"
    )
}

fn through_the_shim(lab: &Lab, path: &str, times: u32) -> String {
    let preload = format!("LD_PRELOAD={}", shim().display());
    lab.dpu(&["/usr/bin/env", &preload, "/usr/bin/python3", "-c", &connects(path, times)]).ok().trim_end().into()
}

struct Both {
    host: Running,
    dpu: Running,
    _listener: Running,
}

/// A session, and a socket of the host's at /var/tmp/s.
fn both(lab: &Lab, node: &str) -> Both {
    lab.write(Host, "/etc/farside/node.toml", node);
    let listen = "import socket\nl = socket.socket(socket.AF_UNIX)\nl.bind('/var/tmp/s')\nl.listen(4096)\n\
                  print('READY', flush=True)\nwhile True: l.accept()";
    let listener = lab.spawn(Host, &["/usr/bin/python3", "-c", listen]);
    listener.wait_for("READY");
    let host = lab.spawn(Host, &[bin("engine"), "4", "1", HOST_ADDR, UDS, DPU_ADDR, UDS]);
    let dpu = lab.spawn(Dpu, &[bin("udsproxyd"), "1", DPU_ADDR, UDS, HOST_ADDR, UDS]);
    dpu.wait_for("session up");
    host.wait_for("session up");
    Both { host, dpu, _listener: listener }
}

fn lines(running: &Running, part: &str) -> usize {
    running.said().lines().filter(|line| line.contains(part)).count()
}

#[test]
fn what_is_allowed_is_no_line_of_the_usual_log() {
    let lab = Lab::up();
    let both = both(&lab, "");
    assert_eq!(through_the_shim(&lab, "/var/tmp/s", 300), "0");
    let (host, dpu) = (lines(&both.host, "/var/tmp/s"), lines(&both.dpu, "/var/tmp/s"));
    assert_eq!((host, dpu), (0, 0), "{}", both.host.said());
}

#[test]
fn refusals_are_counted_and_not_all_said() {
    let lab = Lab::up();
    lab.write(Host, "/etc/farside/peers.d/dpu.toml", &format!("keys = [\"{}\"]\n", key(&lab, Dpu)));
    // Others than root may connect to the daemon's socket, and not this one.
    lab.write(Dpu, "/etc/farside/node.toml", "[local]\nusers = ['daemon']\n");
    let both = both(&lab, "");
    // A peer without the right.
    assert_eq!(through_the_shim(&lab, "/var/tmp/s", 500), "13");
    let said = lines(&both.host, "no uds rule");
    assert!((1..=20).contains(&said), "{said} lines:\n{}", both.host.said());
    // A user of this machine who may not ask.
    let ask = connects("/run/farside/uds.sock", 2000).replace("AF_UNIX)", "AF_UNIX, socket.SOCK_SEQPACKET)");
    lab.dpu(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", &ask]).ok();
    let said = lines(&both.dpu, "may not ask");
    assert!((1..=20).contains(&said), "{said} lines:\n{}", both.dpu.said());
    // What was left out is told when the time of silence is over, with the next one or without.
    let told = || lines(&both.dpu, "left out") > 0;
    eventually("the counts", Duration::from_secs(25), told, || both.host.said() + &both.dpu.said());
}

#[test]
fn an_audit_log_has_a_line_for_each_operation() {
    let lab = Lab::up();
    let key = key(&lab, Dpu);
    let rules = "[[exec]]\nallow = '/usr/bin/true'\n[[uds]]\nallow = '/var/tmp/s'\n[[fs]]\nallow = '/home/VMs'\naccess = 'ro'\n";
    lab.write(Host, "/etc/farside/peers.d/dpu.toml", &format!("keys = [\"{key}\"]\n{rules}"));
    let both = both(&lab, "[[export]]\npath = '/home/VMs'\n[log]\naudit = '/var/tmp/audit'\n");
    assert_eq!(through_the_shim(&lab, "/var/tmp/s", 200), "0");
    assert_eq!(through_the_shim(&lab, "/var/tmp/t", 1), "2");
    let audit = || lab.read(Host, "/var/tmp/audit");
    let count = |part: &str| audit().lines().filter(|line| line.contains(part)).count();
    let ready = || count("uds /var/tmp/s: allowed") == 200;
    eventually("200 lines", Duration::from_secs(5), ready, audit);
    assert_eq!(count("peer=dpu uid=0 uds /var/tmp/s: allowed by /etc/farside/peers.d/dpu.toml:5 (uds rule 1)"), 200);
    let mode = lab.host(&["stat", "-c", "%a", "/var/tmp/audit"]).ok();
    assert_eq!(mode.trim(), "600");
    // Reopened by HUP, as logrotate wants it.
    lab.host(&["mv", "/var/tmp/audit", "/var/tmp/audit.1"]).ok();
    let hup = || {
        lab.host(&["pkill", "-HUP", "-x", "engine"]).ok();
        lab.host(&["test", "-e", "/var/tmp/audit"]).status.success()
    };
    eventually("a new file", Duration::from_secs(5), hup, || both.host.said());
    lab.dpu(&["mkdir", "-p", "/mnt/there"]).ok();
    let mount = |dir: &str| lab.dpu(&[bin("mount_qtfs"), dir, "/mnt/there", "-o", &format!("host={HOST_ADDR}:{UDS}")]);
    mount("/home/VMs").ok();
    lab.dpu(&["umount", "/mnt/there"]).ok();
    mount("/home").refused();
    let said = || audit().contains("fs /home/VMs: allowed") && audit().contains("fs /home: refused");
    eventually("the mounts", Duration::from_secs(5), said, audit);
}

/// Eighty programs that connect to a daemon with seventy fds, and ask nothing.
#[test]
fn a_want_of_fds_is_said_when_it_begins_and_when_it_ends() {
    let lab = Lab::up();
    let daemon = [bin("udsproxyd"), "1", DPU_ADDR, UDS, HOST_ADDR, UDS];
    let dpu = lab.spawn(Dpu, &[&["prlimit", "--nofile=70:70", "--"][..], &daemon].concat());
    dpu.wait_for("serving on");
    let hold = "import socket, time\ndef one():\n s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n \
                s.connect('/run/farside/uds.sock')\n return s\nall = [one() for _ in range(80)]\ntime.sleep(3)";
    lab.dpu(&["/usr/bin/python3", "-c", hold]).ok();
    assert_eq!(lines(&dpu, "cannot be accepted"), 1, "{}", dpu.said());
    let again = || {
        lab.dpu(&["/usr/bin/python3", "-c", &connects("/run/farside/uds.sock", 1).replace("X)", "X, 5)")]).ok();
        lines(&dpu, "accepted again") == 1
    };
    eventually("the end is said", Duration::from_secs(15), again, || dpu.said());
}
