//! Permission before resources: who may do nothing costs nothing, and nobody who waits for a file makes others wait.

mod lab;

use lab::{DPU_ADDR, Dpu, HOST_ADDR, Host, Lab, Machine, Running, bin, repository, shim};

const PORT: &str = "12121";

fn script(name: &str) -> String {
    repository().join("tests/admission").join(name).display().to_string()
}

/// udsproxyd on both machines, and a server on the host at /var/tmp/far.
struct Daemons {
    lab: Lab,
    host: Running,
    dpu: Running,
    _server: Running,
}

impl Daemons {
    #[track_caller]
    fn up(lab: Lab) -> Self {
        let server = lab.spawn(Host, &["/usr/bin/python3", &script("near.py"), "serve", "/var/tmp/far"]);
        server.wait_for("READY");
        let start = |machine: Machine, own: &str, peer: &str| {
            lab.spawn(machine, &[bin("udsproxyd"), "1", own, PORT, peer, PORT])
        };
        let (host, dpu) = (start(Host, HOST_ADDR, DPU_ADDR), start(Dpu, DPU_ADDR, HOST_ADDR));
        [&host, &dpu].iter().for_each(|daemon| daemon.wait_for("session up"));
        Self { lab, host, dpu, _server: server }
    }

    /// What a client on the DPU says.
    #[track_caller]
    fn near(&self, words: &[&str]) -> String {
        let (preload, script) = (format!("LD_PRELOAD={}", shim().display()), script("near.py"));
        let program = ["/usr/bin/env", &preload, "/usr/bin/python3", &script];
        self.lab.dpu(&[&program, words].concat()).ok()
    }
}

fn number(line: &str, name: &str) -> f64 {
    let mut words = line.split_whitespace();
    words.find(|word| *word == name).unwrap_or_else(|| panic!("no {name}: {line}"));
    words.next().and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no number behind {name}: {line}"))
}

#[test]
fn streams_do_not_wait_while_the_files_of_etc_farside_answer_slowly() {
    let lab = Lab::up();
    let slow: Vec<Running> = [Host, Dpu]
        .into_iter()
        .map(|machine| {
            let words = ["/usr/bin/python3", &script("slow_etc.py"), "/etc/farside", "/tmp/slow"];
            let slow = lab.spawn(machine, &words);
            slow.wait_for("MOUNTED");
            slow
        })
        .collect();
    let daemons = Daemons::up(lab);
    for machine in [Host, Dpu] {
        daemons.lab.sh(machine, "echo 2 >/tmp/slow").ok();
    }
    let said = daemons.near(&["beats", "/var/tmp/far", "12"]);
    println!("{said}");
    assert!(number(&said, "WORST") < 1.0, "{said}\n{}\n{}", daemons.host.said(), daemons.dpu.said());
    assert_eq!(number(&said, "FAILED"), 0.0, "{said}");
    drop(slow);
}
