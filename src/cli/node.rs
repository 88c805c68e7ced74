//! `farside host`.

use std::process::ExitCode;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct HostArgs {
    /// Links without encryption or proof of identity: loopback and the lab's 192.168.10.0/24 only
    #[arg(long)]
    pub insecure_plaintext: bool,
}

pub(crate) fn host(_args: HostArgs) -> ExitCode {
    eprintln!("farside host: this part is missing");
    ExitCode::FAILURE
}
