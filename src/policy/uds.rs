//! Rules about unix sockets: by path, or by abstract name, where `*` is anything.

use super::Policy;
use super::glob::{GlobError, PathGlob, TextGlob};
use super::links::{Links, about};
use super::peer_file::deciding;
use super::verdict::{Denied, Place, Service, Verdict};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Names {
    /// As written, and for an allow rule without the machine's own links.
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
    fn matches(&self, name: &[u8], links: &dyn Links) -> Result<bool, Denied> {
        match (&self.names, name) {
            (Names::Abstract(glob), [0, rest @ ..]) => Ok(glob.matches(rest)),
            (Names::Paths(globs), [b'/', ..]) => about((self.allow, &self.place), globs, name, links),
            _ => Ok(false),
        }
    }
}

impl Policy {
    /// `name`: the path of the socket's inode as the kernel gives it, or an abstract name with its NUL in front.
    pub fn uds(&self, links: &dyn Links, name: &[u8]) -> Verdict<()> {
        for rule in &self.uds {
            if rule.matches(name, links)? {
                return deciding(&rule.place, rule.allow, ());
            }
        }
        Err(Denied::NoRule { file: self.file.clone(), service: Service::Uds, nearly: None })
    }
}
