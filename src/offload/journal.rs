//! What `farside dpu up` has made, written down before it is made, so that `down` can undo it after any end.
//!
//! An entry says how to undo, not what was done; undoing what was never done is a no-op. Undone in reverse.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::trouble::{Attempt, Trouble};

/// Changed when an older `down` would misread a newer journal.
const VERSION: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Space {
    /// The DPU's own mount namespace.
    Dpu,
    /// The offload's.
    Offload,
}

/// A process for certain: the pid alone may be somebody else's by now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub name: String,
    pub pid: i32,
    /// Field 22 of /proc/PID/stat, in ticks since boot.
    pub start: u64,
    /// The boot that these ticks count from.
    pub boot: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "made", rename_all = "lowercase")]
pub enum Made {
    Dir {
        path: PathBuf,
    },
    File {
        path: PathBuf,
    },
    /// What a program made: a file, or a directory with all that is in it.
    Tree {
        path: PathBuf,
    },
    /// What was at `path` waits at `saved`.
    Replaced {
        path: PathBuf,
        saved: PathBuf,
    },
    /// `below` mounts lay at the path before.
    Mount {
        space: Space,
        path: PathBuf,
        below: usize,
        /// The process that serves it, once it is mounted; none for a bind mount.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        helper: Option<Process>,
    },
    Process(Process),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    version: u32,
    /// `up` came to its end.
    pub complete: bool,
    pub rootfs: PathBuf,
    /// Seconds since 1970.
    pub since: u64,
    /// Oldest first.
    #[serde(default)]
    pub entries: Vec<Made>,
}

impl Journal {
    pub fn new(rootfs: PathBuf, since: u64) -> Self {
        Self { version: VERSION, complete: false, rootfs, since, entries: Vec::new() }
    }

    pub fn parse(text: &str) -> Attempt<Self> {
        let journal: Self = toml::from_str(text).map_err(|e| {
            Trouble::new(format!("the journal cannot be read: {}", e.message()), "undo by hand, then remove it")
        })?;
        if journal.version != VERSION {
            let what = format!("the journal is of version {}, this program knows {VERSION}", journal.version);
            return Err(Trouble::new(what, "run `dpu down` of the version that ran `dpu up`"));
        }
        Ok(journal)
    }

    pub fn text(&self) -> Attempt<String> {
        toml::to_string(self).map_err(|e| Trouble::new(format!("the journal cannot be written: {e}"), ""))
    }

    /// Of a mount inside the offload: how many lay there before, and who serves it.
    pub fn mount_at(&mut self, at: &Path) -> Option<(&mut usize, &mut Option<Process>)> {
        self.entries.iter_mut().find_map(|made| match made {
            Made::Mount { space: Space::Offload, path, below, helper } if path == at => Some((below, helper)),
            _ => None,
        })
    }

    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        self.entries.iter().filter_map(|made| if let Made::Process(process) = made { Some(process) } else { None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_reads_back_as_it_was_written() {
        let mut journal = Journal::new("/another rootfs".into(), 17);
        let process = Process { name: "libvirtd".into(), pid: 7, start: 1 << 40, boot: "b".into() };
        journal.entries = vec![
            Made::Dir { path: "/a\"b".into() },
            Made::File { path: "/f".into() },
            Made::Tree { path: "/run/libvirt".into() },
            Made::Replaced { path: "/x".into(), saved: "/x.saved".into() },
            Made::Mount { space: Space::Offload, path: "/m\n".into(), below: 2, helper: None },
            Made::Mount { space: Space::Offload, path: "/q".into(), below: 0, helper: Some(process.clone()) },
            Made::Process(process),
        ];
        assert_eq!(Journal::parse(&journal.text().unwrap()).unwrap(), journal);
    }

    #[test]
    fn a_journal_of_another_version_is_refused() {
        let mut journal = Journal::new("/r".into(), 0);
        journal.version = VERSION + 1;
        let said = Journal::parse(&journal.text().unwrap()).unwrap_err().to_string();
        assert!(said.contains("version"), "{said}");
    }
}
