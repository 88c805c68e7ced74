//! Rules about directories: each stands for the directory and all below it.

use super::Policy;
use super::glob::components;
use super::links::{Links, standing_for};
use super::peer_file::deciding;
use super::verdict::{Denied, Place, Service, Verdict};
use super::whitelist::{FsOp, FsOps, Machine, Within};

/// A directory by its components.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dir(Vec<Vec<u8>>);

impl Dir {
    /// `None`: not an absolute path, or one with `.`, `..` or an empty component.
    pub(super) fn new(path: &[u8]) -> Option<Self> {
        Some(Self(components(path)?.into_iter().map(<[u8]>::to_vec).collect()))
    }

    pub(super) fn path(&self) -> Vec<u8> {
        if self.0.is_empty() {
            b"/".to_vec()
        } else {
            self.0.iter().flat_map(|name| [b"/", &name[..]].concat()).collect()
        }
    }

    /// The directory itself, or something below it.
    pub(super) fn holds(&self, other: &Self) -> bool {
        other.0.starts_with(&self.0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FsRule {
    pub(super) place: Place,
    /// `None`: denied.
    pub(super) allow: Option<FsAccess>,
    /// As written, and for an allow rule without the machine's own links.
    pub(super) dirs: Vec<Dir>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FsAccess {
    Ro,
    Rw,
}

/// How a directory may be mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountGrant {
    /// Whether the rule, or one about something below, says so.
    pub read_only: bool,
    /// What the machine-wide list allows nowhere in it.
    pub without: FsOps,
    /// What it allows in a part of it: to be asked for each path.
    pub partly: FsOps,
}

/// Where a directory is, seen from a rule.
struct Seen {
    /// The rule's directory, or below it.
    within: bool,
    /// Something that the rule is about is in it.
    holds: bool,
}

impl FsRule {
    fn sees(&self, dir: &Dir, links: &dyn Links) -> Result<Seen, Denied> {
        let own = standing_for((self.allow.is_some(), &self.place), &self.dirs, links)?;
        Ok(Seen { within: own.iter().any(|own| own.holds(dir)), holds: own.iter().any(|own| dir.holds(own)) })
    }
}

impl Policy {
    /// Whether the file or directory may be read, or `write`n.
    pub fn fs(&self, machine: &Machine, links: &dyn Links, path: &[u8], write: bool) -> Verdict<()> {
        let dir = self.place_of(path)?;
        for op in [FsOp::Mount, FsOp::Open, if write { FsOp::Write } else { FsOp::Read }] {
            machine.fs.allows(op, path)?;
        }
        for rule in &self.fs {
            if rule.sees(&dir, links)?.within {
                return match rule.allow {
                    Some(FsAccess::Ro) if write => Err(self.no_rule(Some((rule.place.clone(), "read-only".into())))),
                    access => deciding(&rule.place, access.is_some(), ()),
                };
            }
        }
        Err(self.no_rule(None))
    }

    /// Whether the directory may be mounted with all that is below it. Rules are looked at once, here: so a directory
    /// that holds a denied one cannot be mounted, and one that holds a read-only one is read-only.
    pub fn mount(&self, machine: &Machine, links: &dyn Links, path: &[u8]) -> Verdict<MountGrant> {
        let dir = self.place_of(path)?;
        machine.fs.allows(FsOp::Mount, path)?;
        let mut read_only = false;
        for rule in &self.fs {
            let Seen { within, holds } = rule.sees(&dir, links)?;
            match rule.allow {
                Some(access) if within => {
                    let read_only = read_only || access == FsAccess::Ro;
                    let (without, partly) = machine.fs.limits(path);
                    return deciding(&rule.place, true, MountGrant { read_only, without, partly });
                }
                None if within || holds => return Err(Denied::Rule(rule.place.clone())),
                Some(FsAccess::Ro) => read_only |= holds,
                _ => {}
            }
        }
        Err(self.no_rule(None))
    }

    fn place_of(&self, path: &[u8]) -> Result<Dir, Denied> {
        Dir::new(path).ok_or_else(|| self.no_rule(None))
    }

    fn no_rule(&self, nearly: Option<(Place, String)>) -> Denied {
        Denied::NoRule { file: self.file.clone(), service: Service::Fs, nearly }
    }
}

impl Machine {
    /// Whether one operation at one path of a mount is left by the machine-wide list.
    ///
    /// # Errors
    /// Why not.
    pub fn fs_operation(&self, op: FsOp, path: &[u8]) -> Result<(), Denied> {
        self.fs.allows(op, path)
    }
}

impl super::whitelist::FsList {
    /// Of a directory with all below it: what is allowed nowhere, and what in a part of it.
    fn limits(&self, root: &[u8]) -> (FsOps, FsOps) {
        let (mut without, mut partly) = (FsOps::default(), FsOps::default());
        for op in FsOp::ALL {
            match self.within(op, root) {
                Within::All => {}
                Within::Some => partly.insert(op),
                Within::Nothing => without.insert(op),
            }
        }
        (without, partly)
    }
}
