//! `farside rootfs`, `farside dpu` and `farside enter`: from what was typed to the room that does it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::farside::{Dpu, Enter, Rootfs};
use crate::config;
use crate::offload::journal::Journal;
use crate::offload::machine::Machine;
use crate::offload::rootfs::{self, FromRoot};
use crate::offload::scan::Choice;
use crate::offload::system::{STATE_DIR, System};
use crate::offload::trouble::Attempt;
use crate::offload::{down, enter, plan, site, up};

pub(crate) fn rootfs(command: Rootfs) -> ExitCode {
    let Rootfs::FromRoot(typed) = command;
    let choice = Choice { skip: typed.skip, documents: typed.docs };
    report(rootfs::from_root(&FromRoot { source: Path::new("/").into(), target: typed.dir, choice }))
}

pub(crate) fn dpu(command: Dpu) -> ExitCode {
    report(match command {
        Dpu::Init => site::init(&config::config_dir()),
        Dpu::Up { config } => dpu_up(config),
        Dpu::Down { force } => System::lock(Path::new(STATE_DIR)).and_then(|mut system| down::down(&mut system, force)),
        Dpu::Status => status(),
    })
}

fn dpu_up(config: Option<PathBuf>) -> Attempt<()> {
    let config = config.unwrap_or_else(|| config::config_dir().join("node.toml"));
    let (offload, site) = site::survey(&config)?;
    let steps = plan::steps(&offload, &site)?;
    up::up(&mut System::lock(Path::new(STATE_DIR))?, &offload.rootfs, &steps)
}

fn status() -> Attempt<()> {
    let system = System::look(Path::new(STATE_DIR));
    let Some(text) = system.load()? else {
        println!("not up");
        return Ok(());
    };
    let journal = Journal::parse(&text)?;
    let state = if journal.complete { "up" } else { "unfinished: run `farside dpu down`, or `up` again" };
    println!("{state}: {}, for {} s", journal.rootfs.display(), system.now().saturating_sub(journal.since));
    for process in journal.processes() {
        let life = if system.is_alive(process) { "runs" } else { "has ended: `farside dpu up` starts it again" };
        println!("{} (pid {}) {life}", process.name, process.pid);
    }
    for guest in system.guests() {
        println!("virtual machine {} (stand-in {})", guest.name, guest.process.pid);
    }
    Ok(())
}

pub(crate) fn enter(order: Enter) -> ExitCode {
    let Enter { space, root, held, env, command } = order;
    report(enter::enter(&enter::Order { space, root, held, env, command }))
}

fn report(outcome: Attempt<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            eprintln!("farside: {trouble}");
            ExitCode::FAILURE
        }
    }
}
