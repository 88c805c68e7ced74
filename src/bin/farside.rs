//! The one command that does it all.

fn main() -> std::process::ExitCode {
    farside::cli::abort_on_panic();
    farside::cli::farside::main()
}
