//! `negsync sync`

use super::connecting::ConnectArguments;
use super::interrupt::stoppable;
use super::local::{self, OpenedLocal};
use super::sync_progress::Display;
use super::sync_trace;
use super::{StoreArguments, attach, between, start_log, unless_closed};
use anyhow::{Context, ensure};
use negsync::relay_url::RelayUrl;
use negsync::sync::{Direction, Local, Options, PeerFilter, Reason, Report, Verdict, sync};
use negsync::utc;
use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

#[derive(clap::Args)]
pub(super) struct SyncArguments {
    /// The relays to sync with, ws:// or wss://.
    #[arg(required = true, value_name = "URL")]
    urls: Vec<String>,
    /// Bring the relays to the same events, without a local store: what one lacks is fetched
    /// from another and sent on. Ids are compared as lists.
    #[arg(long, conflicts_with_all = ["store", "attach", "into", "direction"])]
    between: bool,
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    attach: attach::AttachedRelayArguments,
    /// Work for a relay that runs already, at ws://HOST:PORT: from its database (--attach, or
    /// [attach] in the configuration), and into it by EVENT messages.
    #[arg(long, value_name = "URL")]
    into: Option<String>,
    #[command(flatten)]
    connecting: ConnectArguments,
    /// Only events that match this NIP-01 filter.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    filter: String,
    /// Which way events move: from the relays, to them, or both.
    #[arg(long, value_name = "down|up|both", default_value = "both", value_parser = direction)]
    direction: Direction,
    /// Compare id lists in place of fingerprints, which an attacker can make collide: 64 bytes an
    /// event, twice.
    #[arg(long)]
    exact: bool,
    /// Find out what differs and move nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print one JSON object at the end.
    #[arg(long)]
    pub(super) json: bool,
    /// When all is synced, pass events on as they come, until interrupted.
    #[arg(long)]
    pub(super) live: bool,
    /// Print on standard error what is said to the relays and by them, NIP-77 as `decode` does.
    #[arg(long)]
    pub(super) trace: bool,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  negsync sync wss://relay.example.com
  negsync sync wss://relay.example.com --direction down --filter '{\"kinds\":[0,3]}'
  negsync sync --between wss://a.example.com wss://b.example.com
  negsync sync --between ws://127.0.0.1:7777 wss://a.example.com --dry-run --json";

fn direction(text: &str) -> Result<Direction, String> {
    match text {
        "down" => Ok(Direction::Down),
        "up" => Ok(Direction::Up),
        "both" => Ok(Direction::Both),
        _ => Err("must be down, up or both".to_owned()),
    }
}

/// Parses the URLs of relays; spellings of one relay count once.
fn relay_urls(texts: &[String]) -> anyhow::Result<Vec<RelayUrl>> {
    let mut urls: Vec<RelayUrl> = Vec::new();
    for text in texts {
        let url = RelayUrl::parse(text)?;
        ensure!(!urls.contains(&url), "the relay {url} is named twice; name it once");
        urls.push(url);
    }
    Ok(urls)
}

/// Exit code of a sync that could not be completed.
const INCOMPLETE: u8 = 2;

pub(super) fn run(arguments: &SyncArguments) -> anyhow::Result<ExitCode> {
    let filter = PeerFilter::parse(&arguments.filter).context("--filter")?;
    let urls = relay_urls(&arguments.urls)?;
    let mut config = arguments.store.config()?;
    arguments.attach.apply(&mut config)?;
    arguments.connecting.apply(&mut config);
    if let Some(url) = &arguments.into {
        config.attach.url.clone_from(url);
    }
    start_log(&config.log)?;
    if arguments.between {
        return between::run(arguments, urls, filter, &config);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let opened = {
        // Sending to another relay spawns a task.
        let _inside = runtime.enter();
        let is_attached = arguments.into.is_some() || arguments.attach.is_given();
        match (is_attached, arguments.dry_run) {
            (true, _) => OpenedLocal::of(attach::local(config)?),
            (false, true) => local::open_to_read(config)?,
            (false, false) => local::open(config)?,
        }
    };
    let local = &opened.local;
    let reports = runtime.block_on(sync_all(arguments, local, filter));
    local.close();
    let reports = reports?;
    unless_closed(print(arguments.json, &reports))?;
    Ok(exit_code(reports.iter().all(|report| report.complete)))
}

pub(super) fn exit_code(complete: bool) -> ExitCode {
    if complete { ExitCode::SUCCESS } else { ExitCode::from(INCOMPLETE) }
}

/// Syncs with all relays at the same time; the reports are in the order of the URLs.
async fn sync_all(
    arguments: &SyncArguments,
    local: &Local,
    filter: PeerFilter,
) -> anyhow::Result<Vec<Report>> {
    let full_interval_s = local.admission.config().sync.full_interval_s;
    let stop = CancellationToken::new();
    let options = Options::default()
        .filter(filter)
        .direction(arguments.direction)
        .dry_run(arguments.dry_run)
        .exact(arguments.exact)
        .live(arguments.live)
        .attempts(if arguments.live { None } else { Options::default().attempts })
        .full_interval_s(full_interval_s)
        .stop(stop.clone());
    let display = Display::new(arguments.trace);
    let mut syncs = JoinSet::new();
    for (place, url) in arguments.urls.iter().enumerate() {
        let (local, url) = (local.clone(), url.clone());
        let trace = arguments.trace.then(|| sync_trace::to_standard_error(&url));
        let options = options.clone().trace(trace);
        let mut shown = display.of_peer(&url);
        syncs.spawn(async move {
            let report = sync(&local, &url, &options, |progress| shown.show(&progress)).await;
            (place, report)
        });
    }
    let mut reports = Vec::new();
    let ended = stoppable(stop, async {
        while let Some(ended) = syncs.join_next().await {
            let (place, report) = ended.context("a sync ended unexpectedly")?;
            reports.push((place, report?));
        }
        anyhow::Ok(())
    });
    ended.await??;
    reports.sort_by_key(|(place, _)| *place);
    Ok(reports.into_iter().map(|(_, report)| report).collect())
}

/// One object for one relay; an object with one of each for several.
fn print(json: bool, reports: &[Report]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        match reports {
            [report] => writeln!(out, "{}", serde_json::to_string(report)?)?,
            _ => writeln!(out, "{}", serde_json::json!({ "peers": reports }))?,
        }
        return Ok(());
    }
    for report in reports {
        writeln!(out, "{}", sentence(report))?;
        if let Some(hint) = report.hint {
            writeln!(out, "Hint: {hint}")?;
        }
    }
    Ok(())
}

pub(super) fn sentence(report: &Report) -> String {
    let seconds = report.elapsed_ms as f64 / 1_000.0;
    let state = match (&report.error, report.verdict) {
        (Some(error), Verdict::Incomplete) => format!("not complete: {error}"),
        (_, Verdict::CaughtUp) => caught_up(report),
        (_, verdict) => verdict.name().to_owned(),
    };
    let mut text = format!(
        "{}: {state}{}; {} needed, {} stored; {} to send, {} taken; {} round trip{}, {seconds:.1} s",
        report.url,
        unseen(report.unreadable, &report.not_compared, report.kept_since),
        report.need,
        report.stored,
        report.have,
        report.uploaded,
        report.round_trips,
        if report.round_trips == 1 { "" } else { "s" },
    );
    for (what, counts) in [
        ("refused", &report.refused),
        ("refused by the peer", &report.refused_by_peer),
        ("still differ", &report.differs),
    ] {
        if !counts.is_empty() {
            text.push_str(&format!("; {what}: {}", counted(counts)));
        }
    }
    text
}

/// The number of events for each reason, as text.
pub(super) fn counted(counts: &BTreeMap<Reason, u64>) -> String {
    let counts: Vec<String> =
        counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    counts.join(", ")
}

/// Why sets without known differences are not called equal.
pub(super) fn over_connections(count: u32) -> String {
    format!("caught up over {count} connections, which may lead to different relays")
}

/// The range of a peer that was read.
fn caught_up(report: &Report) -> String {
    if report.connections > 1 {
        return over_connections(report.connections);
    }
    let Some(since) = report.read_since else {
        return "caught up; the sets changed while they were compared".to_owned();
    };
    let whole = match report.read_whole_at {
        Some(second) if second > 0 => format!("read whole {}", utc::utc(second)),
        _ => "never read whole".to_owned(),
    };
    format!("caught up since {} ({whole})", utc::utc(since))
}

/// The part of the sets that no comparison covers.
pub(super) fn unseen(unreadable: u64, hidden: &[u16], kept_since: Option<u64>) -> String {
    let mut text = String::new();
    if unreadable > 0 {
        text.push_str(&format!("; {unreadable} of the peer's events cannot be read"));
    }
    let mut left_out = Vec::new();
    if !hidden.is_empty() {
        let kinds: Vec<String> = hidden.iter().map(u16::to_string).collect();
        left_out.push(format!("kinds {} (shown to their owners only)", kinds.join(", ")));
    }
    if let Some(second) = kept_since {
        left_out.push(format!("events before {} (past retention)", utc::utc(second)));
    }
    if !left_out.is_empty() {
        text.push_str(&format!("; not compared: {}", left_out.join(", ")));
    }
    text
}
