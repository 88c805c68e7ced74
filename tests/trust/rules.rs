//! Rules hold for what is there at that moment, and for what variables say.

use super::*;

fn rules(lab: &Lab, rules: &str) {
    lab.write(Host, "/etc/farside/peers.d/dpu.toml", &format!("keys = [\"{}\"]\n{rules}", key(lab, Dpu)));
}

/// tar runs what TAR_OPTIONS says, and Python what PYTHONSTARTUP names.
#[test]
fn a_rule_with_arguments_is_not_escaped_by_a_variable() {
    let lab = Lab::up();
    rules(
        &lab,
        "[[exec]]\nallow = '/usr/bin/tar'\nargs = ['-cf', '/dev/null', '/etc/hostname']\n\
         [[exec]]\nallow = '/usr/bin/printenv'\nargs = []\nenv = ['MINE']\n",
    );
    let _server = serve(&lab);
    let options = "--checkpoint=1 --checkpoint-action=exec=/usr/bin/touch${IFS}/tmp/ran";
    lab.run_with(
        Dpu,
        &[addr()[0], ("TAR_OPTIONS", options)],
        &[bin("rexec"), "tar", "-cf", "/dev/null", "/etc/hostname"],
    )
    .ok();
    nothing_ran(&lab);
    let callers =
        [addr()[0], ("MINE", "1"), ("LANG", "C"), ("TZ", "/tmp/zone"), ("HOME", "/tmp"), ("ALSA_CONFIG_PATH", "/x")];
    let said = lab.run_with(Dpu, &callers, &[bin("rexec"), "printenv"]).ok();
    let mut lines: Vec<&str> = said.lines().filter(|line| !line.starts_with("TERM=")).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["LANG=C", "MINE=1", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
    let said = lab.host(&[bin("farside"), "policy", "check", "dpu", "exec", "/usr/bin/printenv"]).ok();
    assert!(said.contains("with MINE, plain values of LANG TERM TZ COLUMNS LINES LC_*, and PATH=/usr/sbin:"), "{said}");
}

/// The link `/var/tmp/way` leads to `a`, then to `b`, then to itself. Nobody tells the daemons.
#[test]
fn a_deny_rule_is_about_what_its_path_is_at_that_moment() {
    let lab = Lab::up();
    let denied = "deny = '/var/tmp/way/**'";
    rules(
        &lab,
        &format!(
            "[[exec]]\n{denied}\n[[exec]]\nallow = '/var/tmp/*/*'\n[[uds]]\nallow = '/var/tmp/*/n'\n[[uds]]\n{denied}\n\
             [[uds]]\nallow = '/var/tmp/**'\n[[fs]]\ndeny = '/var/tmp/way'\n[[fs]]\nallow = '/var/tmp'\naccess = 'ro'\n"
        ),
    );
    let node = "[[export]]\npath = '/var/tmp'\n[uds]\nrules = ['deny:/var/tmp/other/way']\n";
    lab.write(Host, "/etc/farside/node.toml", node);
    let make = "cd /var/tmp; mkdir a b other; for d in a b; do cp /usr/bin/true $d/tool; done; ln -s a way; ln -s ../a other/way";
    lab.sh(Host, make).ok();
    let listen = "import os, socket, threading\nfor path in ('a/s', 'b/s', 'a/n', 'b/n'):\n l = socket.socket(socket.AF_UNIX)\n \
                  l.bind('/var/tmp/' + path); l.listen(64); os.dup(l.fileno())\nprint('READY', flush=True)\n\
                  threading.Event().wait()";
    let sockets = lab.spawn(Host, &["/usr/bin/python3", "-c", listen]);
    sockets.wait_for("READY");
    let server = serve(&lab);
    let host = lab.spawn(Host, &[bin("engine"), "4", "1", HOST_ADDR, UDS, DPU_ADDR, UDS]);
    let dpu = lab.spawn(Dpu, &[bin("udsproxyd"), "1", DPU_ADDR, UDS, HOST_ADDR, UDS]);
    dpu.wait_for("session up");
    host.wait_for("session up");
    let preload = format!("LD_PRELOAD={}", shim().display());
    let connect = |path: &str| {
        let ask = format!("import socket\nprint(socket.socket(socket.AF_UNIX).connect_ex('/var/tmp/{path}'))");
        lab.dpu(&["/usr/bin/env", &preload, "/usr/bin/python3", "-c", &ask]).ok().trim_end() == "0"
    };
    lab.dpu(&["mkdir", "-p", "/mnt/there"]).ok();
    let mounts = |dir: &str| {
        let path = format!("/var/tmp/{dir}");
        let at = format!("host={HOST_ADDR}:{UDS}");
        let mounted = lab.dpu(&[bin("mount_qtfs"), &path, "/mnt/there", "-o", &at]).status.success();
        mounted && lab.dpu(&["umount", "/mnt/there"]).status.success()
    };
    let runs = |dir: &str| rexec(&lab, &[&format!("/var/tmp/{dir}/tool")]).status.success();
    for (round, leads_to) in ["a", "b", "a", "way"].into_iter().enumerate() {
        // The rule of node.toml is about another link, and decides of the sockets `n`, which peers.d allows.
        lab.sh(Host, &format!("cd /var/tmp; ln -sfn {leads_to} way; ln -sfn ../{leads_to} other/way")).ok();
        if leads_to == "way" {
            lab.sh(Host, "cd /var/tmp/other; ln -sfn way way").ok();
        }
        for dir in ["a", "b"] {
            let free = leads_to != dir && leads_to != "way";
            let seen = [runs(dir), connect(&format!("{dir}/s")), connect(&format!("{dir}/n")), mounts(dir)];
            assert_eq!(seen, [free; 4], "round {round}, {dir}: {}\n{}", host.said(), server.said());
        }
    }
    let said = lab.host(&[bin("farside"), "policy", "check", "dpu", "exec", "/var/tmp/a/tool"]).out();
    assert!(said.contains("the symbolic links of \"/var/tmp/way\" cannot be followed: Too many"), "{said}");
}
