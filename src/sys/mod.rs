//! Safe words for unsafe calls. The only rooms with `unsafe` are this one, `ring` and the shim.

pub mod caller;
pub mod daemon;
pub mod file;
pub mod handle;
pub mod kick;
