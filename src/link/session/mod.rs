//! Who may have a link with this node, and where its sessions are.
//!
//! ```text
//!   door, dialer ──connection──▶ access: whose key? ──▶ node: which session? ──▶ a worker, or a file server
//! ```

pub(super) mod access;
#[cfg(test)]
mod address_tests;
mod answer;
mod backoff;
pub mod conn;
mod dialer;
mod door;
mod file_links;
mod guests;
pub(super) mod node;
pub(super) mod sealed;
mod standing;

pub use access::{Access, Authority, Ends, Judged, Shown, Stranger};
pub use dialer::{LaterDial, dial_client, keep_session};
pub use door::Door;
pub use node::{FileServer, Node, NodeOptions};
