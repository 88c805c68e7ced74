//! Bringing the offload up and down on the recording twin of a machine: nothing is left, whenever the plug is pulled.

use std::path::Path;

use super::down::down;
use super::health::{State, status};
use super::journal::{Journal, Process};
use super::machine::{Guest, Machine as _};
use super::plan::{self, tests as sample};
use super::rehearsal::{Crash, Rehearsal};
use super::trouble::Attempt;
use super::up::up;

fn rehearse(machine: &mut Rehearsal) -> Attempt<()> {
    let steps = plan::steps(&sample::offload(), &sample::site()).unwrap();
    up(machine, Path::new("/another_rootfs"), &steps)
}

fn assert_as_before(machine: &Rehearsal, when: &str) {
    let fresh = Rehearsal::new();
    let left: Vec<_> = machine.nodes.iter().filter(|(path, node)| fresh.nodes.get(*path) != Some(node)).collect();
    let lost: Vec<_> = fresh.nodes.iter().filter(|(path, node)| machine.nodes.get(*path) != Some(node)).collect();
    assert!(left.is_empty() && lost.is_empty(), "{when}: left {left:?}, lost {lost:?}");
    assert!(machine.mounts.is_empty(), "{when}: mounts left {:?}", machine.mounts);
    assert!(machine.running.is_empty(), "{when}: running {:?}", machine.running);
    assert!(machine.helpers.is_empty(), "{when}: running {:?}", machine.helpers);
    assert_eq!(machine.journal, None, "{when}: a journal is left");
}

#[test]
fn up_then_down_leaves_nothing() {
    let mut machine = Rehearsal::new();
    rehearse(&mut machine).unwrap();
    assert_eq!(machine.started, ["udsproxyd", "virtlogd", "libvirtd"]);
    down(&mut machine, false).unwrap();
    assert_as_before(&machine, "after down");
}

#[test]
fn a_crash_at_any_word_of_up_is_undone_by_down_and_by_the_next_up() {
    let mut whole = Rehearsal::new();
    rehearse(&mut whole).unwrap();
    for at in 0..whole.words() {
        for crash in [Crash::Before(at), Crash::After(at)] {
            let mut machine = Rehearsal::new();
            machine.crash = Some(crash);
            // A crash on the very last word may come after all was done.
            let _ = rehearse(&mut machine);
            machine.power_back();
            down(&mut machine, false).unwrap_or_else(|e| panic!("{crash:?}: {e}"));
            assert_as_before(&machine, &format!("{crash:?}, down"));

            machine.words = 0;
            machine.crash = Some(crash);
            let _ = rehearse(&mut machine);
            machine.power_back();
            rehearse(&mut machine).unwrap_or_else(|e| panic!("{crash:?}: {e}"));
            down(&mut machine, false).unwrap();
            assert_as_before(&machine, &format!("{crash:?}, up and down"));
        }
    }
}

#[test]
fn a_crash_at_any_word_of_down_is_finished_by_the_next_down() {
    let mut whole = Rehearsal::new();
    rehearse(&mut whole).unwrap();
    let before = whole.words();
    down(&mut whole, false).unwrap();
    for at in before..whole.words() {
        for crash in [Crash::Before(at), Crash::After(at)] {
            let mut machine = Rehearsal::new();
            rehearse(&mut machine).unwrap();
            machine.crash = Some(crash);
            let _ = down(&mut machine, false);
            machine.power_back();
            down(&mut machine, false).unwrap_or_else(|e| panic!("{crash:?}: {e}"));
            assert_as_before(&machine, &format!("{crash:?}"));
        }
    }
}

#[test]
fn a_daemon_that_does_not_come_up_is_named_with_its_last_words_and_all_is_undone() {
    let mut machine = Rehearsal::new();
    machine.stillborn = Some("libvirtd");
    let said = rehearse(&mut machine).unwrap_err().to_string();
    assert!(said.contains("libvirtd") && said.contains("last words"), "{said}");
    assert_as_before(&machine, "after the failure");
}

#[test]
fn up_twice_says_so_and_starts_again_only_what_died() {
    let mut machine = Rehearsal::new();
    rehearse(&mut machine).unwrap();
    let words = machine.words();
    rehearse(&mut machine).unwrap();
    assert_eq!((machine.words(), machine.said.last().unwrap().as_str()), (words, "already up"));

    machine.running.retain(|p| p.name != "libvirtd");
    machine.started.clear();
    rehearse(&mut machine).unwrap();
    assert_eq!(machine.started, ["libvirtd"]);
    let journal = Journal::parse(machine.journal.as_ref().unwrap()).unwrap();
    assert!(journal.complete);
    assert_eq!(journal.processes().filter(|p| p.name == "libvirtd").count(), 1);
    down(&mut machine, false).unwrap();
    assert_as_before(&machine, "after a restart");
}

#[test]
fn after_a_reboot_up_begins_anew_and_down_clears_the_disk() {
    let mut machine = Rehearsal::new();
    rehearse(&mut machine).unwrap();
    machine.reboot();
    machine.started.clear();
    rehearse(&mut machine).unwrap();
    assert_eq!(machine.started, ["udsproxyd", "virtlogd", "libvirtd"]);
    machine.reboot();
    down(&mut machine, false).unwrap();
    assert_as_before(&machine, "after a reboot and down");
}

#[test]
fn running_guests_hold_down_back_by_name_unless_forced() {
    let mut machine = Rehearsal::new();
    rehearse(&mut machine).unwrap();
    let process = Process { name: "rexec".into(), pid: 99, start: 1, boot: "b".into() };
    machine.running.push(process.clone());
    machine.guests.push(Guest { name: "vm1".into(), process });
    let said = down(&mut machine, false).unwrap_err().to_string();
    assert!(said.contains("vm1") && said.contains("--force"), "{said}");
    down(&mut machine, true).unwrap();
    assert_as_before(&machine, "after down --force");
}

#[test]
fn an_emulator_of_other_content_is_put_back() {
    let mut machine = Rehearsal::new();
    let path = Path::new("/another_rootfs/usr/bin/qemu-system-x86_64");
    rehearse(&mut machine).unwrap();
    assert_ne!(machine.read(path).unwrap(), b"a program");
    down(&mut machine, false).unwrap();
    assert_eq!(machine.read(path).unwrap(), b"a program");
}

const UDS: &str = "/run/farside/uds.sock";
const MOUNTED: &str = "/another_rootfs/home/VMs";

fn state(machine: &Rehearsal) -> (State, String) {
    let (state, lines) = status(machine).unwrap();
    (state, lines.join("\n"))
}

#[test]
fn status_is_whole_only_with_every_part() {
    let mut machine = Rehearsal::new();
    assert_eq!(state(&machine), (State::Down, "not up".into()));
    rehearse(&mut machine).unwrap();
    assert_eq!(state(&machine).0, State::Whole, "{}", state(&machine).1);
    for name in ["udsproxyd", "virtlogd", "libvirtd"] {
        let at = machine.running.iter().position(|p| p.name == name).unwrap();
        let mut gone = machine.running.remove(at);
        let (degraded, said) = state(&machine);
        assert!(degraded == State::Degraded && said.contains(&format!("dead: {name} (pid {}) has ended", gone.pid)));
        // Somebody else got its pid since.
        gone.start += 1;
        machine.running.insert(at, gone.clone());
        assert_eq!(state(&machine).0, State::Degraded, "{}", state(&machine).1);
        gone.start -= 1;
        machine.running[at] = gone;
        assert_eq!(state(&machine).0, State::Whole);
    }
    machine.mounts.remove(&("offload", "/another_rootfs/etc".into()));
    let (degraded, said) = state(&machine);
    assert!(degraded == State::Degraded && said.contains("the mount /another_rootfs/etc is not mounted"), "{said}");
}

#[test]
fn another_daemon_at_the_socket_is_no_answer() {
    let mut machine = Rehearsal::new();
    machine.usurper = Some((UDS.into(), 77));
    let said = rehearse(&mut machine).unwrap_err().to_string();
    assert!(said.contains("another daemon (pid 77) serves /run/farside/uds.sock; stop it"), "{said}");
    machine.usurper = None;
    assert_as_before(&machine, "after a refused up");

    rehearse(&mut machine).unwrap();
    machine.usurper = Some((UDS.into(), 77));
    let (degraded, said) = state(&machine);
    assert!(degraded == State::Degraded && said.contains("another process does (pid 77)"), "{said}");
    let said = rehearse(&mut machine).unwrap_err().to_string();
    assert!(said.contains("pid 77") && said.ends_with("run `farside dpu down`, then `farside dpu up`"), "{said}");
    down(&mut machine, false).unwrap();
    assert_as_before(&machine, "after a usurped socket");
}

#[test]
fn a_daemon_that_dies_while_another_one_answers_is_not_up() {
    let mut machine = Rehearsal::new();
    machine.stillborn = Some("virtlogd");
    let steps = plan::steps(&sample::offload(), &sample::site()).unwrap();
    let steps: Vec<_> = steps.into_iter().filter(|step| !matches!(step, plan::Step::Alone { .. })).collect();
    machine.usurper = Some((plan::socket_of("virtlogd").unwrap().into(), 77));
    let said = up(&mut machine, Path::new("/another_rootfs"), &steps).unwrap_err().to_string();
    assert!(said.contains("virtlogd does not come up: it has ended") && said.contains("last words"), "{said}");
    assert_as_before(&machine, "after the failure");
}

#[test]
fn a_dead_mount_is_named_and_mounted_again() {
    let mut machine = Rehearsal::new();
    rehearse(&mut machine).unwrap();
    let dead = machine.helpers.remove(Path::new(MOUNTED)).unwrap();
    let (degraded, said) = state(&machine);
    let line = format!("dead: the mount {MOUNTED} is dead, because its mount.qtfs (pid {}) has ended", dead.pid);
    assert!(degraded == State::Degraded && said.contains(&line), "{said}");
    machine.said.clear();
    rehearse(&mut machine).unwrap();
    assert!(machine.said.contains(&line) && !machine.said.contains(&"already up".into()), "{:?}", machine.said);
    assert_eq!(machine.mounts[&("offload", MOUNTED.into())], 1, "not one upon the other");
    assert_eq!(state(&machine).0, State::Whole, "{}", state(&machine).1);

    machine.silent = Some(MOUNTED.into());
    let said = rehearse(&mut machine).unwrap_err().to_string();
    assert!(said.contains("not connected") && said.contains("`farside dpu down`, then"), "{said}");
    down(&mut machine, false).unwrap();
    assert_as_before(&machine, "after a silent mount");
}

#[test]
fn a_repair_that_fails_leaves_the_dead_part_known() {
    let mut machine = Rehearsal::new();
    rehearse(&mut machine).unwrap();
    let before = machine.words();
    machine.running.retain(|p| p.name == "udsproxyd");
    machine.helpers.clear();
    let mut whole = 0;
    for at in before.. {
        machine.crash = Some(Crash::Before(at));
        machine.words = before;
        let done = rehearse(&mut machine).is_ok();
        machine.power_back();
        if done {
            whole = at;
            break;
        }
        assert_eq!(state(&machine).0, State::Degraded, "{at}: {}", state(&machine).1);
        machine.running.retain(|p| p.name == "udsproxyd");
        machine.helpers.clear();
    }
    assert!(whole > before && state(&machine).0 == State::Whole, "{}", state(&machine).1);
    down(&mut machine, false).unwrap();
    assert_as_before(&machine, "after repairs");
}
