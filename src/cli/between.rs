//! `negsync sync --between`

use super::interrupt::stoppable;
use super::sync::{SyncArguments, counted, over_connections, unseen};
use super::sync_progress::{Display, PeerDisplay};
use super::{sync_trace, unless_closed};
use anyhow::ensure;
use negsync::config::Config;
use negsync::relay_url::RelayUrl;
use negsync::sync::{
    Between, BetweenRelay, BetweenReport, MOST_RELAYS, Options, PairReport, PeerFilter, Progress,
    Proof, Report, Verdict,
};
use std::io::Write;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use tokio_util::sync::CancellationToken;

pub(super) fn run(
    arguments: &SyncArguments,
    urls: Vec<RelayUrl>,
    filter: PeerFilter,
    config: &Config,
) -> anyhow::Result<ExitCode> {
    let count = urls.len();
    ensure!(
        (2..=MOST_RELAYS).contains(&count),
        "--between takes 2 to {MOST_RELAYS} relays, not {count}"
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(sync(arguments, urls, filter, config))?;
    unless_closed(print(arguments.json, &report))?;
    Ok(super::sync::exit_code(report.complete))
}

async fn sync(
    arguments: &SyncArguments,
    urls: Vec<RelayUrl>,
    filter: PeerFilter,
    config: &Config,
) -> anyhow::Result<BetweenReport> {
    let stop = CancellationToken::new();
    let options = Options::default()
        .filter(filter)
        .dry_run(arguments.dry_run)
        .exact(true)
        .live(arguments.live)
        .attempts(if arguments.live { None } else { Options::default().attempts })
        .stop(stop.clone());
    let display = Display::new(arguments.trace);
    let shown: Vec<Mutex<PeerDisplay>> =
        urls.iter().map(|url| display.of_peer(&url.to_string()).into()).collect();
    let relays: Vec<BetweenRelay> = urls
        .into_iter()
        .map(|url| {
            let trace = arguments.trace.then(|| sync_trace::to_standard_error(&url.to_string()));
            BetweenRelay::new(url).trace(trace)
        })
        .collect();
    let show = move |place: usize, progress: Progress| {
        if let Some(shown) = shown.get(place) {
            shown.lock().unwrap_or_else(PoisonError::into_inner).show(&progress);
        }
    };
    let between = Between::configured(&config.sync)?;
    Ok(stoppable(stop, between.sync(&relays, &options, show)).await??)
}

fn print(json: bool, report: &BetweenReport) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(report)?)?;
        return Ok(());
    }
    for relay in &report.relays {
        writeln!(out, "{}", of_relay(relay))?;
        if let Some(hint) = relay.hint {
            writeln!(out, "Hint: {hint}")?;
        }
    }
    for pair in &report.pairs {
        writeln!(out, "{}", of_pair(pair))?;
    }
    Ok(())
}

fn of_relay(report: &Report) -> String {
    let state = match (&report.error, report.verdict) {
        (Some(error), Verdict::Incomplete) => format!("not complete: {error}"),
        (None, Verdict::Incomplete) => "not complete".to_owned(),
        (_, Verdict::Equal) => "has all".to_owned(),
        _ => format!("lacks {}", report.have_left),
    };
    let mut text = format!(
        "{}: {state}{}; {} to send, {} taken; {} needed by others, {} fetched; {} bytes up, {} down, {:.1} s",
        report.url,
        unseen(report.unreadable, &report.not_compared, None),
        report.have,
        report.uploaded,
        report.need,
        report.stored,
        report.bytes_up,
        report.bytes_down,
        report.elapsed_ms as f64 / 1_000.0,
    );
    for (what, counts) in
        [("not fetched", &report.refused), ("refused by the relay", &report.refused_by_peer)]
    {
        if !counts.is_empty() {
            text.push_str(&format!("; {what}: {}", counted(counts)));
        }
    }
    text
}

fn of_pair(pair: &PairReport) -> String {
    let [a, b] = &pair.relays;
    let [only_a, only_b] = pair.only;
    let state = match (&pair.error, pair.verdict) {
        (Some(error), _) => format!("not complete: {error}"),
        (None, Verdict::CaughtUp) if pair.connections > 1 => over_connections(pair.connections),
        (None, Verdict::CaughtUp) => {
            "caught up; the sets changed while they were compared".to_owned()
        }
        (None, verdict) => verdict.name().to_owned(),
    };
    let proof = match pair.proof {
        Some(Proof::Negentropy) => " (proof: complete lists of ids)",
        Some(_) => " (proof: read without a gap)",
        None => "",
    };
    let mut text = format!("{a} and {b}: {state}{proof}{}", unseen(0, &pair.not_compared, None));
    if pair.only != [0, 0] {
        text.push_str(&format!("; {only_a} only on the first, {only_b} only on the second"));
    }
    if !pair.differs.is_empty() {
        text.push_str(&format!("; {}", counted(&pair.differs)));
    }
    text
}
