//! The rootfs, and bringing the offload up and down.
//!
//! ```text
//!   scan ─▶ copy ─▶ rootfs        what a rootfs holds, and copying it; `wrapper`: the emulators in it
//!   plan ─▶ up ─▶ journal ─▶ down what is to be done (pure), doing it, and undoing it
//!             machine             the steps of both; `system` takes them, `rehearsal` records them
//!   health, mend                  whether every part still lives, and what is done about one that does not
//! ```
//!
//! Never: a change that the journal does not know beforehand; a signal to a pid whose start time was not compared.

mod ask;
pub mod copy;
pub mod down;
pub mod enter;
pub mod health;
pub mod journal;
pub mod machine;
mod mend;
pub mod plan;
pub mod progress;
#[cfg(test)]
pub mod rehearsal;
pub mod rootfs;
pub mod scan;
pub mod site;
pub mod system;
#[cfg(test)]
mod tests;
pub mod trouble;
pub mod up;
pub mod wrapper;

use std::path::{Path, PathBuf};

/// A program of ours: beside the running one, else where a package puts it.
pub fn own_program(name: &str) -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(name)));
    let installed = ["/usr/bin", "/usr/sbin", "/usr/lib64", "/usr/lib"].map(|dir| Path::new(dir).join(name));
    beside.into_iter().chain(installed).find(|path| path.exists())
}
