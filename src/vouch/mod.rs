//! How a program that may not read this machine's key reaches the other machine as one of this machine's users.
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
mod server;
mod users;
mod wire;

use std::path::PathBuf;

pub use asker::Asker;
pub use server::{Host, Server};
pub use users::Users;

/// Another place for the daemons' sockets, for tests and for more than one set of daemons on a machine.
pub const DIR_ENV: &str = "FARSIDE_VOUCH_DIR";

pub fn dir() -> PathBuf {
    std::env::var_os(DIR_ENV).map_or_else(|| PathBuf::from("/run/farside-vouch"), PathBuf::from)
}
