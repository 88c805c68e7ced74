//! Links between two nodes: how they are dialled and accepted, and the streams that are pumped over them.
//!
//! ```text
//!   session: door, dialer ──fd──▶ node ──▶ worker (thread, ring): pair (mux + LAT + BULK), local ends of streams
//! ```
//!
//! `session` knows who may and where; a `worker` moves bytes, and does what its streams (`crate::stream`) say.

#[cfg(test)]
mod fd_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod record_tests;
mod session;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
mod worker;

pub use session::conn;
pub use session::{
    Access, Authority, Door, Ends, FileServer, Judged, LaterDial, Node, NodeOptions, Shown, Stranger, dial_client,
    keep_session,
};
pub use worker::REFUSED_LOG;
pub use worker::helpers::Helpers;
pub use worker::inbox::{Attached, First, Notice, Pending, Terms};
pub use worker::peer::{Handler, Incoming, Known, Peer};
