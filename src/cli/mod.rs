//! What was typed, and what it means. The mains call in here and exit with what comes back.

mod access;
pub mod address;
pub mod carrier;
pub mod daemon;
pub mod engine;
mod enrol;
pub mod farside;
mod guide_link;
mod host_keys;
mod incoming;
mod keys;
mod logs;
pub mod mount;
mod node;
mod notify;
mod offload;
mod policy;
pub mod rexec;
pub mod rexec_server;
mod services;
mod stranger;
mod uds;
pub mod udsproxyd;
