//! A verdict always says what decided it: a rule by file, line and number, a list, or that there is no rule.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::errno::Errno;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    Exec,
    Uds,
    Fs,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exec => "exec",
            Self::Uds => "uds",
            Self::Fs => "fs",
        })
    }
}

/// One rule: where it is written, and its index within the service, starting at 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: Arc<Path>,
    pub line: usize,
    pub service: Service,
    pub number: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} ({} rule {})", self.file.display(), self.line, self.service, self.number)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed<T> {
    pub by: Place,
    pub grant: T,
}

impl<T> fmt::Display for Allowed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "allowed by {}", self.by)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denied {
    Rule(Place),
    /// No rule matched; which one would have, but for what.
    NoRule {
        file: Arc<Path>,
        service: Service,
        nearly: Option<(Place, String)>,
    },
    /// The name service could not say what this rule depends on.
    Unknown {
        place: Place,
        what: String,
    },
    /// A deny rule whose path may be any, since its symbolic links cannot be followed.
    Unfollowed {
        place: Place,
        path: String,
        errno: Errno,
    },
    /// Something machine-wide: the line says which file, and what to do.
    Machine(String),
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(place) => write!(f, "denied by {place}"),
            Self::NoRule { file, service, nearly: None } => {
                write!(f, "denied: no {service} rule of {} allows it", file.display())
            }
            Self::NoRule { nearly: Some((place, but)), .. } => write!(f, "denied: {place} would allow it, but {but}"),
            Self::Unknown { place, what } => {
                write!(f, "denied: {place} may be about it, but the name service cannot say {what}")
            }
            Self::Unfollowed { place, path, errno } => {
                let why = errno.desc();
                write!(
                    f,
                    "denied: {place} may be about it, but the symbolic links of {path:?} cannot be followed: {why}"
                )
            }
            Self::Machine(why) => write!(f, "denied: {why}"),
        }
    }
}

impl std::error::Error for Denied {}

pub type Verdict<T> = Result<Allowed<T>, Denied>;
