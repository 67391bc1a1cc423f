//! `negsync delete`

use super::operator_request::{ChoiceArguments, follow};
use super::store_reader::StoreReader;
use super::{StoreArguments, waiting};
use negsync::control::{ControlReport, ControlRequest};
use serde_json::json;
use std::io::Write;
use std::process::ExitCode;

pub(super) const EXAMPLES: &str = "Examples:
  negsync delete --filter '{\"authors\":[\"HEX\"]}' --dry-run --config /etc/negsync/relay.toml
  negsync delete --id note1... --store events.sqlite
  negsync export --store events.sqlite --filter '{\"kinds\":[7]}'   (what would go)

A filter without kinds leaves requests to delete (5) and to vanish (62): what they keep out would come back.";

#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("chosen").args(["ids", "filter"]).required(true).multiple(true)))]
pub(super) struct DeleteArguments {
    #[command(flatten)]
    choice: ChoiceArguments,
    #[command(flatten)]
    store: StoreArguments,
    /// Say how many events would go, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object instead of lines.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &DeleteArguments) -> anyhow::Result<ExitCode> {
    let config = arguments.store.config()?;
    let choice = arguments.choice.choice()?;
    let bar = waiting("looking at the stored events");
    let report = if arguments.dry_run {
        let store = StoreReader::open(&config)?;
        store.selected(&choice.selection()?)?.into()
    } else {
        bar.set_message("removing events");
        follow(&config, &ControlRequest::Delete(choice))?
    };
    bar.finish_and_clear();
    let text = if arguments.json {
        let ControlReport { ids, removed, requests_left } = report;
        let dry_run = arguments.dry_run;
        format!(
            "{}\n",
            json!({ "dry_run": dry_run, "kept_out": ids, "removed": removed, "requests_left": requests_left })
        )
    } else {
        sentence(&report, arguments.dry_run)
    };
    let _ = write!(std::io::stdout(), "{text}");
    Ok(ExitCode::SUCCESS)
}

/// Describes what was removed, or would be.
pub(super) fn sentence(report: &ControlReport, dry_run: bool) -> String {
    let (would, are) = if dry_run { ("would be ", "would be") } else { ("", "are") };
    let ControlReport { ids, removed, requests_left } = report;
    let mut text = format!("{} {would}removed and kept out", count(*removed, "event"));
    let unknown = ids.saturating_sub(*removed);
    if unknown > 0 {
        text += &format!("; {} not stored {are} kept out", count(unknown, "id"));
    }
    text.push('\n');
    if *requests_left > 0 {
        text += &format!(
            "{} to delete or to vanish match and stay. Hint: name kinds 5 and 62 in the filter to remove them\n",
            count(*requests_left, "request")
        );
    }
    text
}

pub(super) fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
