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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    /// A small system to copy from, and an empty place beside it.
    struct Roots {
        dir: PathBuf,
    }

    impl Roots {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("farside-rootfs-{name}-{}", std::process::id()));
            let roots = Self { dir };
            roots.file("usr/bin/tool", "tool", 0o4755);
            roots.file("usr/bin/qemu-system-x86_64", "\x7fELF", 0o755);
            roots.file("usr/share/man/tool.1", "manual", 0o644);
            roots.file("usr/share/qemu-system-x86_64.conf", "not a program", 0o644);
            roots.file("usr/src/farside/.git/HEAD", "x", 0o644);
            roots.file("usr/lib/project/.git/HEAD", "x", 0o644);
            roots.file("usr/lib/made/CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55\n", 0o644);
            roots.file("etc/farside/host.key", "secret", 0o600);
            roots.file("etc/shadow", "secret", 0o600);
            roots.file("etc/passwd", "root", 0o644);
            roots.file("var/lib/dpkg/status", "much", 0o644);
            roots.file("var/cache/apt/archives/x.deb", "much", 0o644);
            roots.file("var/lib/libvirt/images/deep/vm.qcow2", "much", 0o644);
            symlink("usr/bin", roots.source().join("bin")).unwrap();
            symlink("/run", roots.source().join("var/run")).unwrap();
            std::fs::hard_link(roots.source().join("usr/bin/tool"), roots.source().join("usr/bin/alias")).unwrap();
            let sparse = std::fs::File::create(roots.source().join("usr/bin/sparse")).unwrap();
            sparse.set_len(16 << 20).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", (16 << 20) - 3).unwrap();
            crate::sys::filemeta::set_xattr(&roots.source().join("usr/bin/tool"), c"user.kept", b"yes").unwrap();
            roots
        }

        fn source(&self) -> PathBuf {
            self.dir.join("source")
        }

        fn target(&self) -> PathBuf {
            self.dir.join("target")
        }

        fn file(&self, path: &str, text: &str, mode: u32) {
            let full = self.source().join(path);
            std::fs::create_dir_all(full.parent().unwrap()).unwrap();
            std::fs::write(&full, text).unwrap();
            std::fs::set_permissions(&full, std::fs::Permissions::from_mode(mode)).unwrap();
        }

        fn copy(&self) -> Attempt<()> {
            from_root(&FromRoot { source: self.source(), target: self.target(), choice: Choice::default() })
        }

        fn has(&self, path: &str) -> bool {
            self.target().join(path).symlink_metadata().is_ok()
        }

        fn meta(&self, path: &str) -> std::fs::Metadata {
            self.target().join(path).symlink_metadata().unwrap()
        }
    }

    impl Drop for Roots {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }

    #[test]
    fn files_come_with_mode_time_attributes_links_and_holes() {
        let roots = Roots::new("kept");
        roots.copy().unwrap();
        let was = roots.source().join("usr/bin/tool").symlink_metadata().unwrap();
        let is = roots.meta("usr/bin/tool");
        assert_eq!((is.mode(), is.mtime(), is.mtime_nsec()), (was.mode(), was.mtime(), was.mtime_nsec()));
        assert_eq!(is.ino(), roots.meta("usr/bin/alias").ino(), "two names of one file");
        assert_eq!(crate::sys::filemeta::xattr(&roots.target().join("usr/bin/tool"), c"user.kept").unwrap(), b"yes");
        let sparse = roots.meta("usr/bin/sparse");
        assert_eq!(sparse.len(), 16 << 20);
        assert!(sparse.blocks() * 512 < 1 << 20, "the hole has become {} blocks", sparse.blocks());
        let bytes = std::fs::read(roots.target().join("usr/bin/sparse")).unwrap();
        assert_eq!(&bytes[bytes.len() - 3..], b"end");
        assert_eq!(std::fs::read_link(roots.target().join("bin")).unwrap(), Path::new("usr/bin"));
    }

    #[test]
    fn keys_caches_build_trees_and_emulators_stay_behind() {
        let roots = Roots::new("left");
        roots.copy().unwrap();
        for path in [
            "etc/farside",
            "etc/shadow",
            "usr/src",
            "usr/share/man",
            "usr/lib/project",
            "usr/lib/made",
            "var/lib/dpkg/status",
            "var/cache/apt/archives/x.deb",
            "var/lib/libvirt/images/deep/vm.qcow2",
        ] {
            assert!(!roots.has(path), "{path} was copied");
        }
        for path in ["etc/passwd", "proc", "local_proc", "home", "var/run", "var/lib/libvirt/images/deep"] {
            assert!(roots.has(path), "{path} is missing");
        }
        let wrapper = std::fs::read(roots.target().join("usr/bin/qemu-system-x86_64")).unwrap();
        assert_eq!(wrapper, wrapper::text(Path::new("/usr/bin/qemu-system-x86_64")));
        assert_eq!(std::fs::read(roots.target().join("usr/share/qemu-system-x86_64.conf")).unwrap(), b"not a program");
    }

    #[test]
    fn a_copy_that_was_cut_short_is_finished_and_a_whole_one_left_alone() {
        let roots = Roots::new("resumed");
        roots.copy().unwrap();
        let wrapper = roots.meta("usr/bin/qemu-system-x86_64");
        std::fs::write(roots.target().join("usr/bin/tool"), "to").unwrap();
        std::fs::remove_file(roots.target().join("etc/passwd")).unwrap();
        mark(&roots.target(), "unfinished").unwrap();
        roots.copy().unwrap();
        assert_eq!(std::fs::read(roots.target().join("usr/bin/tool")).unwrap(), b"tool");
        assert!(roots.has("etc/passwd"));
        let now = roots.meta("usr/bin/qemu-system-x86_64");
        assert_eq!(
            (now.ctime(), now.ctime_nsec()),
            (wrapper.ctime(), wrapper.ctime_nsec()),
            "libvirtd would probe again"
        );
    }

    #[test]
    fn a_directory_of_somebody_elses_is_refused() {
        let roots = Roots::new("refused");
        std::fs::create_dir_all(roots.target().join("precious")).unwrap();
        let said = roots.copy().unwrap_err().to_string();
        assert!(said.contains("not empty"), "{said}");
        assert!(!roots.has("usr"));
    }
}
