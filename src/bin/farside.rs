//! The one command that does it all.

fn main() -> std::process::ExitCode {
    farside::cli::farside::main()
}
