//! Safe words for unsafe calls. The only rooms with `unsafe` are this one, `ring` and the shim.

pub mod caller;
pub mod caps;
pub mod daemon;
pub mod file;
pub mod filemeta;
pub mod frames;
pub mod handle;
pub mod inherited;
pub mod kick;
pub mod mount_id;
pub mod mount_ioctl;
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
pub mod unix_diag;
