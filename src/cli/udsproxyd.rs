//! `udsproxyd THREADS ADDR PORT PEER_ADDR PEER_PORT`, as in the guide.

use clap::Parser;

use super::daemon;
use super::services::{self, Plan};
use super::uds::UdsArgs;
use crate::config::{NodeConfig, config_dir};
use crate::policy::Grants;

/// Lets programs here (under LD_PRELOAD=libudsproxy.so) connect to the other machine's unix sockets, and its programs
/// to the ones here.
///
/// The two are equal peers: start them in any order, each with its own address first. SIGTERM ends it after open
/// connections had a few seconds to finish.
#[derive(Debug, Parser)]
#[command(name = "udsproxyd", version)]
struct Args {
    /// Worker threads
    threads: usize,
    /// This machine's address: IPv4, IPv6, or a name
    addr: String,
    /// Its TCP port
    port: u16,
    /// The other machine's address; a name is looked up anew whenever the session is
    peer_addr: String,
    /// Its TCP port
    peer_port: u16,
    #[command(flatten)]
    uds: UdsArgs,
    #[command(flatten)]
    daemon: daemon::DaemonArgs,
}

/// # Errors
/// One line: what failed, on what, and what to do.
pub fn main() -> Result<(), String> {
    let args = Args::parse();
    daemon::init_logs(&args.daemon);
    if args.threads == 0 {
        return Err("udsproxyd: 0 threads; say 1 or more".into());
    }
    let config = NodeConfig::load(&config_dir()).map_err(|e| format!("udsproxyd: {e}"))?;
    let plan = Plan {
        workers: args.threads,
        engine: args.daemon.engine,
        access: args.daemon.access(Grants { uds: true, ..Grants::default() }).map_err(|e| format!("udsproxyd: {e}"))?,
        listen: join(&args.addr, args.port),
        peer: Some(join(&args.peer_addr, args.peer_port)),
        exec: false,
        uds: Some((args.uds, config.uds)),
        exports: None,
        pass: config.pass,
        log: config.log,
        session: config.session,
    };
    services::run(plan).map_err(|e| format!("udsproxyd: {e}"))
}

/// `ADDR:PORT`, with brackets around an IPv6 address.
pub(super) fn join(addr: &str, port: u16) -> String {
    if addr.contains(':') && !addr.starts_with('[') { format!("[{addr}]:{port}") } else { format!("{addr}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_joined_as_std_reads_them() {
        assert_eq!(join("192.168.10.10", 12121), "192.168.10.10:12121");
        assert_eq!(join("::1", 1), "[::1]:1");
        assert_eq!(join("[::1]", 1), "[::1]:1");
    }
}
