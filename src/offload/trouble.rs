//! What a user reads when a step of the offload fails: one line, what and where, and what to do.

use std::fmt;
use std::path::Path;

use crate::errno::OsError;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub what: String,
    /// Empty where the kernel's word says it all.
    pub advice: String,
}

impl Trouble {
    pub fn new(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what: what.into(), advice: advice.into() }
    }

    pub fn io(op: &'static str, path: &Path, error: &std::io::Error) -> Self {
        OsError::on(op, path.display(), crate::errno::errno_of(error)).into()
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, advice } = self;
        if advice.is_empty() { f.write_str(what) } else { write!(f, "{what}; {advice}") }
    }
}

impl std::error::Error for Trouble {}

impl From<OsError> for Trouble {
    fn from(e: OsError) -> Self {
        Self::new(e.to_string(), "")
    }
}

pub type Attempt<T> = Result<T, Trouble>;
