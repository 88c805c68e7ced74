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

/// From now on a panic on any thread ends the process, as a release build's does by itself.
pub fn abort_on_panic() {
    let show = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        show(panic);
        std::process::abort();
    }));
}
