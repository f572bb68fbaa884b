//! The `picloud` program.

use std::process::ExitCode;

// The allocator matters: many small, short-lived allocations from many threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    picloud::cli::main()
}
