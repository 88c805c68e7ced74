//! The host's directories and unix sockets for its DPU.

fn main() -> std::process::ExitCode {
    farside::cli::abort_on_panic();
    farside::cli::daemon::exit(farside::cli::engine::main())
}
