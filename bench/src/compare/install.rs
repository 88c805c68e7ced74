//! `--install`: the peers' packages, by apt, without their services.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use super::machines::done;

/// What Debian asks before it starts a package's service.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Removes what was made, also after an error.
struct NoServices(bool);

impl NoServices {
    fn new() -> Result<Self, String> {
        let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(POLICY);
        match made.and_then(|mut file| file.write_all(b"#!/bin/sh\nexit 101\n")) {
            Ok(()) => Ok(Self(true)),
            // Somebody has decided already.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(Self(false)),
            Err(e) => Err(format!("{POLICY}: {e}")),
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.0 {
            let _ = fs::remove_file(POLICY);
        }
    }
}

/// # Errors
/// What apt said.
pub(super) fn missing(packages: &[(&str, &str)]) -> Result<(), String> {
    let wanted: Vec<&str> =
        packages.iter().filter(|(_, proof)| !Path::new(proof).exists()).map(|(name, _)| *name).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    eprintln!("installing {}", wanted.join(" "));
    let _none_starts = NoServices::new()?;
    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .args(["-q", "-y", "-o", "DPkg::Lock::Timeout=600"])
            .args(words)
            .env("DEBIAN_FRONTEND", "noninteractive");
        done(&mut command)
    };
    let install = [&["install", "--no-install-recommends"], &wanted[..]].concat();
    // The lists of a fresh image are empty, or too old to be answered.
    if apt(&install).is_err() {
        apt(&["update"])?;
        apt(&install)?;
    }
    Ok(())
}
