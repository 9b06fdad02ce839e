//! The program `forge`: everything is in the library.

fn main() -> std::process::ExitCode {
    llmforge::cli::run()
}
