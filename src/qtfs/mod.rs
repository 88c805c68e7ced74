//! The services' files: FUSE on the near side, a file server on the far side.
//!
//! ```text
//!   program ── kernel ── /dev/fuse ── near ════ TCP, one link a mount ════ far ── the host's file system
//!                                       └ alias: a local listener on a host socket's inode
//! ```
//!
//! The near side relays FUSE requests and decides almost nothing; the far side decodes and serves them, and trusts
//! no number in them. `abi` is the kernel's words, `wire` is what both sides add to them.

pub mod abi;
pub mod far;
mod frames;
pub mod near;
pub mod wire;
