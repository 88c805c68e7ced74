//! The stand-in of a command that runs on the other machine.

fn main() {
    farside::cli::abort_on_panic();
    std::process::exit(farside::cli::rexec::main());
}
