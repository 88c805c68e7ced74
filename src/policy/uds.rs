//! Rules about unix sockets: by path, or by abstract name, where `*` is anything.

use super::Policy;
use super::glob::{GlobError, PathGlob, TextGlob};
use super::peer_file::deciding;
use super::verdict::{Denied, Place, Service, Verdict};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Names {
    /// More than one when a deny rule's path leads through symbolic links.
    Paths(Vec<PathGlob>),
    Abstract(TextGlob),
}

impl Names {
    pub(super) fn parse(text: &str) -> Result<Self, GlobError> {
        match text.strip_prefix('@') {
            Some(name) => TextGlob::parse(name).map(Self::Abstract),
            None => PathGlob::parse(text).map(|glob| Self::Paths(vec![glob])),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UdsRule {
    pub(super) place: Place,
    pub(super) allow: bool,
    pub(super) names: Names,
}

impl UdsRule {
    fn matches(&self, name: &[u8]) -> bool {
        match (&self.names, name) {
            (Names::Abstract(glob), [0, rest @ ..]) => glob.matches(rest),
            (Names::Paths(globs), [b'/', ..]) => globs.iter().any(|glob| glob.matches(name)),
            _ => false,
        }
    }
}

impl Policy {
    /// `name`: the path of the socket's inode as the kernel gives it, or an abstract name with its NUL in front.
    pub fn uds(&self, name: &[u8]) -> Verdict<()> {
        match self.uds.iter().find(|rule| rule.matches(name)) {
            Some(rule) => deciding(&rule.place, rule.allow, ()),
            None => Err(Denied::NoRule { file: self.file.clone(), service: Service::Uds, nearly: None }),
        }
    }
}
