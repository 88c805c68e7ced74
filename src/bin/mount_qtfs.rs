//! The helper that mount(8) calls for `-t qtfs`.

fn main() -> std::process::ExitCode {
    farside::cli::abort_on_panic();
    farside::cli::mount::run(|_host| Some(farside::cli::carrier::by_daemon()))
}
