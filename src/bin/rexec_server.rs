//! Runs commands for rexec.

fn main() -> std::process::ExitCode {
    farside::cli::abort_on_panic();
    farside::cli::daemon::exit(farside::cli::rexec_server::main())
}
