//! Unix sockets of one machine, used from the other.
//!
//! ```text
//!   a program ── libudsproxy.so ──▶ near: asks the far side, then connects the program's own socket
//!                                     │ ConnectRequest (wire)
//!                                     ▼
//!                                   far: connects as the caller, or not at all
//! ```
//!
//! This room decides and connects; the bytes of a connection are pumped by the links' workers.

pub mod far;
pub mod near;
pub mod policy;
pub mod wire;
