//! `negsync undelete`

use super::StoreArguments;
use super::delete::count;
use super::operator_request::{ChoiceArguments, follow};
use negsync::control::ControlRequest;
use serde_json::json;
use std::io::Write;
use std::process::ExitCode;

pub(super) const EXAMPLES: &str = "Examples:
  negsync undelete --id note1... --store events.sqlite
  negsync undelete --filter '{\"authors\":[\"HEX\"]}' --config /etc/negsync/relay.toml
  negsync undelete --all

A removed event is known by its id, author, kind and time: the filter may ask for these.";

#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("chosen").args(["ids", "filter", "all"]).required(true).multiple(true)))]
pub(super) struct UndeleteArguments {
    #[command(flatten)]
    choice: ChoiceArguments,
    /// All that `negsync delete` has removed.
    #[arg(long, conflicts_with_all = ["ids", "filter"])]
    all: bool,
    #[command(flatten)]
    store: StoreArguments,
    /// Print one JSON object instead of a line.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &UndeleteArguments) -> anyhow::Result<ExitCode> {
    let config = arguments.store.config()?;
    let request = match arguments.all {
        true => ControlRequest::UndeleteAll,
        false => ControlRequest::Undelete(arguments.choice.choice()?),
    };
    let ids = follow(&config, &request)?.ids;
    let text = if arguments.json {
        json!({ "let_in": ids }).to_string()
    } else {
        format!(
            "{} no longer kept out; a client, a sync or an import has to send them again",
            count(ids, "event")
        )
    };
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(ExitCode::SUCCESS)
}
