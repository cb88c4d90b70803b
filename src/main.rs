//! The edge: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    match rowcast::cli::run(rowcast::cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
