//! What the kernel makes of a plan.

use super::caps;
use super::inheritance::{Inheritance, Limit};
use super::spawn::{Identity, Keeper, Plan, Report};

#[test]
fn a_user_with_too_many_processes_may_still_be_given_one_more() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: needs root to become somebody else");
        return;
    }
    let none = Limit { soft: 0, hard: 0 };
    let capabilities = caps::Sets { inheritable: 0, permitted: 0, bounding: 0, ambient: 0 };
    let plan = Plan {
        programs: vec![c"/bin/true".into()],
        only: None,
        argv: vec![c"true".into()],
        env: Vec::new(),
        own_pid: None,
        cwd: c"/".into(),
        umask: 0o22,
        inheritance: Inheritance {
            limits: vec![(u8::try_from(libc::RLIMIT_NPROC).unwrap(), none)],
            ..Inheritance::default()
        },
        identity: Some(Identity { uid: 65_534, gid: 65_534, groups: Vec::new(), capabilities }),
        no_new_privs: false,
        fds: Vec::new(),
    };
    let keeper = Keeper::start(plan).unwrap();
    let (started, ended) = (keeper.report(), keeper.report());
    assert!(matches!(started, Some(Report::Started { no_priority: false, .. })), "{started:?}");
    assert!(matches!(ended, Some(Report::Ended { wait_status: 0, .. })), "{ended:?}");
    keeper.wait();
}
