//! The `negsync` command.

mod cli;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = match cli::Arguments::try_parse() {
        Ok(arguments) => arguments,
        // A wrong command line is exit code 1: 2 means that a sync could not be completed.
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    match cli::run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("negsync: {error:#}");
            ExitCode::FAILURE
        }
    }
}
