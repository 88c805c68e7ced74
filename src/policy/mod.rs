//! What one trusted peer may do here: its file, its rules, and the machine-wide lists that narrow every peer.
//!
//!   peers.d/NAME.toml ── PeerFile::parse ──▶ keys, addresses, Policy
//!   /etc/rexec/whitelist, /etc/qtfs/whitelist ──▶ Machine          (these only take away)
//!
//!   Policy::exec │ uds │ fs │ mount (Machine, what is asked) ──▶ Allowed, by which line │ Denied, and why
//!
//! Nothing is allowed that no rule allows; of the rules of a service the first that matches decides. What is judged is
//! always the object itself by the path that the kernel gives for it, never the path that the peer has written: who
//! judges opens first, without following what the peer may change meanwhile, and then uses what was judged.
//!
//! There is no rule about processes, since there is nothing to decide: a peer names no pid. Its signals go to the
//! supervisor of a command that it has started itself, and the supervisor signals its own children, so they reach what
//! descends from that peer's commands and nothing else.
//!
//! Pure: no file, no clock. Accounts and symbolic links are asked of whoever calls.

mod address;
mod any;
mod capabilities;
mod environment;
mod exec;
mod fs;
mod glob;
mod links;
mod peer_file;
#[cfg(test)]
mod tests;
mod text;
mod uds;
mod verdict;
mod whitelist;

pub use address::Network;
pub use capabilities::CapabilityMask;
pub use environment::Environment;
pub use exec::{Accounts, ExecGrant, ExecQuery};
pub use fs::MountGrant;
pub use glob::{GlobError, PathGlob, TextGlob};
pub use links::{AsWritten, Links};
pub use peer_file::{FileError, PeerFile, Policy};
pub use text::{Grants, new_file, with_keys};
pub use verdict::{Allowed, Denied, Place, Service, Verdict};
pub use whitelist::{ExecList, FsList, FsOp, FsOps, Machine, Within};
