//! `farside`: what was typed.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use super::{enrol, keys, node, offload, policy};

/// libvirtd on one machine, QEMU on another, and nobody notices.
#[derive(Debug, Parser)]
#[command(name = "farside", version, max_term_width = 110)]
struct Farside {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve this machine's programs, unix sockets and directories to the DPU (on the host)
    Host(node::HostArgs),
    /// Bring libvirtd's offload up and down (on the DPU)
    #[command(subcommand)]
    Dpu(Dpu),
    /// Make the directory that libvirtd runs in (on the DPU)
    #[command(subcommand)]
    Rootfs(Rootfs),
    /// Print this machine's key, one line to take to the other one; made if there is none
    Key,
    /// Trust another machine's key
    #[command(after_help = keys::TRUST_EXAMPLES)]
    Trust(keys::Trust),
    /// Who is trusted, what each may do here, and when it was last seen
    Peers(keys::Peers),
    /// Trust a machine, or one of its keys, no more
    Revoke(keys::Revoke),
    /// Go from this machine's key to the next one, with a time in which both are good
    #[command(after_help = keys::ROTATE_EXAMPLES)]
    Rotate(keys::Rotate),
    /// Have this machine and another one trust each other, over ssh
    #[command(after_help = enrol::EXAMPLES)]
    Enrol(enrol::Enrol),
    /// What a peer may do here
    #[command(subcommand)]
    Policy(Rules),
    /// Run a program inside the offload; `dpu up` starts libvirtd with it
    #[command(hide = true)]
    Enter(Enter),
}

#[derive(Debug, Subcommand)]
enum Rules {
    /// Whether a peer may do something here, and which line says so
    #[command(after_help = policy::EXAMPLES)]
    Check(policy::Check),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Dpu {
    /// Write a commented /etc/farside/node.toml to start from
    Init,
    /// Mount the host's directories, and start libvirtd in its rootfs; mend what has died since an earlier `up`
    Up {
        /// Another file than /etc/farside/node.toml
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Undo exactly what `up` did, also one that did not come to its end
    Down {
        /// Destroy the virtual machines that still run
        #[arg(long)]
        force: bool,
    },
    /// Whether every part of the offload lives, and since when
    #[command(after_help = "Exit status: 0 whole, 3 not up, 4 degraded (each dead part is named).")]
    Status,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Rootfs {
    /// Copy the running system: its programs, its configuration without keys, and no emulator
    FromRoot(FromRoot),
}

#[derive(Debug, Args)]
pub(crate) struct FromRoot {
    /// A new or empty directory, or a rootfs that an earlier run began
    pub dir: PathBuf,
    /// Leave this path out; may be given more than once
    #[arg(long, value_name = "PATH")]
    pub skip: Vec<PathBuf>,
    /// Copy manuals and documentation too
    #[arg(long)]
    pub docs: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Enter {
    /// The mount namespace to enter
    #[arg(long)]
    pub space: Option<PathBuf>,
    /// The directory to take for /
    #[arg(long)]
    pub root: Option<PathBuf>,
    /// Wait for one byte on standard input, and give up if none comes
    #[arg(long)]
    pub held: bool,
    /// KEY=VALUE: the command's environment is made of these alone
    #[arg(long)]
    pub env: Vec<String>,
    #[arg(last = true, required = true)]
    pub command: Vec<std::ffi::OsString>,
}

pub fn main() -> ExitCode {
    match Farside::parse().command {
        Command::Host(args) => node::host(args),
        Command::Dpu(command) => offload::dpu(command),
        Command::Rootfs(command) => offload::rootfs(command),
        Command::Key => keys::key(),
        Command::Trust(typed) => keys::trust(typed),
        Command::Peers(typed) => keys::peers(typed),
        Command::Revoke(typed) => keys::revoke(typed),
        Command::Rotate(typed) => keys::rotate(typed),
        Command::Enrol(typed) => enrol::enrol(typed),
        Command::Policy(Rules::Check(typed)) => policy::check(typed),
        Command::Enter(order) => offload::enter(order),
    }
}
