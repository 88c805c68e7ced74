//! libudsproxy.so in real programs, against a real daemon whose far side is this machine.
//!
//! Needs root and gcc; says loudly when it has not got them.

#[path = "common/skip.rs"]
mod skip;

#[path = "shim/fuse.rs"]
mod fuse;
#[path = "shim/lab.rs"]
mod lab;

#[path = "shim/calls.rs"]
mod calls;
#[path = "shim/datagrams.rs"]
mod datagrams;
#[path = "shim/exports.rs"]
mod exports;
#[path = "shim/failures.rs"]
mod failures;
#[path = "shim/library.rs"]
mod library;
#[path = "shim/load.rs"]
mod load;
#[path = "shim/views.rs"]
mod views;
