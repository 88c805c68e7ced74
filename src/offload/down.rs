//! `farside dpu down`: undoes what the journal says, last first.
//!
//! Every word is right after any crash: what was only intended is not there, and undoing it is nothing. An entry leaves
//! the journal once it is undone, so a `down` that failed goes on where it stopped.

use std::path::Path;

use super::journal::{Journal, Made, Space};
use super::machine::{Guest, Kind, Machine};
use super::plan::{MOUNT_HELPER, VOUCH_DIR};
use super::trouble::{Attempt, Trouble};
use crate::limits;

pub fn down(machine: &mut impl Machine, force: bool) -> Attempt<()> {
    let Some(text) = machine.load()? else {
        machine.say("not up: nothing to undo");
        return Ok(());
    };
    let journal = Journal::parse(&text)?;
    let guests = machine.guests();
    if !guests.is_empty() {
        if !force {
            let names: Vec<&str> = guests.iter().map(|g| g.name.as_str()).collect();
            let what = format!("virtual machines still run: {}", names.join(", "));
            return Err(Trouble::new(what, "shut them down, or destroy them with --force"));
        }
        for guest in &guests {
            destroy(machine, &journal, guest)?;
        }
    }
    undo(machine, journal)?;
    machine.say("down");
    Ok(())
}

/// Through libvirtd while it lives; else its stand-in's end is the guest's.
fn destroy(machine: &mut impl Machine, journal: &Journal, guest: &Guest) -> Attempt<()> {
    let asked = machine.ask(&journal.rootfs, &["/usr/bin/virsh", "-c", "qemu:///system", "destroy", &guest.name]);
    if asked.is_err() || machine.is_alive(&guest.process) {
        machine.stop(&guest.process, limits::OFFLOAD_STOP)?;
    }
    machine.say(&format!("destroyed {}", guest.name));
    Ok(())
}

pub fn undo(machine: &mut impl Machine, mut journal: Journal) -> Attempt<()> {
    journal.complete = false;
    while let Some(made) = journal.entries.last().cloned() {
        if let Made::Mount { space: Space::Dpu, path, .. } = &made {
            no_strangers(machine, path)?;
        }
        undo_one(machine, &made)?;
        journal.entries.pop();
        machine.save(&journal.text()?)?;
    }
    machine.forget()
}

fn undo_one(machine: &mut impl Machine, made: &Made) -> Attempt<()> {
    match made {
        Made::Process(process) => {
            if machine.is_alive(process) {
                machine.stop(process, limits::OFFLOAD_STOP)?;
                machine.say(&format!("stopped {}", process.name));
            }
            // Left there by a udsproxyd that was killed. Another daemon that has its pid by now serves its own.
            let socket = Path::new(VOUCH_DIR).join(process.pid.to_string());
            if machine.kind(&socket) != Kind::Missing && machine.server_of(&socket).is_none() {
                machine.remove_file(&socket)?;
            }
        }
        Made::Mount { space, path, below, .. } => unmount(machine, *space, path, *below)?,
        Made::File { path } => {
            if machine.kind(path) != Kind::Missing {
                machine.remove_file(path)?;
            }
        }
        Made::Dir { path } => {
            if machine.kind(path) == Kind::Dir && !machine.remove_dir(path)? {
                machine.say(&format!("left {}: something is in it", path.display()));
            }
        }
        Made::Tree { path } => match machine.kind(path) {
            Kind::Missing => {}
            Kind::Dir => machine.remove_tree(path)?,
            _ => machine.remove_file(path)?,
        },
        Made::Replaced { path, saved } => {
            if machine.kind(saved) != Kind::Missing {
                machine.rename(saved, path)?;
                machine.say(&format!("put back {}", path.display()));
            }
        }
    }
    Ok(())
}

fn unmount(machine: &mut impl Machine, space: Space, path: &Path, below: usize) -> Attempt<()> {
    let mut mounts = machine.mounts_at(space, path)?;
    let ours = mounts > below;
    while mounts > below {
        machine.unmount(space, path)?;
        mounts -= 1;
    }
    if ours {
        machine.say(&format!("unmounted {}", path.display()));
    }
    Ok(())
}

/// A process left in the namespace would keep all its mounts alive, out of everyone's sight. One of ours may be: a mount
/// helper whose `up` was killed while it dialled, and which has mounted since then. Its mount goes with the namespace.
fn no_strangers(machine: &mut impl Machine, handle: &Path) -> Attempt<()> {
    if handle != Path::new(super::plan::SPACE) {
        return Ok(());
    }
    let mut waited = std::time::Duration::ZERO;
    loop {
        let strangers = machine.strangers();
        if strangers.is_empty() {
            return Ok(());
        }
        let ours = strangers.iter().find(|p| p.name == MOUNT_HELPER);
        if let Some(helper) = ours.filter(|_| waited >= limits::OFFLOAD_LATE_MOUNT) {
            machine.stop(helper, limits::OFFLOAD_STOP)?;
            machine.say(&format!("stopped {MOUNT_HELPER} (pid {}), which came too late", helper.pid));
            continue;
        }
        if waited >= limits::OFFLOAD_STOP {
            let names: Vec<String> = strangers.iter().map(|p| format!("{} {}", p.pid, p.name)).collect();
            let what = format!("processes still run inside the offload: {}", names.join(", "));
            return Err(Trouble::new(what, "end them, then run `farside dpu down` again"));
        }
        machine.sleep(limits::OFFLOAD_POLL);
        waited += limits::OFFLOAD_POLL;
    }
}
