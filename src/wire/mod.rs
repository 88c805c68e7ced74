//! Bytes to values and back. Pure: no socket, no clock; every length is checked before it is believed.

pub mod codec;
pub mod features;
pub mod frame;
pub mod hello;
pub mod parser;
pub mod recipe;
pub mod service;

use std::fmt;

/// The peer's mistake. It closes the link it came on and says why, in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtocolError(pub String);

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "protocol error: {}", self.0)
    }
}

impl std::error::Error for ProtocolError {}

pub type WireResult<T> = Result<T, ProtocolError>;

/// Ends the function with a `ProtocolError` that is formatted like `format!`.
macro_rules! bad {
    ($($arg:tt)*) => { return Err($crate::wire::ProtocolError(format!($($arg)*))) };
}
pub(crate) use bad;
