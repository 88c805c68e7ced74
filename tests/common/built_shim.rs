//! The shim as it is installed: its release build. A dev build of it unwinds, and is another library.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Built by the first test that asks, in the target directory of the programs.
pub(crate) fn path() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build).clone()
}

fn build() -> PathBuf {
    let profile = Path::new(env!("CARGO_BIN_EXE_farside")).parent().expect("programs are in a profile's directory");
    let target = profile.parent().expect("a profile is in the target directory");
    let cargo = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--package", "farside-shim", "--target-dir"])
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(cargo.is_ok_and(|s| s.success()), "the shim does not build");
    target.join("release/libudsproxy.so")
}
