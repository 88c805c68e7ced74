//! farside: one node, one session to its peer, three services on it (exec, unix sockets, files).
//!
//! `ARCHITECTURE.md` beside this file has the map and a byte's journey through it.

pub mod cli;

pub mod offload;
pub mod qtfs;
pub mod rexec;
pub mod udsproxyd;
pub mod vouch;

pub mod link;

pub mod fdpass;
pub mod ring;
pub mod trust;

pub mod policy;

pub mod stream;

pub mod auth;
pub mod mux;

pub mod sys;
pub mod wire;

pub mod audit;
pub mod lograte;

#[cfg(test)]
#[path = "../tests/common/skip.rs"]
mod skip;

pub mod config;
pub mod errno;
pub mod limits;
pub mod slack;
