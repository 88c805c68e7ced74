//! `farside rootfs`, `farside dpu` and `farside enter`: from what was typed to the room that does it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::farside::{Dpu, Enter, Rootfs};
use crate::config;
use crate::offload::health::{self, State};
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

/// Exit statuses of `farside dpu status`, as LSB has them for a service: 3 for one that does not run.
const NOT_UP: u8 = 3;
const DEGRADED: u8 = 4;

pub(crate) fn dpu(command: Dpu) -> ExitCode {
    report(match command {
        Dpu::Status => return status(),
        Dpu::Init => site::init(&config::config_dir()),
        Dpu::Up { config } => dpu_up(config),
        Dpu::Down { force } => System::lock(Path::new(STATE_DIR)).and_then(|mut system| down::down(&mut system, force)),
    })
}

fn dpu_up(config: Option<PathBuf>) -> Attempt<()> {
    let config = config.unwrap_or_else(|| config::config_dir().join("node.toml"));
    let (offload, site) = site::survey(&config)?;
    let steps = plan::steps(&offload, &site)?;
    up::up(&mut System::lock(Path::new(STATE_DIR))?, &offload.rootfs, &steps)
}

fn status() -> ExitCode {
    match health::status(&System::look(Path::new(STATE_DIR))) {
        Ok((state, lines)) => {
            lines.iter().for_each(|line| println!("{line}"));
            match state {
                State::Whole => ExitCode::SUCCESS,
                State::Down => NOT_UP.into(),
                State::Degraded => DEGRADED.into(),
            }
        }
        Err(trouble) => report(Err(trouble)),
    }
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
