//! `farside rootfs from-root DIR`: the directory that libvirtd runs in, made from the running system.
//!
//!   check DIR ──▶ scan (how much) ──▶ room enough? ──▶ copy ──▶ own programs ──▶ no real emulator? ──▶ marked complete
//!
//! DIR is marked before the first byte goes into it: only a marked or an empty directory is written to.

use std::path::{Path, PathBuf};

use super::copy::Copier;
use super::progress::Progress;
use super::scan::{Choice, EMPTY, List, Scan, What};
use super::trouble::{Attempt, Trouble};
use super::wrapper;
use crate::errno::Step;
use crate::limits;

/// In every rootfs of ours; says whether the copy came to its end.
const MARKER: &str = ".farside-rootfs";
/// Programs of ours that the rootfs needs, and where they go; looked for beside the running program first.
const OWN: [(&str, &str, u32); 2] =
    [("rexec", "usr/bin/rexec", 0o755), ("libudsproxy.so", "usr/lib64/libudsproxy.so", 0o644)];

#[derive(Debug, Clone)]
pub struct FromRoot {
    pub source: PathBuf,
    pub target: PathBuf,
    pub choice: Choice,
}

pub fn from_root(order: &FromRoot) -> Attempt<()> {
    let FromRoot { source, target, choice } = order;
    let resumed = claim(target)?;
    let list = Scan::new(source, target, choice)?.run()?;
    check_room(target, list.bytes, resumed)?;
    let mut copier = Copier::new(source, target);
    copy_all(&mut copier, &list)?;
    for (path, mode) in EMPTY {
        make_empty(&target.join(path), mode)?;
    }
    copy_own(&mut copier, target)?;
    for entry in list.entries.iter().rev().filter(|e| matches!(e.what, What::Dir)) {
        copier.finish_dir(entry)?;
    }
    let real = wrapper::real_emulators(target);
    if let Some(first) = real.first() {
        return Err(Trouble::new(format!("{} is a real emulator", first.display()), "remove it and run this again"));
    }
    mark(target, "complete")?;
    if copier.attributes_lost > 0 {
        println!(
            "rootfs: {} extended attributes were not kept: the file system of {} has none",
            copier.attributes_lost,
            target.display()
        );
    }
    match copier.changed {
        0 => println!("rootfs: {} was up to date", target.display()),
        n => println!("rootfs: {} is ready, {n} of {} entries written", target.display(), list.entries.len()),
    }
    Ok(())
}

/// Makes the directory ours, or says why it cannot be; true if it was ours already.
fn claim(target: &Path) -> Attempt<bool> {
    if target.join(MARKER).exists() {
        return Ok(true);
    }
    match std::fs::read_dir(target).map(|mut entries| entries.next().is_some()) {
        Ok(false) => {}
        Ok(true) => {
            let what = format!("{} is not empty and not a farside rootfs", target.display());
            return Err(Trouble::new(what, "name a new or an empty directory"));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(target).map_err(|e| Trouble::io("mkdir", target, &e))?;
        }
        Err(e) => return Err(Trouble::io("open", target, &e)),
    }
    mark(target, "unfinished: run `farside rootfs from-root` again")?;
    Ok(false)
}

fn mark(target: &Path, state: &str) -> Attempt<()> {
    let path = target.join(MARKER);
    let text = format!("A farside rootfs, {state}\n");
    if std::fs::read_to_string(&path).is_ok_and(|t| t == text) {
        return Ok(());
    }
    std::fs::write(&path, text).map_err(|e| Trouble::io("write", &path, &e))
}

/// An interrupted copy has taken part of its room already, so a resumed one is not refused.
fn check_room(target: &Path, needed: u64, resumed: bool) -> Attempt<()> {
    let stat = nix::sys::statvfs::statvfs(target).step_on("statvfs", target.display())?;
    let free = stat.blocks_available() * stat.fragment_size();
    let wanted = needed + needed / 20 + limits::ROOTFS_SPARE_BYTES;
    println!("rootfs: {} MB to copy, {} MB free in {}", needed >> 20, free >> 20, target.display());
    if free < wanted && !resumed {
        let what = format!("{}: {} MB are needed, {} MB are free", target.display(), wanted >> 20, free >> 20);
        return Err(Trouble::new(what, "name a directory on a larger disk, or leave something out with --skip"));
    }
    Ok(())
}

fn copy_all(copier: &mut Copier<'_>, list: &List) -> Attempt<()> {
    let mut progress = Progress::new("rootfs", list.bytes);
    for entry in &list.entries {
        copier.copy(entry)?;
        if matches!(entry.what, What::File) {
            progress.advance(std::os::unix::fs::MetadataExt::blocks(&entry.meta) * 512, &entry.path);
        }
    }
    progress.end();
    Ok(())
}

fn make_empty(path: &Path, mode: u32) -> Attempt<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    if path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new().mode(mode).create(path).map_err(|e| Trouble::io("mkdir", path, &e))?;
    // Again, past the umask.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(|e| Trouble::io("chmod", path, &e))
}

/// rexec and the shim. Where one is missing `farside dpu up` says so: a rootfs may be made before they are installed.
fn copy_own(copier: &mut Copier<'_>, target: &Path) -> Attempt<()> {
    for (name, to, mode) in OWN {
        let Some(from) = super::own_program(name) else { continue };
        let bytes = std::fs::read(&from).map_err(|e| Trouble::io("read", &from, &e))?;
        copier.write(&target.join(to), &bytes, mode)?;
    }
    Ok(())
}
