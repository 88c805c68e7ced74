//! Safe words for unsafe calls. The only rooms with `unsafe` are this one, `ring` and the shim.

pub mod filemeta;
pub mod mountns;
pub mod pidfd;
