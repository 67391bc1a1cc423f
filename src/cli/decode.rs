//! `negsync decode`

use super::explain::{Explained, Sender, explain};
use super::is_broken_pipe;
use anyhow::{anyhow, ensure};
use std::io::{BufRead, Read, Write};
use std::process::ExitCode;

/// The longest line that is read, in bytes.
const LINE_BYTES: u64 = 64 << 20;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The hex of a message, or a whole NEG line; `-` reads lines from standard input.
    #[arg(value_name = "HEX")]
    message: String,
    /// Who sent it: decides what a list of ids means. The prompts of wscat tell it too.
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

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let sender = arguments.from.unwrap_or(Sender::Unknown);
    let explain = |line: &str| explain(line, sender, arguments.all);
    if arguments.message != "-" {
        let Explained { text, wrong } = explain(&arguments.message);
        let _ = std::io::stdout().write_all(text.as_bytes());
        return wrong.map_or(Ok(ExitCode::SUCCESS), |wrong| Err(anyhow!(wrong)));
    }
    match decode_lines(&mut std::io::stdin().lock(), explain) {
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        ended => ended,
    }
}

/// Explains each line as it comes, so that a session can be followed.
fn decode_lines(
    input: &mut impl BufRead,
    explain: impl Fn(&str) -> Explained,
) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    let mut code = ExitCode::SUCCESS;
    let mut messages = 0;
    for number in 1u64.. {
        let mut line = Vec::new();
        let read = input.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line)?;
        if read == 0 {
            break;
        }
        ensure!((read as u64) < LINE_BYTES, "line {number} is longer than {LINE_BYTES} bytes");
        let line = String::from_utf8_lossy(&line);
        if line.trim().is_empty() {
            continue;
        }
        let Explained { text, wrong } = explain(&line);
        if messages > 0 {
            writeln!(out)?;
        }
        messages += 1;
        out.write_all(text.as_bytes())?;
        out.flush()?;
        if let Some(wrong) = wrong {
            eprintln!("negsync: line {number}: {wrong}");
            code = ExitCode::FAILURE;
        }
    }
    ensure!(messages > 0, "standard input holds no message");
    Ok(code)
}
