//! The edge: parse, run, exit code.

use std::process::ExitCode;

/// Gives back what a crowd needed while it arrived. With glibc's allocator 9,000 screens that came at
/// once cost 13 kB each, with this one 6 (`docs/performance.md`).
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match rowcast::cli::run(rowcast::cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
