//! `farside host`: everything that a host does for its DPU, on one address.

use std::process::ExitCode;

use clap::Args;

use super::daemon;
use super::services::{self, Plan};
use super::uds::UdsArgs;
use crate::config::{DEFAULT_LISTEN, NodeConfig, config_dir};
use crate::policy::Grants;
use crate::qtfs::far::Exports;

#[derive(Debug, Args)]
pub(crate) struct HostArgs {
    /// Where to serve, ADDR:PORT; otherwise `listen` of /etc/farside/node.toml, else 0.0.0.0:7776
    #[arg(long)]
    listen: Option<String>,
    /// Worker threads [default: one a core]
    #[arg(long)]
    workers: Option<usize>,
    #[command(flatten)]
    uds: UdsArgs,
    #[command(flatten)]
    daemon: daemon::DaemonArgs,
}

pub(crate) fn host(args: HostArgs) -> ExitCode {
    daemon::init_logs(&args.daemon);
    daemon::exit(run(args))
}

fn run(args: HostArgs) -> Result<(), String> {
    let config = NodeConfig::load(&config_dir()).map_err(|e| e.to_string())?;
    let listen = args.listen.or(config.listen).unwrap_or_else(|| DEFAULT_LISTEN.into());
    say_exports(&config.exports);
    let plan = Plan {
        workers: args.workers.unwrap_or_else(daemon::default_workers),
        engine: args.daemon.engine,
        access: args
            .daemon
            .access(Grants { exec: true, uds: true, fs: true })
            .map_err(|e| format!("farside host: {e}"))?,
        listen,
        peer: config.peer,
        exec: true,
        uds: Some((args.uds, config.uds)),
        exports: Some(Exports::new(config.exports, None)),
        pass: config.pass,
        log: config.log,
        session: config.session,
    };
    services::run(plan).map_err(|e| format!("farside host: {e}"))
}

/// Who exports nothing should know it before the first mount fails.
pub(super) fn say_exports(exports: &[crate::config::Export]) {
    if exports.is_empty() {
        let file = config_dir().join("node.toml");
        tracing::warn!("no directory is exported; add [[export]] path = \"/DIR\" to {}", file.display());
    }
    for export in exports {
        tracing::info!("exported: {} ({:?})", export.path.display(), export.access);
    }
}
