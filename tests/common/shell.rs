//! Small words for tests that run programs.

#![allow(dead_code, reason = "each test program uses its part")]

#[path = "skip.rs"]
mod skip;

use std::path::Path;
use std::process::Command;

use nix::errno::Errno;

pub(crate) fn errno<T: std::fmt::Debug>(r: std::io::Result<T>) -> Errno {
    farside::errno::errno_of(&r.expect_err("it should have failed"))
}

/// Says so loudly when a program is missing; the test is then no proof of anything.
pub(crate) fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap().status.success();
    if !found {
        skip::skip(format_args!("{program} is not installed"));
    }
    found
}

pub(crate) fn shell(dir: &Path, script: &str) -> String {
    let out = Command::new("sh").args(["-ec", script]).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}
