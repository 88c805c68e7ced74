//! The stand-in of a command that runs on the other machine.

fn main() {
    std::process::exit(farside::cli::rexec::main());
}
