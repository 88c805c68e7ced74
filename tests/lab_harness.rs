//! What the harness promises to the other tests.

mod lab;

use std::time::Duration;

use lab::{Dpu, Host, Lab};

#[test]
fn two_machines_that_reach_each_other_and_go_with_the_lab() {
    let lab = Lab::up();
    assert_eq!(lab.host(&["hostname"]).ok(), "host\n");
    assert_eq!(lab.dpu(&["sh", "-c", "exit 3"]).status.code(), Some(3));
    lab.write(Host, "/etc/farside/node.toml", "a");
    assert_eq!(lab.host(&["cat", "/etc/farside/node.toml"]).ok(), "a");
    lab.dpu(&["cat", "/etc/farside/node.toml"]).refused();
    assert_eq!(lab.run_with(Dpu, &[("A", "b c")], &["sh", "-c", "echo $A"]).ok(), "b c\n");

    let listener = lab.spawn(Host, &[lab::repository().join("tools/lab-tcp").to_str().unwrap(), "serve"]);
    let rtt = lab::repository().join("tools/lab-tcp");
    let rtt = [rtt.to_str().unwrap(), "rtt", "1"];
    lab::eventually("a round trip", Duration::from_secs(5), || lab.dpu(&rtt).status.success(), || listener.said());
    drop(listener);
    lab.dpu(&rtt).refused();
    assert_eq!(
        lab.host(&["pgrep", "-c", "-f", "lab-tcp serve"]).out(),
        "0\n",
        "a spawned command goes with its handle"
    );
}
