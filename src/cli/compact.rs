//! `negsync compact`

use super::{StoreArguments, waiting};
use negsync::store::{Compacted, compact};
use serde_json::json;
use std::io::Write;
use std::process::ExitCode;

pub(super) const EXAMPLES: &str = "Examples:
  negsync compact --store events.sqlite
  negsync compact --config /etc/negsync/relay.toml --json

No relay may run on the store meanwhile.";

#[derive(clap::Args)]
pub(super) struct CompactArguments {
    #[command(flatten)]
    store: StoreArguments,
    /// Print one JSON object instead of a line.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &CompactArguments) -> anyhow::Result<ExitCode> {
    let path = arguments.store.file_config("`negsync compact`", "use VACUUM")?.store.path;
    let bar = waiting("writing the store anew");
    let Compacted { before_bytes, after_bytes, expired, tombstones, .. } = compact(&path)?;
    bar.finish_and_clear();
    let store = path.display().to_string();
    let text = match arguments.json {
        true => json!({
            "store": store,
            "before_bytes": before_bytes,
            "after_bytes": after_bytes,
            "expired": expired,
            "tombstones": tombstones,
        })
        .to_string(),
        false => format!(
            "{store}: {before_bytes} bytes before, {after_bytes} after; {expired} expired events removed, \
             {tombstones} tombstones kept"
        ),
    };
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(ExitCode::SUCCESS)
}
