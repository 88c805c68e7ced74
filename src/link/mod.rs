//! Links between two nodes: how they are dialled and accepted, and the streams that are pumped over them.
//!
//! ```text
//!   door, dialer ──fd──▶ node ──▶ worker (thread, ring) ── pair (mux + LAT + BULK) ── port (fd ↔ stream)
//! ```

#[cfg(test)]
mod address_tests;
mod announced;
mod answer;
mod budget;
pub mod conn;
mod ctx;
mod dialer;
mod door;
#[cfg(test)]
mod fd_tests;
mod file_links;
mod guard;
mod guests;
mod helpers;
#[cfg(test)]
mod hostile_tests;
mod inbox;
mod lane;
mod looks;
mod node;
mod notices;
mod pace;
mod pair;
mod passing;
mod port;
mod pump;
#[cfg(test)]
mod record_tests;
mod sealed;
#[cfg(test)]
mod sim;
mod sink;
mod standing;
#[cfg(test)]
mod tests;
mod token;
mod worker;

pub use dialer::{LaterDial, dial_client, keep_session};
pub use door::Door;
pub use guard::{Access, Authority, Ends, Judged, Known, Shown, Stranger};
pub use helpers::Helpers;
pub use inbox::{Attached, First, Notice, Pending, Terms};
pub use node::{FileServer, Handler, Incoming, Node, NodeOptions, Peer};
pub use passing::REFUSED_LOG;
