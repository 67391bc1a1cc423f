//! `negsync diff`

mod bars;

use super::connecting::ConnectArguments;
use super::interrupt::stoppable;
use super::local;
use super::sync::{over_connections, unseen};
use super::sync_progress::Display;
use super::sync_trace;
use super::{StoreArguments, start_log, unless_closed};
use anyhow::{Context, ensure};
use negsync::plot::{self, Bar, Days};
use negsync::relay_url::RelayUrl;
use negsync::sync::{
    By, Diff, DiffOptions, DiffRow, Key, Local, Method, PeerFilter, Verdict, diff,
};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;

pub(super) const EXAMPLES: &str = "Examples:
  negsync diff wss://relay.example.com --store events.sqlite
  negsync diff wss://relay.example.com --by kind --json
  negsync diff wss://relay.example.com --filter '{\"kinds\":[0,3]}' --svg differences.svg";

#[derive(clap::Args)]
pub(super) struct DiffArguments {
    /// The relay to compare with, ws:// or wss://.
    url: String,
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    connecting: ConnectArguments,
    /// Only events that match this NIP-01 filter.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    filter: String,
    /// Group differences by this. For kinds and authors the events that only the relay
    /// has are read (up to 100,000) and not kept; for days none is.
    #[arg(long, value_name = "day|kind|author", default_value = "day", value_parser = by)]
    by: By,
    /// Compare id lists in place of fingerprints, which an attacker can make collide: 64 bytes an
    /// event.
    #[arg(long)]
    exact: bool,
    /// Print one JSON object, with every row.
    #[arg(long)]
    json: bool,
    /// Also draw the rows into this file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print on standard error what is said to the relay and by it, NIP-77 as `decode` does.
    #[arg(long)]
    trace: bool,
}

fn by(text: &str) -> Result<By, String> {
    match text {
        "day" => Ok(By::Day),
        "kind" => Ok(By::Kind),
        "author" => Ok(By::Author),
        _ => Err("must be day, kind or author".to_owned()),
    }
}

/// Exit code when the comparison failed: 1 is an invalid command line.
const UNKNOWN: u8 = 2;
/// Exit code when events differ.
const DIFFERS: u8 = 3;
/// Maximum number of bars of a drawing over time, and of rows of a drawing by name.
const MOST_BARS: u64 = 120;
const MOST_ROWS: usize = 40;

pub(super) fn run(arguments: &DiffArguments) -> anyhow::Result<ExitCode> {
    let filter = PeerFilter::parse(&arguments.filter).context("--filter")?;
    RelayUrl::parse(&arguments.url)?;
    let mut config = arguments.store.config()?;
    arguments.connecting.apply(&mut config);
    start_log(&config.log)?;
    let store = &config.store.path;
    // A missing store is an error: with a mistyped name all events would differ.
    let is_there = !config.store.url.is_empty() || store.exists();
    ensure!(is_there, "there is no store {}; `negsync import` makes one", store.display());
    let opened = local::open_to_read(config)?;
    let local = &opened.local;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let found = runtime.block_on(compare(arguments, local, filter));
    local.close();
    let found = found?;
    if let (Some(file), None) = (&arguments.svg, &found.error) {
        std::fs::write(file, svg(&found)).with_context(|| format!("--svg {}", file.display()))?;
    }
    unless_closed(print(arguments.json, &found))?;
    Ok(match (&found.error, found.equal) {
        (Some(_), _) => ExitCode::from(UNKNOWN),
        (None, true) => ExitCode::SUCCESS,
        // No difference was found, over several connections.
        (None, false) if found.verdict == Verdict::CaughtUp => ExitCode::SUCCESS,
        (None, false) => ExitCode::from(DIFFERS),
    })
}

async fn compare(
    arguments: &DiffArguments,
    local: &Local,
    filter: PeerFilter,
) -> anyhow::Result<Diff> {
    let stop = CancellationToken::new();
    let trace = arguments.trace.then(|| sync_trace::to_standard_error(&arguments.url));
    let options = DiffOptions::default()
        .filter(filter)
        .by(arguments.by)
        .exact(arguments.exact)
        .stop(stop.clone())
        .trace(trace);
    let mut shown = Display::new(arguments.trace).of_peer(&arguments.url);
    let comparing = diff(local, &arguments.url, &options, |progress| shown.show(&progress));
    Ok(stoppable(stop, comparing).await??)
}

fn print(json: bool, found: &Diff) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(found)?)?;
        return Ok(());
    }
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let color = std::io::stdout().is_terminal() && !no_color;
    write!(out, "{}", bars::table(&found.rows, found.by, color))?;
    writeln!(out, "{}", sentence(found))?;
    if let Some(hint) = found.hint {
        writeln!(out, "Hint: {hint}")?;
    }
    Ok(())
}

fn sentence(found: &Diff) -> String {
    let seconds = found.elapsed_ms as f64 / 1_000.0;
    let ends = if found.round_trips == 1 { "" } else { "s" };
    let how = match found.method {
        Method::Negentropy => format!("round trip{ends}"),
        Method::Req => format!("question{ends} (read by REQ what the relay does not reconcile)"),
    };
    let cost = format!(
        "{} {how}, {} bytes up, {} down, {seconds:.1} s",
        found.round_trips, found.bytes_up, found.bytes_down
    );
    let url = &found.url;
    if let Some(error) = &found.error {
        return format!("{url}: comparison failed: {error}; {cost}");
    }
    let unseen = unseen(found.unreadable, &found.not_compared, found.kept_since);
    if found.equal {
        return format!("{url}: equal{unseen}; {cost}");
    }
    if found.verdict == Verdict::CaughtUp {
        let connections = over_connections(found.connections);
        return format!("{url}: nothing differs; {connections}{unseen}; {cost}");
    }
    let mut text =
        format!("{url}: {} only here, {} only there{unseen}; {cost}", found.have, found.need);
    if found.unseen > 0 {
        text.push_str(&format!("; {} of those there were not looked at", found.unseen));
    }
    if !found.given_up.is_empty() {
        let reasons: Vec<String> =
            found.given_up.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        text.push_str(&format!("; a sync would leave: {}", reasons.join(", ")));
    }
    text
}

/// Days on a time axis; kinds and authors by name, most differences first.
fn svg(found: &Diff) -> String {
    let title = format!("Events that only one side has: here, and {}", found.url);
    let bar =
        |row: &DiffRow| Bar { label: row.key.to_string(), held: 0, have: row.have, need: row.need };
    if found.by == By::Day {
        let rows: Vec<(u64, Bar)> = found
            .rows
            .iter()
            .filter_map(|row| match row.key {
                Key::Day(second) => Some((second, bar(row))),
                Key::Kind(_) | Key::Author(_) => None,
            })
            .collect();
        let first = rows.first().map_or(0, |row| row.0);
        let last = rows.last().map_or(0, |row| row.0);
        let days = Days::new(first, last, MOST_BARS);
        let note = match days.per_bar() {
            1 => "a bar for each day".to_owned(),
            days => format!("a bar for every {days} days"),
        };
        return plot::over_time(&title, &note, &days.with(rows));
    }
    let mut rows: Vec<&DiffRow> = found.rows.iter().collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.have + row.need));
    let bars: Vec<Bar> = rows.iter().take(MOST_ROWS).map(|row| bar(row)).collect();
    let note = match rows.len().checked_sub(MOST_ROWS) {
        Some(more) if more > 0 => format!("and {more} more with fewer"),
        _ => String::new(),
    };
    plot::by_name(&title, &note, &bars)
}
