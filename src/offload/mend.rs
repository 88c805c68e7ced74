//! `farside dpu up` where the offload is up already: what is dead is named, and mended where that is simple.
//!
//! A daemon that has ended is started again, and a host's directory whose mount.qtfs has ended is mounted again. All else
//! is left alone, and then `up` fails with what to type.

use std::path::Path;

use super::health::{self, Cure, MEND_BY_HAND};
use super::journal::{Journal, Made, Space};
use super::machine::Machine;
use super::plan::Step;
use super::trouble::{Attempt, Trouble};
use super::up;

pub(super) fn mend(machine: &mut impl Machine, mut journal: Journal, rootfs: &Path, steps: &[Step]) -> Attempt<()> {
    if journal.rootfs != rootfs {
        let what = format!("the offload is up with another rootfs, {}", journal.rootfs.display());
        return Err(Trouble::new(what, "run `farside dpu down` first"));
    }
    let dead = health::dead_parts(machine, &journal)?;
    if dead.is_empty() {
        machine.say("already up");
        return Ok(());
    }
    dead.iter().for_each(|dead| machine.say(&format!("dead: {dead}")));
    if let Some(dead) = dead.iter().find(|dead| dead.cure == Cure::Anew) {
        return Err(Trouble::new(dead.to_string(), MEND_BY_HAND));
    }
    let has = |cure: &Cure| dead.iter().any(|dead| dead.cure == *cure);
    for step in steps {
        match step {
            Step::Qtfs { at, command, .. } if has(&Cure::Remount(at.clone())) => {
                remount(machine, &mut journal, at, command)?;
            }
            Step::Start(program) if has(&Cure::Restart(program.name.into())) => {
                // Only now, and only this one: a start that fails must leave the dead one in the journal.
                journal.entries.retain(|made| !matches!(made, Made::Process(p) if p.name == program.name));
                up::start(machine, &mut journal, program)?;
            }
            Step::Ready { program, .. } if has(&Cure::Restart((*program).into())) => {
                up::ready(machine, &journal, step)?;
            }
            _ => continue,
        }
        machine.say(&step.to_string());
    }
    health::whole(machine, &journal).map_err(|trouble| Trouble::new(trouble.what, MEND_BY_HAND))?;
    machine.say("up again");
    Ok(())
}

/// The dead mount goes at once, whoever still has a file of it open: such a file gives errors alone.
fn remount(machine: &mut impl Machine, journal: &mut Journal, at: &Path, command: &[String]) -> Attempt<()> {
    let below = journal.mount_at(at).map_or(0, |(below, _)| *below);
    for _ in below..machine.mounts_at(Space::Offload, at)? {
        machine.detach(Space::Offload, at)?;
    }
    let helper = machine.mount_qtfs(command)?;
    if let Some((_, known)) = journal.mount_at(at) {
        *known = Some(helper);
    }
    machine.save(&journal.text()?)
}
