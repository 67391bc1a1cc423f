//! `negsync bans`

use super::{StoreArguments, unless_closed};
use negsync::moderation::{ListEntry, Moderation};
use serde_json::{Value, json};
use std::io::Write;
use std::process::ExitCode;

pub(super) const EXAMPLES: &str = "Examples:
  negsync bans --config /etc/negsync/relay.toml
  negsync bans --store events.sqlite --json | jq '.bans[].key'

The lines are those of the file (moderation.file), which may be edited.";

#[derive(clap::Args)]
pub(super) struct BansArguments {
    #[command(flatten)]
    store: StoreArguments,
    /// Print one JSON object instead of lines.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &BansArguments) -> anyhow::Result<ExitCode> {
    let moderation = Moderation::configured(&arguments.store.config()?)?;
    let list = moderation.current();
    let mut out = std::io::stdout().lock();
    let mut print = || {
        if arguments.json {
            let bans: Vec<Value> = list.entries().iter().map(object).collect();
            let file = moderation.path().display().to_string();
            writeln!(out, "{}", json!({ "file": file, "bans": bans }))?;
            return Ok(());
        }
        for entry in list.entries() {
            writeln!(out, "{entry}")?;
        }
        Ok(())
    };
    unless_closed(print())?;
    Ok(ExitCode::SUCCESS)
}

/// An entry as JSON, under its keyword in the file.
fn object(entry: &ListEntry) -> Value {
    let line = entry.to_string();
    let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
    let (value, reason) = rest.split_once(' ').unwrap_or((rest, ""));
    match entry {
        ListEntry::Key(..)
        | ListEntry::Event(..)
        | ListEntry::Ip(..)
        | ListEntry::AllowKey(..)
        | ListEntry::AllowEvent(..) => json!({ word: value, "reason": reason }),
        ListEntry::AllowMethod(..) => json!({ word: value, "method": reason }),
        ListEntry::AllowKind(kind) | ListEntry::RefuseKind(kind) => json!({ word: kind }),
        _ => json!({ word: rest }),
    }
}
