//! The `danlu` command.

fn main() -> std::process::ExitCode {
    danlu::cli::main()
}
