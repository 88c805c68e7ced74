//! The kernel's no, kept exactly: which call said it, and which errno.
//!
//! x86-64 and aarch64 share asm-generic/errno.h, so an errno may cross the wire as its number.

use std::fmt;

pub use nix::errno::Errno;

/// A system call that failed: the step, the thing it failed on (may be empty), the errno.
///
/// The errno is never lost or replaced on the way up: the far side's errno is what the caller of `connect(2)` gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OsError {
    pub op: &'static str,
    pub on: String,
    pub errno: Errno,
}

pub type OsResult<T> = Result<T, OsError>;

impl OsError {
    pub fn new(op: &'static str, errno: Errno) -> Self {
        Self { op, on: String::new(), errno }
    }

    pub fn on(op: &'static str, on: impl fmt::Display, errno: Errno) -> Self {
        Self { op, on: on.to_string(), errno }
    }

    /// The error of the libc call that has just failed.
    pub fn last(op: &'static str) -> Self {
        Self::new(op, Errno::last())
    }
}

impl fmt::Display for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, on, errno } = self;
        let text = errno.desc();
        if on.is_empty() { write!(f, "{op}: {text} ({errno:?})") } else { write!(f, "{op} {on}: {text} ({errno:?})") }
    }
}

impl std::error::Error for OsError {}

impl From<OsError> for std::io::Error {
    fn from(e: OsError) -> Self {
        std::io::Error::from_raw_os_error(e.errno as i32)
    }
}

/// The errno inside an `io::Error`; EIO for the rare one that std made up itself.
pub fn errno_of(e: &std::io::Error) -> Errno {
    e.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// `io::Result` to the errno alone.
pub fn errno_result<T>(result: std::io::Result<T>) -> Result<T, Errno> {
    result.map_err(|e| errno_of(&e))
}

/// `io::Result` to `OsResult`, naming the step.
pub trait Step<T> {
    fn step(self, op: &'static str) -> OsResult<T>;
    fn step_on(self, op: &'static str, on: impl fmt::Display) -> OsResult<T>;
}

impl<T> Step<T> for std::io::Result<T> {
    fn step(self, op: &'static str) -> OsResult<T> {
        self.map_err(|e| OsError::new(op, errno_of(&e)))
    }

    fn step_on(self, op: &'static str, on: impl fmt::Display) -> OsResult<T> {
        self.map_err(|e| OsError::on(op, on, errno_of(&e)))
    }
}

impl<T> Step<T> for nix::Result<T> {
    fn step(self, op: &'static str) -> OsResult<T> {
        self.map_err(|e| OsError::new(op, e))
    }

    fn step_on(self, op: &'static str, on: impl fmt::Display) -> OsResult<T> {
        self.map_err(|e| OsError::on(op, on, e))
    }
}
