//! `negsync check`

use super::{StoreArguments, progress_bar};
use negsync::engine::check_store;
use negsync::hex;
use negsync::store::{CheckReport, StoreError};
use serde_json::json;
use std::fmt::Write as _;
use std::io::Write;
use std::process::ExitCode;

/// The exit code when there are findings.
pub(super) const FOUND: u8 = 2;

pub(super) const EXAMPLES: &str = "Examples:
  negsync check --store events.sqlite
  negsync check --config /etc/negsync/relay.toml --json";

#[derive(clap::Args)]
pub(super) struct CheckArguments {
    #[command(flatten)]
    store: StoreArguments,
    /// Print one JSON object instead of lines.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &CheckArguments) -> anyhow::Result<ExitCode> {
    let config = arguments.store.config()?;
    let name = config.store.name();
    let checked = look(|progress| check_store(&config, progress))?;
    let text = if arguments.json { object(&name, &checked) } else { lines(&name, &checked) };
    // The exit code is valid even if standard output is closed.
    let _ = write!(std::io::stdout(), "{text}");
    Ok(if checked.is_sound() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

/// Shows the progress of `check`, with a bar on a terminal.
pub(super) fn look(
    check: impl FnOnce(&mut dyn FnMut(u64, u64)) -> Result<CheckReport, StoreError>,
) -> anyhow::Result<CheckReport> {
    let template = "{bar:40} {percent}% {human_pos} of {human_len} events, {eta} left";
    let bar = progress_bar(Some(0), template);
    let checked = check(&mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    Ok(checked)
}

pub(super) fn lines(store: &str, checked: &CheckReport) -> String {
    let CheckReport { events, tags, expired, vanishing, found, findings } = checked;
    let mut text = String::new();
    for finding in findings {
        let _ = match &finding.id {
            Some(id) => {
                let id = hex::encode(id);
                writeln!(text, "{}: {id}: {}", finding.what, finding.detail)
            }
            None => writeln!(text, "{}: {}", finding.what, finding.detail),
        };
    }
    let _ = write!(text, "{store}: {events} events, {tags} tags");
    if *expired > 0 {
        let _ = write!(text, ", {expired} expired, which go when a relay starts");
    }
    if *vanishing > 0 {
        let _ = write!(text, ", {vanishing} of vanished keys (a relay is still to remove them)");
    }
    if checked.is_sound() {
        return text + "; nothing is wrong\n";
    }
    let total: u64 = found.values().sum();
    let by_kind: Vec<String> =
        found.iter().map(|(what, count)| format!("{count} {what}")).collect();
    let _ = writeln!(
        text,
        "; {total} found: {}\nWhat can be read of it makes a sound store: \
         negsync export --store {store} | negsync import --store NEW",
        by_kind.join(", "),
    );
    text
}

fn object(store: &str, checked: &CheckReport) -> String {
    let findings: Vec<_> = checked
        .findings
        .iter()
        .map(|finding| {
            let id = finding.id.map(|id| hex::encode(&id));
            json!({ "what": finding.what, "id": id, "detail": finding.detail })
        })
        .collect();
    let object = json!({
        "store": store,
        "sound": checked.is_sound(),
        "events": checked.events,
        "tags": checked.tags,
        "expired": checked.expired,
        "vanishing": checked.vanishing,
        "found": checked.found,
        "findings": findings,
    });
    format!("{object}\n")
}
