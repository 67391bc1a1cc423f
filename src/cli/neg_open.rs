//! `negsync neg-open`

use super::StoreArguments;
use super::lines::Lines;
use super::store_reader::StoreReader;
use anyhow::{Context, anyhow, ensure};
use negsync::hex;
use negsync::item::Item;
use negsync::reconcile::{Initiator, InitiatorOptions, SortedItems};
use negsync::store::{Event, Filter};
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::fs::File;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// NIP-01: maximum length of a subscription id, in characters.
const ID_CHARS: usize = 64;

pub(super) const EXAMPLES: &str = "Examples:
  negsync neg-open '{\"kinds\":[1]}' --store events.sqlite
  negsync neg-open '{}' --empty
  negsync neg-open '{}' --events events.jsonl --id mine";

#[derive(clap::Args)]
pub(super) struct NegOpenArguments {
    /// The NIP-01 filter of the events to reconcile.
    #[arg(value_name = "FILTER")]
    filter: String,
    #[command(flatten)]
    store: StoreArguments,
    /// Open with the events of a JSON Lines file instead of a store.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["store", "config", "empty"])]
    events: Option<PathBuf>,
    /// Open with no events: asks for all ids that the relay has.
    #[arg(long, conflicts_with_all = ["store", "config"])]
    empty: bool,
    /// The id of the session.
    #[arg(long, value_name = "ID", default_value = "neg")]
    id: String,
}

pub(super) fn run(arguments: &NegOpenArguments) -> anyhow::Result<ExitCode> {
    let text = &arguments.filter;
    let unusable = || format!("cannot use the filter {text:?}, see NIP-01");
    let filter = Filter::parse(text).with_context(unusable)?;
    let json: Value = serde_json::from_str(text).with_context(unusable)?;
    let id_chars = arguments.id.chars().count();
    ensure!((1..=ID_CHARS).contains(&id_chars), "--id takes 1 to {ID_CHARS} characters");
    let items = match &arguments.events {
        _ if arguments.empty => Vec::new(),
        Some(path) => items_of_file(path, &filter)?,
        None => items_of_store(&arguments.store, &filter)?,
    };
    // By the reference rule, so that every relay supports it.
    let message = Initiator::new(SortedItems::new(items), InitiatorOptions::reference(0))?.open();
    let line = json!(["NEG-OPEN", arguments.id, json, hex::encode(&message)]);
    // A closed standard output is not an error.
    let _ = writeln!(std::io::stdout(), "{line}");
    Ok(ExitCode::SUCCESS)
}

fn items_of_store(store: &StoreArguments, filter: &Filter) -> anyhow::Result<Vec<Item>> {
    let reader = StoreReader::open(&store.config()?)
        .context("no set to open with; give --store FILE, --events FILE or --empty")?;
    let hits = reader.newest(filter)?;
    Ok(hits.into_iter().map(|hit| hit.item).collect())
}

/// The matching items of a file, with `limit` applied; signatures are not checked.
fn items_of_file(path: &Path, filter: &Filter) -> anyhow::Result<Vec<Item>> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("cannot read {shown}"))?;
    let mut lines = Lines::new(BufReader::new(file));
    let mut items = Vec::new();
    while let Some((number, line)) = lines.next().with_context(|| shown.to_string())? {
        // A skipped event would be requested although the file has it.
        let event = Event::parse(&line)
            .map_err(|error| anyhow!("{shown}, line {number}: {}", error.reason))?;
        if filter.matches(&event) {
            items.push(event.item());
        }
    }
    // NIP-01: `limit` takes the newest events; within a second those with the lowest ids.
    items.sort_unstable_by_key(|item| (Reverse(item.created_at), item.id));
    items.dedup();
    items.truncate(filter.limit.unwrap_or(usize::MAX));
    Ok(items)
}
