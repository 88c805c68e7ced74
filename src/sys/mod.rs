//! Safe words for unsafe calls. The only rooms with `unsafe` are this one, `ring` and the shim.

pub mod caps;
pub mod filemeta;
pub mod frames;
pub mod inherited;
pub mod mount_id;
pub mod mountns;
pub mod nonblock;
pub mod peer;
pub mod pidfd;
pub mod random;
pub mod readable;
pub mod same_file;
pub mod scm;
pub mod signals;
pub mod spawn;
pub mod stand_in;
pub mod tempdir;
pub mod thread_identity;
pub mod unix;
