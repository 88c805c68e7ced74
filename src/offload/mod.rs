//! The rootfs, and bringing the offload up and down.
//!
//!   scan ─▶ copy          what a rootfs holds, and copying it (`rootfs`)
//!   wrapper               the emulators of the rootfs

pub mod copy;
pub mod progress;
pub mod rootfs;
pub mod scan;
pub mod trouble;
pub mod wrapper;

use std::path::{Path, PathBuf};

/// A program of ours: beside the running one, else where a package puts it.
pub fn own_program(name: &str) -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(name)));
    let installed = ["/usr/bin", "/usr/sbin", "/usr/lib64", "/usr/lib"].map(|dir| Path::new(dir).join(name));
    beside.into_iter().chain(installed).find(|path| path.exists())
}
