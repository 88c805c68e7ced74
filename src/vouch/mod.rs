//! How a program of this machine reaches the other one by a daemon of its own machine: with its word, or over its session.
//!
//! ```text
//!   rexec ── TLS, with a key that it has just made ──▶ far node shows its key
//!     └─ Asker ── binding, that key ──▶ DIR/PID, a daemon ── who asks? trusted? ──▶ name, voucher ──▶ HELLO
//! ```
//!
//! Every daemon of this machine answers, at a socket named after its process: whoever is there is asked. Who may ask is
//! judged by SO_PEERCRED; what is vouched for (user, groups, capabilities) is what the kernel says of the asker and
//! never what the asker says.

mod asker;
mod carriage;
mod server;
mod wire;

use std::path::PathBuf;

use crate::trust::seen::RUN_DIR_ENV;

pub use asker::{Asker, carry};
pub use carriage::{Carriage, Command, Commands, goes};
pub use server::{Host, Server};

/// The daemons' sockets. Not below /run/farside, which is root's alone.
pub fn dir() -> PathBuf {
    std::env::var_os(RUN_DIR_ENV).map_or_else(|| "/run/farside-vouch".into(), |dir| PathBuf::from(dir).join("vouch"))
}
