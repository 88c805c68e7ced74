//! `farside dpu up`: takes the plan's steps one by one, each written to the journal before it is done.
//!
//!   Absent ──up──▶ Unfinished ──last step──▶ Complete
//!                      │ failure, or the next `up` after a crash: undone first
//!                      ▼
//!                    Absent

use std::path::Path;
use std::time::Duration;

use super::down;
use super::health;
use super::journal::{Journal, Made, Space};
use super::machine::{Kind, Machine, Program};
use super::mend;
use super::plan::{SPACE, Step};
use super::trouble::{Attempt, Trouble};
use crate::limits;

/// Where a file is kept that one of ours stands in for.
const SAVED: &str = "farside-saved";

pub fn up(machine: &mut impl Machine, rootfs: &Path, steps: &[Step]) -> Attempt<()> {
    match machine.load()?.map(|text| Journal::parse(&text)).transpose()? {
        None => {}
        Some(journal) if !journal.complete => {
            machine.say("an earlier `up` did not come to its end: undoing it first");
            down::undo(machine, journal)?;
        }
        // The journal outlives a reboot, mounts do not.
        Some(journal) if machine.mounts_at(Space::Dpu, Path::new(SPACE))? == 0 => {
            machine.say("this machine has been started anew since: undoing what is left");
            down::undo(machine, journal)?;
        }
        Some(journal) => return mend::mend(machine, journal, rootfs, steps),
    }
    let mut journal = Journal::new(rootfs.into(), machine.now());
    machine.save(&journal.text()?)?;
    for step in steps {
        if let Err(trouble) = take(machine, &mut journal, step) {
            return Err(give_up(machine, journal, &step.to_string(), trouble));
        }
    }
    // One that answered when it was started may have died since.
    if let Err(trouble) = health::whole(machine, &journal) {
        return Err(give_up(machine, journal, "every part lives", trouble));
    }
    journal.complete = true;
    machine.save(&journal.text()?)?;
    machine.say("up");
    Ok(())
}

/// The first failure is the one to read; what could not be undone stays in the journal for `down`.
fn give_up(machine: &mut impl Machine, journal: Journal, step: &str, trouble: Trouble) -> Trouble {
    machine.say(&format!("failed: {step}; undoing what was done"));
    if let Err(second) = down::undo(machine, journal) {
        machine.say(&format!("undoing failed too: {second}; run `farside dpu down`"));
    }
    trouble
}

/// One step; says its line when there was something to do.
fn take(machine: &mut impl Machine, journal: &mut Journal, step: &Step) -> Attempt<()> {
    let done = match step {
        Step::Reach(peer) => machine.reach(peer).map(|_| true)?,
        Step::Alone { socket, advice } => alone(machine, socket, advice)?,
        Step::Rootfs(dir) => check_rootfs(machine, dir)?,
        Step::Dir { path, mode } => dir(machine, journal, path, *mode)?,
        Step::File { path, mode, bytes } => file(machine, journal, path, *mode, bytes)?,
        Step::MountPoint(path) => {
            let missing = machine.kind(path) == Kind::Missing;
            missing && file(machine, journal, path, 0o644, &[])?
        }
        Step::Leaves(path) => {
            if machine.kind(path) == Kind::Missing {
                intend(machine, journal, Made::Tree { path: path.into() })?;
            }
            false
        }
        Step::Scratch(path) => scratch(machine, journal, path)?,
        Step::Private(path) => {
            mount(machine, journal, Space::Dpu, path, |m| m.make_private(path))?;
            true
        }
        Step::Space(handle) => {
            mount(machine, journal, Space::Dpu, handle, |m| m.make_space(handle))?;
            true
        }
        Step::Bind { from, to, recursive } => {
            mount(machine, journal, Space::Offload, to, |m| m.bind(from, to, *recursive))?;
            true
        }
        Step::Qtfs { at, command, .. } => {
            let mut helper = None;
            mount(machine, journal, Space::Offload, at, |m| {
                helper = Some(m.mount_qtfs(command)?);
                Ok(())
            })?;
            if let Some((_, known)) = journal.mount_at(at) {
                *known = helper;
            }
            machine.save(&journal.text()?)?;
            true
        }
        Step::Start(program) => {
            start(machine, journal, program)?;
            true
        }
        Step::Ready { .. } => {
            ready(machine, journal, step)?;
            true
        }
    };
    if done {
        machine.say(&step.to_string());
    }
    Ok(())
}

/// Intent before action: the journal is on the disk before the machine changes.
fn intend(machine: &mut impl Machine, journal: &mut Journal, made: Made) -> Attempt<()> {
    journal.entries.push(made);
    machine.save(&journal.text()?)
}

fn alone(machine: &mut impl Machine, socket: &Path, advice: &str) -> Attempt<bool> {
    if let Some(pid) = machine.server_of(socket) {
        let what = format!("another daemon (pid {pid}) serves {}", socket.display());
        return Err(Trouble::new(what, advice));
    }
    if let Some(guest) = machine.guests().first() {
        let what = format!(
            "the virtual machine '{}' of this machine's own libvirtd still runs (pid {})",
            guest.name, guest.process.pid
        );
        return Err(Trouble::new(what, "shut it down first"));
    }
    Ok(true)
}

fn check_rootfs(machine: &mut impl Machine, rootfs: &Path) -> Attempt<bool> {
    for program in ["usr/sbin/libvirtd", "usr/sbin/virtlogd", "usr/bin/virsh"] {
        if machine.kind(&rootfs.join(program)) == Kind::Missing {
            let what = format!("{} is missing", rootfs.join(program).display());
            return Err(Trouble::new(what, "make the rootfs with `farside rootfs from-root DIR`, libvirt installed"));
        }
    }
    match machine.real_emulators(rootfs).first() {
        None => Ok(true),
        Some(path) => {
            let what = format!("{} is a real emulator: a guest of it would run here, not on the host", path.display());
            Err(Trouble::new(what, "remove it, or make the rootfs with `farside rootfs from-root DIR`"))
        }
    }
}

fn dir(machine: &mut impl Machine, journal: &mut Journal, path: &Path, mode: u32) -> Attempt<bool> {
    match machine.kind(path) {
        Kind::Dir => Ok(false),
        // On the DPU an administrator's choice; inside the rootfs it would lead out of it.
        Kind::Symlink if !path.starts_with(&journal.rootfs) => Ok(false),
        Kind::Missing => {
            intend(machine, journal, Made::Dir { path: path.into() })?;
            machine.make_dir(path, mode)?;
            Ok(true)
        }
        _ => Err(Trouble::new(format!("{} is in the way: not a directory", path.display()), "remove it")),
    }
}

fn file(machine: &mut impl Machine, journal: &mut Journal, path: &Path, mode: u32, bytes: &[u8]) -> Attempt<bool> {
    match machine.kind(path) {
        Kind::Missing => {}
        Kind::File if machine.read(path)? == bytes => return Ok(false),
        // A device that is there already needs no stand-in.
        Kind::Other => return Ok(false),
        Kind::Dir => return Err(Trouble::new(format!("{} is in the way: a directory", path.display()), "remove it")),
        Kind::File | Kind::Symlink => {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let saved = path.with_file_name(format!(".{name}.{SAVED}"));
            intend(machine, journal, Made::Replaced { path: path.into(), saved: saved.clone() })?;
            machine.rename(path, &saved)?;
        }
    }
    intend(machine, journal, Made::File { path: path.into() })?;
    machine.write(path, mode, bytes)?;
    Ok(true)
}

fn scratch(machine: &mut impl Machine, journal: &mut Journal, path: &Path) -> Attempt<bool> {
    if machine.kind(path) != Kind::Missing {
        return Ok(false);
    }
    intend(machine, journal, Made::Tree { path: path.into() })?;
    machine.make_dir(path, 0o755)?;
    Ok(true)
}

fn mount<M: Machine>(
    machine: &mut M,
    journal: &mut Journal,
    space: Space,
    path: &Path,
    act: impl FnOnce(&mut M) -> Attempt<()>,
) -> Attempt<()> {
    let below = machine.mounts_at(space, path)?;
    intend(machine, journal, Made::Mount { space, path: path.into(), below, helper: None })?;
    act(machine)
}

pub(super) fn start(machine: &mut impl Machine, journal: &mut Journal, program: &Program) -> Attempt<()> {
    let process = machine.start_held(program)?;
    // Until it is released it is nothing: a crash before the journal is written ends it.
    intend(machine, journal, Made::Process(process.clone()))?;
    machine.release(&process)
}

/// Until the program's own process serves its socket, and answers.
pub(super) fn ready(machine: &mut impl Machine, journal: &Journal, step: &Step) -> Attempt<()> {
    let Step::Ready { program, socket, ask } = step else { unreachable!("only for this step") };
    let process = journal.processes().find(|p| p.name == *program).cloned().expect("it was started before");
    let log = Path::new(super::plan::LOG_DIR).join(format!("{program}.log"));
    let mut waited = Duration::ZERO;
    let mut last = format!("{} does not answer", socket.display());
    while waited < limits::OFFLOAD_READY {
        match machine.server_of(socket) {
            Some(pid) if pid == process.pid => match ask.as_ref().map(|words| machine.ask(&journal.rootfs, words)) {
                None | Some(Ok(_)) => return Ok(()),
                Some(Err(trouble)) => last = trouble.to_string(),
            },
            Some(pid) => last = format!("another process (pid {pid}) serves {}", socket.display()),
            None => {}
        }
        if !machine.is_alive(&process) {
            last = "it has ended".into();
            break;
        }
        machine.sleep(limits::OFFLOAD_POLL);
        waited += limits::OFFLOAD_POLL;
    }
    let advice = format!("the last lines of {}:\n{}", log.display(), machine.tail(&log));
    Err(Trouble::new(format!("{program} does not come up: {last}"), advice))
}
