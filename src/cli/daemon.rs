//! What all of the servers do around their service: logs, signals, an orderly end.

use std::time::Duration;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::access::OfDaemon;
use super::host_keys::Keys;
use super::logs::Measured;
use crate::errno::OsResult;
use crate::limits::DRAIN_MS;
use crate::link::{Node, REFUSED_LOG};
use crate::policy::Grants;
use crate::ring::{WISH_ENV, Wish};
use crate::sys::{dumpable, signals};

/// Options that every server has.
#[derive(Debug, clap::Args)]
pub struct DaemonArgs {
    /// How to reach the kernel: auto (the best that works), io_uring (or an error that says why not), io_uring-basic
    /// (only what Linux 5.10 has, for a kernel whose newer parts make trouble), epoll
    #[arg(long, value_name = "ENGINE", env = WISH_ENV, default_value = "auto")]
    pub(super) engine: Wish,
    /// How much is logged to stderr; RUST_LOG (`debug`, `farside::link=trace`, ...) says more, and wins
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = ["error", "warn", "info", "debug", "trace"])]
    log: String,
    /// Links without encryption or proof of identity: loopback and 192.168.10.0/24 only
    /// [env: FARSIDE_INSECURE_PLAINTEXT=1]
    #[cfg(feature = "plaintext")]
    #[arg(long)]
    insecure_plaintext: bool,
}

impl DaemonArgs {
    /// How the node knows who is at the other end of a link. `serves`: what it gives to others.
    ///
    /// # Errors
    /// One line: this machine's key can't be used.
    pub(super) fn access(&self, serves: Grants) -> Result<OfDaemon, String> {
        #[cfg(feature = "plaintext")]
        if super::access::plaintext_wanted(self.insecure_plaintext) {
            tracing::warn!("links are NOT encrypted; loopback and 192.168.10.0/24 only");
            return Ok(OfDaemon::Plain);
        }
        keep_memory_to_itself();
        Keys::open(serves).map(OfDaemon::Keys)
    }
}

/// For a process that stays and is about to read this machine's key: no core dump of it, and nobody else's look into it.
pub(super) fn keep_memory_to_itself() {
    if let Err(e) = dumpable::forbid() {
        tracing::warn!("a core dump of this process would have this machine's key in it: {e}");
    }
}

pub fn init_logs(args: &DaemonArgs) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("RUST_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(&args.log));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(false);
    // A second call is the same program's and changes nothing.
    let _ = tracing_subscriber::registry().with(filter).with(lines).with(Measured::new()).try_init();
}

/// Waits for SIGTERM or SIGINT. SIGHUP calls `reload`.
pub fn wait_for_the_end(taken: &nix::sys::signalfd::SignalFd, mut reload: impl FnMut()) -> OsResult<()> {
    loop {
        match taken.read_signal() {
            Ok(Some(info)) if info.ssi_signo == libc::SIGHUP.cast_unsigned() => reload(),
            Ok(Some(_)) => return Ok(()),
            Ok(None) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(crate::errno::OsError::new("read a signal", e)),
        }
    }
}

/// Lets streams finish.
pub fn leave(node: &Node) {
    tracing::info!("leaving: streams may finish within {} s", DRAIN_MS / 1000);
    if !node.leave(Duration::from_millis(DRAIN_MS)) {
        tracing::warn!("some streams did not finish; they are cut");
    }
}

/// The signals that `wait_for_the_end` waits for: taken before the first thread starts.
pub fn take_signals() -> OsResult<nix::sys::signalfd::SignalFd> {
    signals::take_server()
}

/// Worker threads: one a core, unless told otherwise.
pub fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// As `init_logs` for a command that a person types: what it did by the way, in words alone.
pub fn init_command_logs() {
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(std::io::stderr);
    let _ = subscriber.with_ansi(false).with_target(false).without_time().try_init();
}

/// As `init_logs` for a command that stands in for another one, whose stderr it shares: errors, and fds that were refused.
pub fn init_client_logs() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("FARSIDE_LOG");
    let usual = format!("error,{REFUSED_LOG}=warn");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(usual));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let _ = subscriber.with_ansi(false).try_init();
}

/// A server's end: 0, or one line on stderr and 1.
pub fn exit(result: Result<(), String>) -> std::process::ExitCode {
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(line) => {
            eprintln!("{line}");
            std::process::ExitCode::FAILURE
        }
    }
}
