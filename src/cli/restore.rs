//! `negsync restore`

use super::backup::PAGES;
use super::{StoreArguments, progress_bar};
use negsync::store::{BackupReport, restore};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

pub(super) const EXAMPLES: &str = "Examples:
  negsync restore /backup/2026-11-26.sqlite --config /etc/negsync/relay.toml
  negsync restore copy.sqlite --store events.sqlite";

#[derive(clap::Args)]
pub(super) struct RestoreArguments {
    /// What `negsync backup` has made.
    #[arg(value_name = "BACKUP")]
    from: PathBuf,
    #[command(flatten)]
    store: StoreArguments,
    /// Print one JSON object instead of a line.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &RestoreArguments) -> anyhow::Result<ExitCode> {
    let path = arguments.store.file_config("`negsync restore`", "use pg_restore")?.store.path;
    let bar = progress_bar(Some(0), PAGES);
    let BackupReport { events, bytes, .. } = restore(&arguments.from, &path, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    let store = path.display().to_string();
    let text = match arguments.json {
        true => json!({ "store": store, "events": events, "bytes": bytes }).to_string(),
        false => format!("{store}: {events} events, {bytes} bytes"),
    };
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(ExitCode::SUCCESS)
}
