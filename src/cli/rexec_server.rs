//! `CMD_NET_ADDR=tcp://0.0.0.0:PORT rexec_server`

use clap::Parser;

use super::services::{self, Plan};
use super::{address, daemon};
use crate::config::{NodeConfig, config_dir};
use crate::policy::Grants;

/// Runs commands for rexec on other machines, as if they ran there.
///
/// Serves in the foreground on the address in CMD_NET_ADDR (tcp://ADDR:PORT). As root, a command runs as the user, with
/// the groups and capabilities of its caller; as any other user, only that user's commands run. SIGTERM ends it after
/// running commands had a few seconds to finish.
#[derive(Debug, Parser)]
#[command(name = "rexec_server", version)]
struct Args {
    /// Worker threads [default: one a core]
    #[arg(long)]
    workers: Option<usize>,
    #[command(flatten)]
    daemon: daemon::DaemonArgs,
}

/// # Errors
/// One line: what failed, on what, and what to do.
pub fn main() -> Result<(), String> {
    let args = Args::parse();
    daemon::init_logs(&args.daemon);
    let listen =
        address::from_env()?.ok_or("rexec_server: CMD_NET_ADDR is not set; say where to serve, tcp://ADDR:PORT")?;
    let config = NodeConfig::load(&config_dir()).map_err(|e| format!("rexec_server: {e}"))?;
    let workers = args.workers.unwrap_or_else(daemon::default_workers);
    let engine = args.daemon.engine;
    let access =
        args.daemon.access(Grants { exec: true, ..Grants::default() }).map_err(|e| format!("rexec_server: {e}"))?;
    let (pass, log, session) = (config.pass, config.log, config.session);
    let plan =
        Plan { workers, engine, access, listen, peer: None, exec: true, uds: None, exports: None, pass, log, session };
    services::run(plan).map_err(|e| format!("rexec_server: {e}"))
}
