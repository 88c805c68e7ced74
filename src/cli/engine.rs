//! `engine N M [ADDR PORT PEER PORT]`: directories and unix sockets, as the guide starts it on the host.

use clap::Parser;

use super::daemon;
use super::node::say_exports;
use super::services::{self, Plan};
use super::uds::UdsArgs;
use super::udsproxyd::join;
use crate::config::{DEFAULT_LISTEN, NodeConfig, config_dir};
use crate::policy::Grants;
use crate::qtfs::far::Exports;

/// Serves this machine's exported directories (mount -t qtfs) and unix sockets to the other machine.
///
/// Without addresses they come from /etc/farside/node.toml (`listen`, `peer`); without that, it serves on 0.0.0.0:7776
/// and waits for its peer.
#[derive(Debug, Parser)]
#[command(name = "engine", version)]
struct Args {
    /// Request threads of each mount; a number beyond a sane pool is clamped
    requests: usize,
    /// Threads of the unix-socket service; clamped to the cores
    uds_threads: usize,
    /// This machine's address: IPv4, IPv6, or a name
    #[arg(requires = "peer_port")]
    addr: Option<String>,
    /// Its TCP port
    port: Option<u16>,
    /// The other machine's address
    peer_addr: Option<String>,
    /// Its TCP port
    peer_port: Option<u16>,
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
    let config = NodeConfig::load(&config_dir()).map_err(|e| e.to_string())?;
    let (listen, peer) = match (args.addr, args.port, args.peer_addr, args.peer_port) {
        (Some(addr), Some(port), Some(peer), Some(peer_port)) => (join(&addr, port), Some(join(&peer, peer_port))),
        _ => match config.listen {
            Some(listen) => (listen, config.peer),
            None => {
                tracing::info!("no address was given: serving on {DEFAULT_LISTEN}");
                (DEFAULT_LISTEN.into(), config.peer)
            }
        },
    };
    say_exports(&config.exports);
    let exports = Exports::new(config.exports, Some(args.requests));
    tracing::info!("{} request threads a mount", exports.threads());
    let plan = Plan {
        workers: args.uds_threads.clamp(1, daemon::default_workers()),
        engine: args.daemon.engine,
        access: args.daemon.access(Grants { uds: true, fs: true, exec: false }).map_err(|e| format!("engine: {e}"))?,
        listen,
        peer,
        exec: false,
        uds: Some((args.uds, config.uds)),
        exports: Some(exports),
        pass: config.pass,
        log: config.log,
        session: config.session,
    };
    services::run(plan).map_err(|e| format!("engine: {e}"))
}
