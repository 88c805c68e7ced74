//! What of a running system goes into a rootfs: the rules, and the list that they give.
//!
//!   usr bin sbin lib lib32 lib64 libx32   everything
//!   etc                                   everything but secrets and /etc/farside
//!   var                                   directories and symlinks alone, two levels deep; all of libvirt's
//!   boot dev home proc ...                made empty
//!
//! Never across a mount; never a build tree, a repository, a package cache. An emulator of QEMU becomes a wrapper.

use std::collections::HashSet;
use std::fs::{FileType, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::trouble::{Attempt, Trouble};
use super::wrapper;
use crate::sys::filemeta;

/// Copied whole: the programs, and on a system without merged /usr their other homes.
const WHOLE: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Made empty, with the mode: mount points, and what programs take for granted.
pub const EMPTY: [(&str, u32); 20] = [
    ("boot", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("local", 0o755),
    ("local/proc", 0o555),
    ("local/sys", 0o555),
    ("local_proc", 0o555),
    ("media", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr/lib64", 0o755),
    ("var", 0o755),
    ("var/tmp", 0o1777),
];
/// Not copied: keys and passwords have one home, and the sources of the kernel none here.
const LEFT_OUT: [&str; 9] = [
    "etc/farside",
    "etc/shadow",
    "etc/shadow-",
    "etc/gshadow",
    "etc/gshadow-",
    "etc/ssl/private",
    "usr/src",
    "usr/share/info",
    "usr/lib/debug",
];
const DOCUMENTS: [&str; 3] = ["usr/share/doc", "usr/share/man", "usr/share/gtk-doc"];
/// How deep the directories of /var go, except libvirt's own.
const VAR_DEPTH: usize = 2;
const CACHE_TAG: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55";

#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// Absolute paths that the user leaves out.
    pub skip: Vec<PathBuf>,
    pub documents: bool,
}

#[derive(Debug)]
pub enum What {
    Dir,
    File,
    Symlink,
    /// A FIFO or a device, made anew.
    Node,
    Wrapper,
}

#[derive(Debug)]
pub struct Entry {
    /// Relative to both roots.
    pub path: PathBuf,
    pub what: What,
    pub meta: Metadata,
}

#[derive(Debug, Default)]
pub struct List {
    /// Parents before their children.
    pub entries: Vec<Entry>,
    /// What the files take on disk, holes not counted.
    pub bytes: u64,
}

pub struct Scan<'a> {
    source: &'a Path,
    /// The rootfs itself may lie inside the source.
    target: PathBuf,
    left_out: HashSet<PathBuf>,
    mount: u64,
    /// Inodes met before: a hard link takes no room.
    met: HashSet<(u64, u64)>,
    list: List,
}

impl<'a> Scan<'a> {
    pub fn new(source: &'a Path, target: &Path, choice: &Choice) -> Attempt<Self> {
        let mut left_out: HashSet<PathBuf> = LEFT_OUT.iter().map(PathBuf::from).collect();
        if !choice.documents {
            left_out.extend(DOCUMENTS.iter().map(PathBuf::from));
        }
        left_out.extend(choice.skip.iter().map(|p| p.strip_prefix("/").unwrap_or(p).to_path_buf()));
        let target = target.canonicalize().map_err(|e| Trouble::io("realpath", target, &e))?;
        let mount = filemeta::mount_id(source)?;
        Ok(Self { source, target, left_out, mount, met: HashSet::new(), list: List::default() })
    }

    pub fn run(mut self) -> Attempt<List> {
        for name in WHOLE {
            self.visit(Path::new(name), usize::MAX)?;
        }
        self.visit(Path::new("etc"), usize::MAX)?;
        self.visit_var(Path::new("var"), VAR_DEPTH)?;
        Ok(self.list)
    }

    fn meta(&self, path: &Path) -> Attempt<Option<Metadata>> {
        let full = self.source.join(path);
        match std::fs::symlink_metadata(&full) {
            Ok(meta) => Ok(Some(meta)),
            // Gone since its directory was read: the system is alive.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Trouble::io("stat", &full, &e)),
        }
    }

    fn visit(&mut self, path: &Path, depth: usize) -> Attempt<()> {
        if self.left_out.contains(path) {
            return Ok(());
        }
        let Some(meta) = self.meta(path)? else { return Ok(()) };
        if !meta.is_dir() {
            return self.leaf(path, meta);
        }
        let full = self.source.join(path);
        if full == self.target || filemeta::mount_id(&full)? != self.mount || is_build_tree(&full) {
            return Ok(());
        }
        self.push(path, What::Dir, meta);
        if depth > 0 { self.children(path, |scan, child| scan.visit(child, depth - 1)) } else { Ok(()) }
    }

    /// Directories and symlinks only: what is in /var belongs to running programs.
    fn visit_var(&mut self, path: &Path, depth: usize) -> Attempt<()> {
        let Some(meta) = self.meta(path)? else { return Ok(()) };
        if meta.is_symlink() {
            self.push(path, What::Symlink, meta);
            return Ok(());
        }
        let full = self.source.join(path);
        if !meta.is_dir() || full == self.target || self.left_out.contains(path) {
            return Ok(());
        }
        let elsewhere = filemeta::mount_id(&full)? != self.mount;
        self.push(path, What::Dir, meta);
        let libvirt = path.components().any(|c| c.as_os_str() == "libvirt");
        if elsewhere || (depth == 0 && !libvirt) {
            return Ok(());
        }
        self.children(path, |scan, child| scan.visit_var(child, depth.saturating_sub(1)))
    }

    fn children(&mut self, path: &Path, mut each: impl FnMut(&mut Self, &Path) -> Attempt<()>) -> Attempt<()> {
        let full = self.source.join(path);
        let failed = |e: std::io::Error| Trouble::io("readdir", &full, &e);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&full).map_err(failed)? {
            names.push(entry.map_err(failed)?.file_name());
        }
        names.sort();
        names.into_iter().try_for_each(|name| each(self, &path.join(name)))
    }

    fn leaf(&mut self, path: &Path, meta: Metadata) -> Attempt<()> {
        let kind: FileType = meta.file_type();
        if kind.is_symlink() {
            self.push(path, What::Symlink, meta);
        } else if kind.is_fifo() || kind.is_char_device() || kind.is_block_device() {
            self.push(path, What::Node, meta);
        } else if kind.is_file() {
            // A file may be a mount point too (a container's /etc/resolv.conf): it is what the system has there, and a
            // file leads nowhere, so it is copied.
            let emulator = meta.mode() & 0o111 != 0 && path.file_name().is_some_and(wrapper::is_emulator);
            if !emulator && self.met.insert((meta.dev(), meta.ino())) {
                self.list.bytes += meta.blocks() * 512;
            }
            self.push(path, if emulator { What::Wrapper } else { What::File }, meta);
        }
        Ok(())
    }

    fn push(&mut self, path: &Path, what: What, meta: Metadata) {
        self.list.entries.push(Entry { path: path.to_path_buf(), what, meta });
    }
}

/// A repository, or a directory that says itself that it can be made again (cargo's target does).
fn is_build_tree(dir: &Path) -> bool {
    if dir.join(".git").exists() {
        return true;
    }
    std::fs::read(dir.join("CACHEDIR.TAG")).is_ok_and(|tag| tag.starts_with(CACHE_TAG))
}
