//! Whether every part of an offload lives: each by its own process, and by an answer of that very process.
//!
//! | part | alive when |
//! |---|---|
//! | a daemon | its pid has its start time, and that pid listens at the daemon's socket; libvirtd also answers virsh |
//! | a directory of the host | it is mounted, its mount.qtfs has its start time, and it answers a statfs(2) |
//! | another mount | it is there |
//!
//! Another process that answers in a daemon's place is no answer. Nothing is changed here.

use std::fmt;
use std::path::{Path, PathBuf};

use super::journal::{Journal, Made, Process, Space};
use super::machine::Machine;
use super::plan::{LIBVIRT_ASK, SPACE, socket_of};
use super::trouble::{Attempt, Trouble};

pub const MEND_BY_HAND: &str = "run `farside dpu down`, then `farside dpu up`";

/// What `farside dpu up` can do about a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cure {
    /// Start the daemon of this name again.
    Restart(String),
    /// Mount the host's directory there again.
    Remount(PathBuf),
    /// None: all of it must go down and up again.
    Anew,
}

/// A part that does not live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dead {
    pub what: String,
    pub cure: Cure,
}

impl fmt::Display for Dead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Whole,
    Down,
    /// Some part is dead, or `up` or `down` did not come to its end.
    Degraded,
}

/// Every dead part, in the order in which they were made.
pub fn dead_parts(machine: &impl Machine, journal: &Journal) -> Attempt<Vec<Dead>> {
    if machine.mounts_at(Space::Dpu, Path::new(SPACE))? == 0 {
        let what = "the mount namespace is gone: this machine has been started anew since".into();
        return Ok(vec![Dead { what, cure: Cure::Anew }]);
    }
    let mut dead = Vec::new();
    for made in &journal.entries {
        dead.extend(match made {
            Made::Process(process) => daemon(machine, &journal.rootfs, process),
            Made::Mount { space: Space::Offload, path, below, helper } => {
                mount(machine, path, machine.mounts_at(Space::Offload, path)? > *below, helper.as_ref())
            }
            _ => None,
        });
    }
    Ok(dead)
}

/// # Errors
/// A part is dead: the first one.
pub fn whole(machine: &impl Machine, journal: &Journal) -> Attempt<()> {
    match dead_parts(machine, journal)?.first() {
        None => Ok(()),
        Some(dead) => Err(Trouble::new(dead.to_string(), "see the logs in /var/log/farside")),
    }
}

fn daemon(machine: &impl Machine, rootfs: &Path, process: &Process) -> Option<Dead> {
    let Process { name, pid, .. } = process;
    if !machine.is_alive(process) {
        return Some(Dead { what: format!("{name} (pid {pid}) has ended"), cure: Cure::Restart(name.clone()) });
    }
    let socket = socket_of(name)?;
    let why = match machine.server_of(socket) {
        Some(server) if server == *pid => {
            let asked = (name == "libvirtd").then(|| machine.ask(rootfs, &LIBVIRT_ASK));
            format!("does not answer: {}", asked?.err()?)
        }
        Some(0) => format!("does not answer at {}", socket.display()),
        Some(other) => format!("does not serve {}: another process does (pid {other})", socket.display()),
        None => format!("does not serve {}: nobody does", socket.display()),
    };
    Some(Dead { what: format!("{name} (pid {pid}) {why}"), cure: Cure::Anew })
}

/// `helper`: none for a bind mount, and in journals of older versions.
fn mount(machine: &impl Machine, at: &Path, is_there: bool, helper: Option<&Process>) -> Option<Dead> {
    let again = helper.map_or(Cure::Anew, |_| Cure::Remount(at.into()));
    let (why, cure) = match helper {
        _ if !is_there => ("is not mounted any more".into(), again),
        Some(helper) if !machine.is_alive(helper) => {
            (format!("is dead, because its {} (pid {}) has ended", helper.name, helper.pid), again)
        }
        Some(_) => {
            let why = machine.mount_answers(at).err()?;
            (format!("does not answer: {why}; does the host's node run?"), Cure::Anew)
        }
        None => return None,
    };
    Some(Dead { what: format!("the mount {} {why}", at.display()), cure })
}

/// What `farside dpu status` says.
pub fn status(machine: &impl Machine) -> Attempt<(State, Vec<String>)> {
    let Some(text) = machine.load()? else { return Ok((State::Down, vec!["not up".into()])) };
    let journal = Journal::parse(&text)?;
    let of = format!("{}, for {} s", journal.rootfs.display(), machine.now().saturating_sub(journal.since));
    let dead = if journal.complete { dead_parts(machine, &journal)? } else { Vec::new() };
    let head = match (journal.complete, &dead[..]) {
        (false, _) => format!("unfinished: {of}; run `farside dpu down`, or `farside dpu up` again"),
        (true, []) => format!("up: {of}"),
        (true, dead) if dead.iter().any(|d| d.cure == Cure::Anew) => format!("degraded: {of}; {MEND_BY_HAND}"),
        (true, _) => format!("degraded: {of}; `farside dpu up` mends it"),
    };
    let state = if journal.complete && dead.is_empty() { State::Whole } else { State::Degraded };
    let mut lines = vec![head];
    lines.extend(dead.iter().map(|dead| format!("dead: {dead}")));
    let alive = journal.processes().filter(|process| machine.is_alive(process));
    lines.extend(alive.map(|process| format!("{} (pid {}) runs", process.name, process.pid)));
    let guests = machine.guests().into_iter();
    lines.extend(guests.map(|guest| format!("virtual machine {} (stand-in {})", guest.name, guest.process.pid)));
    Ok((state, lines))
}
