//! The program `forge`: everything is in the library.

/// Samples are made of many small texts that one thread allocates and another frees.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    llmforge::cli::run()
}
