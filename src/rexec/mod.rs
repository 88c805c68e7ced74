//! Remote execution: the stand-in on the near side, the server on the far side.

mod client;
mod daemon;
mod judge;
mod server;
mod wire;

pub use client::{Carried, Ways, run};
pub use server::Server;
