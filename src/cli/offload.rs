//! `farside rootfs` and `farside dpu`: from what was typed to the room that does it.

use std::path::Path;
use std::process::ExitCode;

use super::farside::{Dpu, Enter, Rootfs};
use crate::offload::rootfs::{self, FromRoot};
use crate::offload::scan::Choice;
use crate::offload::trouble::Attempt;

pub(crate) fn rootfs(command: Rootfs) -> ExitCode {
    let Rootfs::FromRoot(typed) = command;
    let choice = Choice { skip: typed.skip, documents: typed.docs };
    report(rootfs::from_root(&FromRoot { source: Path::new("/").into(), target: typed.dir, choice }))
}

pub(crate) fn dpu(_command: Dpu) -> ExitCode {
    ExitCode::FAILURE
}

pub(crate) fn enter(_order: &Enter) -> ExitCode {
    ExitCode::FAILURE
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
