//! Safe words for unsafe calls. The only rooms with `unsafe` are this one, `ring` and the shim.

pub mod mount_id;
pub mod peer;
pub mod scm;
pub mod thread_identity;
pub mod unix;
