//! Unix sockets of one machine, used from the other.

fn main() -> std::process::ExitCode {
    farside::cli::abort_on_panic();
    farside::cli::daemon::exit(farside::cli::udsproxyd::main())
}
