//! `negsync backup`

use super::{StoreArguments, check, progress_bar};
use negsync::store::{BackupReport, backup};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

pub(super) const EXAMPLES: &str = "Examples:
  negsync backup /backup/$(date +%F).sqlite --config /etc/negsync/relay.toml
  negsync backup copy.sqlite --store events.sqlite --verify";

#[derive(clap::Args)]
pub(super) struct BackupArguments {
    /// The copy; a file of this name must not be there yet.
    #[arg(value_name = "FILE")]
    to: PathBuf,
    #[command(flatten)]
    store: StoreArguments,
    /// Check the copy as `negsync check` does: pages, ids, signatures and rules.
    #[arg(long)]
    verify: bool,
    /// Print one JSON object instead of a line.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &BackupArguments) -> anyhow::Result<ExitCode> {
    let path = arguments.store.file_config("`negsync backup`", "use pg_dump")?.store.path;
    let bar = progress_bar(Some(0), PAGES);
    let BackupReport { events, bytes, .. } = backup(&path, &arguments.to, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    let to = arguments.to.display().to_string();
    let checked = if arguments.verify {
        Some(check::look(|progress| negsync::store::check(&arguments.to, progress))?)
    } else {
        None
    };
    let is_sound = checked.as_ref().is_none_or(|checked| checked.is_sound());
    let text = if arguments.json {
        let verified = checked.as_ref().map(|checked| checked.is_sound());
        json!({ "backup": to, "events": events, "bytes": bytes, "sound": verified }).to_string()
    } else {
        format!("{to}: {events} events, {bytes} bytes")
    };
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{text}");
    if let Some(checked) = checked.filter(|_| !arguments.json) {
        let _ = write!(out, "{}", check::lines(&arguments.to.display().to_string(), &checked));
    }
    Ok(if is_sound { ExitCode::SUCCESS } else { ExitCode::from(check::FOUND) })
}

/// The progress bar of a copy.
pub(super) const PAGES: &str = "{bar:40} {percent}% {human_pos} of {human_len} pages, {eta} left";
