//! The `negsync` command.

mod cli;

use clap::Parser;
use std::io::Write;
use std::process::ExitCode;
use tikv_jemallocator::Jemalloc;

// Threads start and end for years: the system's allocator would keep more memory with each hour.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let command_line = match cli::CommandLine::try_parse() {
        Ok(command_line) => command_line,
        // An invalid command line exits with 1; 2 means that a sync could not be completed.
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    match cli::run(command_line) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "negsync: {}", explain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error, its causes and a hint, without repetitions: many errors end with the text of their
/// cause, and some causes repeat the error.
fn explain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    let mut last = text.clone();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) && !cause.ends_with(&last) {
            text = format!("{text}: {cause}");
        }
        last = cause;
    }
    match cli::hints(error) {
        Some(hints) => format!("{text}; {hints}"),
        None => text,
    }
}
