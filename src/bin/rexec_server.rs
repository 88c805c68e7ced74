//! Runs commands for rexec.

fn main() -> std::process::ExitCode {
    farside::cli::daemon::exit(farside::cli::rexec_server::main())
}
