fn main() -> std::process::ExitCode {
    farside::cli::farside::main()
}
