//! `negsync decode`

use super::explain::{Explained, Sender, explain};
use super::is_broken_pipe;
use super::lines::Lines;
use anyhow::{anyhow, ensure};
use std::io::{BufRead, Write};
use std::process::ExitCode;

pub(super) const EXAMPLES: &str = "Examples:
  negsync decode 6100000200
  negsync decode '[\"NEG-MSG\",\"neg\",\"6100000200\"]' --from relay
  negsync neg-open '{}' --empty | negsync decode -";

#[derive(clap::Args)]
pub(super) struct DecodeArguments {
    /// The hex of a message, or a whole NEG line; `-` reads lines from standard input.
    #[arg(value_name = "HEX")]
    message: String,
    /// Who sent it: decides what a list of ids means. The `<` of wscat tells it too.
    #[arg(long, value_name = "client|relay", value_parser = sender)]
    from: Option<Sender>,
    /// Print every id and whole id prefixes.
    #[arg(long)]
    all: bool,
}

fn sender(text: &str) -> Result<Sender, String> {
    match text {
        "client" => Ok(Sender::Client),
        "relay" => Ok(Sender::Relay),
        _ => Err("must be client or relay".to_owned()),
    }
}

pub(super) fn run(arguments: &DecodeArguments) -> anyhow::Result<ExitCode> {
    let sender = arguments.from.unwrap_or(Sender::Unknown);
    let explain = |line: &str| explain(line, sender, arguments.all);
    if arguments.message != "-" {
        let Explained { text, wrong } = explain(&arguments.message);
        let _ = std::io::stdout().write_all(text.as_bytes());
        return wrong.map_or(Ok(ExitCode::SUCCESS), |wrong| Err(anyhow!(wrong)));
    }
    match decode_lines(Lines::new(std::io::stdin().lock()), explain) {
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        ended => ended,
    }
}

/// Explains each line as it arrives, so that a session can be followed.
fn decode_lines(
    mut lines: Lines<impl BufRead>,
    explain: impl Fn(&str) -> Explained,
) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    let mut code = ExitCode::SUCCESS;
    let mut messages = 0;
    while let Some((number, line)) = lines.next()? {
        let Explained { text, wrong } = explain(&line);
        if messages > 0 {
            writeln!(out)?;
        }
        messages += 1;
        out.write_all(text.as_bytes())?;
        out.flush()?;
        if let Some(wrong) = wrong {
            let _ = writeln!(std::io::stderr(), "negsync: line {number}: {wrong}");
            code = ExitCode::FAILURE;
        }
    }
    ensure!(messages > 0, "standard input holds no message");
    Ok(code)
}
