//! The machine-wide lists that dpu-utilities reads, in its formats. They take away and never give.
//!
//!   /etc/rexec/whitelist    a command's absolute path on each line; a pattern may stand for several
//!   /etc/qtfs/whitelist     [Open] [Write] [Read] [Readdir] [Mkdir] [Rmdir] [Create] [Unlink] [Rename] [Setattr]
//!                           [Setxattr] [Mount], each with Path=/dir;/dir
//!
//! A file that is not there takes nothing away; nor does a section that is not there, except [Mount], without which
//! nothing can be mounted. As there, `#` begins a comment, and [Readiter] is another word for [Read]. Other than there:
//! a path is a directory and what is below it and not the beginning of other names, a command is that command and not
//! the beginning of others, and an empty line or an empty list allows nothing and not everything. [Kill] and
//! [Udsconnect] are read over: signals reach a peer's own commands alone, and which sockets of the other machine are
//! reached from here is said by [uds] of node.toml.
//!
//! A list that cannot be read or understood allows nothing, and says so: what it would have taken away is not known.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::FileError;
use super::fs::Dir;
use super::glob::PathGlob;
use super::verdict::Denied;
use crate::limits::POLICY_RULES_MAX;

/// Both lists of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    pub exec: ExecList,
    pub fs: FsList,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ExecList {
    #[default]
    Absent,
    Only {
        file: Arc<Path>,
        commands: Vec<PathGlob>,
    },
    /// Why no command runs, in one line.
    Refused(String),
}

impl ExecList {
    /// `real`: a path without symbolic links; a listed command may be one.
    ///
    /// # Errors
    /// The first line that is no command.
    pub fn parse(file: &Path, text: &str, real: &dyn Fn(&[u8]) -> Option<Vec<u8>>) -> Result<Self, FileError> {
        let mut commands = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let said = |why: &dyn fmt::Display| FileError::at(file, at + 1, format!("{line:?}: {why}"));
            let glob = PathGlob::parse(line).map_err(|e| said(&e))?;
            commands.extend(real(&glob.fixed()).and_then(|fixed| glob.with_fixed(&fixed)).filter(|g| *g != glob));
            commands.push(glob);
            if commands.len() > 2 * POLICY_RULES_MAX {
                return Err(said(&format!("more than {POLICY_RULES_MAX} commands; use patterns")));
            }
        }
        Ok(Self::Only { file: file.into(), commands })
    }

    pub(super) fn allows(&self, path: &[u8]) -> Result<(), Denied> {
        match self {
            Self::Absent => Ok(()),
            Self::Only { commands, .. } if commands.iter().any(|glob| glob.matches(path)) => Ok(()),
            Self::Only { file, .. } => Err(Denied::Machine(format!("{} does not list it", file.display()))),
            Self::Refused(why) => Err(Denied::Machine(why.clone())),
        }
    }
}

/// What the sections of the qtfs list are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsOp {
    Open,
    Write,
    Read,
    Readdir,
    Mkdir,
    Rmdir,
    Create,
    Unlink,
    Rename,
    Setattr,
    Setxattr,
    Mount,
}

impl FsOp {
    pub const ALL: [Self; 12] = [
        Self::Open,
        Self::Write,
        Self::Read,
        Self::Readdir,
        Self::Mkdir,
        Self::Rmdir,
        Self::Create,
        Self::Unlink,
        Self::Rename,
        Self::Setattr,
        Self::Setxattr,
        Self::Mount,
    ];

    fn of_section(name: &str) -> Option<Self> {
        let own = |op: &Self| format!("{op:?}").eq_ignore_ascii_case(name);
        if name.eq_ignore_ascii_case("Readiter") { Some(Self::Read) } else { Self::ALL.into_iter().find(own) }
    }
}

/// Some of the operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FsOps(u16);

impl FsOps {
    pub fn insert(&mut self, op: FsOp) {
        self.0 |= 1 << op as u16;
    }

    pub fn contains(self, op: FsOp) -> bool {
        self.0 & (1 << op as u16) != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// How much of a directory and all below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Within {
    All,
    Some,
    Nothing,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum FsList {
    #[default]
    Absent,
    Only {
        file: Arc<Path>,
        /// By operation; `None` where there is no section.
        dirs: Box<[Option<Vec<Dir>>; 12]>,
    },
    /// Why nothing is mounted, in one line.
    Refused(String),
}

/// Sections of dpu-utilities that have no meaning here.
const WITHOUT_MEANING: [&str; 2] = ["kill", "udsconnect"];

impl FsList {
    /// # Errors
    /// The first line that is not understood.
    pub fn parse(file: &Path, text: &str) -> Result<Self, FileError> {
        let mut dirs: Box<[Option<Vec<Dir>>; 12]> = Box::default();
        dirs[FsOp::Mount as usize] = Some(Vec::new());
        let mut section: Option<Option<FsOp>> = None;
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            let said = |why: String| FileError::at(file, at + 1, why);
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                let known = FsOp::of_section(name);
                if known.is_none() && !WITHOUT_MEANING.contains(&name.to_ascii_lowercase().as_str()) {
                    return Err(said(format!(
                        "[{name}] is no section; there are {:?}, Kill and Udsconnect",
                        FsOp::ALL
                    )));
                }
                section = Some(known);
                continue;
            }
            let value = line.split_once('=').filter(|(key, _)| key.trim() == "Path").map(|(_, value)| value.trim());
            match (value, section) {
                (None, _) => return Err(said(format!("{line:?}: write Path=/dir;/dir"))),
                (_, None) => return Err(said("Path= before the first [Section]".into())),
                (_, Some(None)) => {}
                (Some(value), Some(Some(op))) => read_dirs(&mut dirs[op as usize], value).map_err(said)?,
            }
        }
        Ok(Self::Only { file: file.into(), dirs })
    }

    pub(super) fn allows(&self, op: FsOp, path: &[u8]) -> Result<(), Denied> {
        let (file, dirs) = match self {
            Self::Absent => return Ok(()),
            Self::Refused(why) => return Err(Denied::Machine(why.clone())),
            Self::Only { file, dirs } => (file, &dirs[op as usize]),
        };
        let dir = Dir::new(path);
        let listed = |all: &Vec<Dir>| dir.as_ref().is_some_and(|dir| all.iter().any(|own| own.holds(dir)));
        if dirs.as_ref().is_none_or(listed) {
            return Ok(());
        }
        Err(Denied::Machine(format!("[{op:?}] of {} does not list it", file.display())))
    }

    /// How much of `root` with all below it the operation may be done in.
    pub fn within(&self, op: FsOp, root: &[u8]) -> Within {
        if self.allows(op, root).is_ok() {
            return Within::All;
        }
        let (Self::Only { dirs, .. }, Some(root)) = (self, Dir::new(root)) else { return Within::Nothing };
        let below = dirs[op as usize].iter().flatten().any(|own| root.holds(own));
        if below { Within::Some } else { Within::Nothing }
    }
}

/// One `Path=` line's worth; a second one of a section adds to the first.
fn read_dirs(into: &mut Option<Vec<Dir>>, value: &str) -> Result<(), String> {
    let all = into.get_or_insert_default();
    for text in value.split(';').map(str::trim).filter(|text| !text.is_empty()) {
        if text.contains('\\') {
            return Err(format!("{text:?}: a path with \\ cannot be listed"));
        }
        // As people write it.
        let bare = if text == "/" { text } else { text.trim_end_matches('/') };
        let dir = Dir::new(bare.as_bytes());
        all.push(dir.ok_or_else(|| format!("{text:?}: write an absolute path without .."))?);
        if all.len() > POLICY_RULES_MAX {
            return Err(format!("more than {POLICY_RULES_MAX} paths"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(text: &str) -> Result<ExecList, FileError> {
        let real = |path: &[u8]| (path == b"/usr/bin/kvm").then(|| b"/usr/bin/qemu-system-x86_64".to_vec());
        ExecList::parse(Path::new("/w"), text, &real)
    }

    #[test]
    fn a_listed_command_is_that_command_and_what_it_is_a_link_to() {
        let list = exec("# emulators\n/usr/bin/qemu-kvm \r\n\n/usr/bin/kvm\n/opt/bin/*\n").unwrap();
        for (path, is) in [
            ("/usr/bin/qemu-kvm", true),
            ("/usr/bin/qemu-kvm-extra", false),
            ("/usr/bin/qemu-system-x86_64", true),
            ("/opt/bin/x", true),
            ("/bin/sh", false),
        ] {
            assert_eq!(list.allows(path.as_bytes()).is_ok(), is, "{path}");
        }
        assert!(exec("").unwrap().allows(b"/bin/sh").is_err(), "an empty list allows nothing");
        assert!(ExecList::Absent.allows(b"/bin/sh").is_ok());
        assert_eq!(
            exec("/a\nqemu-kvm\n").unwrap_err().to_string(),
            "/w:2: \"qemu-kvm\": a path is absolute: begin with /"
        );
    }

    const QTFS: &str = "[Open]\nPath=/var/lib/libvirt/qemu;/srv/\n\n[Readiter]\nPath=/a\n[udsconnect]\nPath=x\n[Mount]\nPath = /var/lib\n";

    #[test]
    fn sections_narrow_what_they_name_by_directory() {
        let list = FsList::parse(Path::new("/w"), QTFS).unwrap();
        for (op, path, is) in [
            (FsOp::Open, "/var/lib/libvirt/qemu/x", true),
            (FsOp::Open, "/var/lib/libvirt/qemu-other", false),
            (FsOp::Open, "/srv", true),
            (FsOp::Open, "/srv/../etc", false),
            (FsOp::Read, "/b", false),
            (FsOp::Write, "/b", true),
            (FsOp::Mount, "/var/lib/libvirt", true),
            (FsOp::Mount, "/var", false),
        ] {
            assert_eq!(list.allows(op, path.as_bytes()).is_ok(), is, "{op:?} {path}");
        }
        assert_eq!(list.within(FsOp::Open, b"/var/lib/libvirt"), Within::Some);
        assert_eq!(list.within(FsOp::Open, b"/var/lib/libvirt/qemu"), Within::All);
        assert_eq!(list.within(FsOp::Open, b"/etc"), Within::Nothing);
    }

    #[test]
    fn without_mount_nothing_is_mounted_and_an_empty_list_allows_nothing() {
        let list = FsList::parse(Path::new("/w"), "[Write]\nPath=\n").unwrap();
        assert!(list.allows(FsOp::Mount, b"/x").is_err() && list.allows(FsOp::Write, b"/x").is_err());
        assert!(list.allows(FsOp::Read, b"/x").is_ok());
    }

    #[test]
    fn what_is_not_understood_is_said_by_line() {
        for (text, said) in [
            ("Path=/x", "/w:1: Path= before the first [Section]"),
            ("[Opne]\nPath=/x", "/w:1: [Opne] is no section"),
            ("[Open]\nPaths=/x", "/w:2: \"Paths=/x\": write Path=/dir;/dir"),
            ("[Open]\n\nPath=/x;y", "/w:3: \"y\": write an absolute path"),
        ] {
            let error = FsList::parse(Path::new("/w"), text).unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }
}
