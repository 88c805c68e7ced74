//! `CMD_NET_ADDR=tcp://0.0.0.0:PORT rexec_server`

use std::sync::Arc;

use clap::Parser;

use super::{address, daemon};
use crate::link::{Door, Handler, Incoming, Node, NodeOptions};
use crate::rexec::Server;
use crate::wire::service;

/// Runs commands for rexec on other machines, as if they ran there.
///
/// Serves in the foreground on the address in CMD_NET_ADDR (tcp://ADDR:PORT). As root, a command runs as the user, with
/// the groups and capabilities of its caller; as any other user, only that user's commands run. SIGTERM ends it after
/// running commands had a few seconds to finish.
#[derive(Debug, Parser)]
#[command(name = "rexec_server", version)]
struct Args {
    /// Serve unencrypted links, to loopback and 192.168.10.0/24 only [env: FARSIDE_INSECURE_PLAINTEXT=1]
    #[arg(long)]
    insecure_plaintext: bool,
    /// Worker threads [default: one a core]
    #[arg(long)]
    workers: Option<usize>,
}

struct ExecOnly(Server);

impl Handler for ExecOnly {
    fn on_open(&self, incoming: Incoming) {
        match incoming.service {
            service::EXEC => self.0.on_open(incoming),
            _ => incoming.stream.refuse(nix::errno::Errno::EOPNOTSUPP),
        }
    }
}

/// # Errors
/// One line: what failed, on what, and what to do.
pub fn main() -> Result<(), String> {
    let args = Args::parse();
    daemon::init_logs();
    let addr = address::from_env()?.ok_or("rexec_server: CMD_NET_ADDR is not set; say where to serve, tcp://ADDR:PORT")?;
    daemon::plaintext_gate("rexec_server", args.insecure_plaintext)?;
    serve(&addr, args.workers.unwrap_or_else(daemon::default_workers)).map_err(|e| format!("rexec_server: {e}"))
}

fn serve(addr: &str, workers: usize) -> crate::errno::OsResult<()> {
    let taken = daemon::take_signals()?;
    let handler = Arc::new(ExecOnly(Server::default()));
    let node = Node::start(NodeOptions { workers, handler, files: None })?;
    let door = Door::bind(addr, node.clone())?;
    tracing::info!("serving commands on {:?}", door.addresses());
    door.open()?;
    daemon::serve_until_told(&node, &taken, || tracing::info!("no policy file to reload yet"))
}
