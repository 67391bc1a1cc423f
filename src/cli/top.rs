//! `negsync top`

use super::peers::{AskedRelayArguments, PrintedPeer, peer_table};
use super::unless_closed;
use anyhow::Context;
use negsync::utc;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

pub(super) const EXAMPLES: &str = "Examples:
  negsync top --config /etc/negsync/relay.toml
  negsync top --relay 127.0.0.1:7777 --interval 5
  negsync top --relay 127.0.0.1:7777 --once --json

The relay answers the addresses in metrics.allow, this machine by default, and never by way of a proxy. Ctrl-C ends it.";

/// Moves the cursor to the top left and clears the screen.
const HOME_AND_CLEAR: &str = "\x1b[H\x1b[J";

#[derive(clap::Args)]
pub(super) struct TopArguments {
    #[command(flatten)]
    relay: AskedRelayArguments,
    /// The seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    interval: u64,
    /// Look once, as where standard output is no terminal and --json is not given. Rates are of all the time since the start then.
    #[arg(long)]
    once: bool,
    /// Print the relay's answer at each look, one JSON object a line.
    #[arg(long)]
    json: bool,
}

/// The relay's answer.
#[derive(Deserialize)]
struct RelayStatus {
    version: String,
    now: u64,
    started_at: u64,
    connections: i64,
    subscriptions: i64,
    neg_sessions: i64,
    stored_events: u64,
    store_bytes: u64,
    wal_bytes: u64,
    /// The totals since the start.
    totals: StatusTotals,
    peers: Vec<PrintedPeer>,
}

#[derive(Deserialize, Clone, Default)]
struct StatusTotals {
    connections: u64,
    neg_sessions: u64,
    neg_messages: u64,
    commits: u64,
    commit_s: f64,
    events: BTreeMap<String, u64>,
}

pub(super) fn run(arguments: &TopArguments) -> anyhow::Result<ExitCode> {
    let is_once = arguments.once || !(arguments.json || std::io::stdout().is_terminal());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let mut last: Option<(u64, StatusTotals)> = None;
        loop {
            let text = arguments.relay.ask().await?;
            let shown = if arguments.json {
                format!("{}\n", text.trim_end())
            } else {
                let status: RelayStatus = serde_json::from_str(&text)
                    .context("what serves there is no negsync relay of this version")?;
                let before = last.take().unwrap_or((status.started_at, StatusTotals::default()));
                let begin = if is_once { "" } else { HOME_AND_CLEAR };
                let shown = format!("{begin}{}", screen(&status, &before));
                last = Some((status.now, status.totals));
                shown
            };
            let mut out = std::io::stdout().lock();
            if let Err(error) = out.write_all(shown.as_bytes()).and_then(|()| out.flush()) {
                return unless_closed(Err(error.into())).map(|()| ExitCode::SUCCESS);
            }
            drop(out);
            if is_once {
                return Ok(ExitCode::SUCCESS);
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(arguments.interval)) => {}
                _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
                _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
            }
        }
    })
}

/// The screen, with rates since `before`.
fn screen(status: &RelayStatus, (second, before): &(u64, StatusTotals)) -> String {
    let seconds = status.now.saturating_sub(*second).max(1) as f64;
    let totals = &status.totals;
    let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
    let commits = totals.commits.saturating_sub(before.commits);
    let commit_ms = (totals.commit_s - before.commit_s).max(0.0) * 1_000.0 / commits.max(1) as f64;
    let mut text = String::new();
    let _ = writeln!(
        text,
        "negsync {}, up {}; {} events, {} MiB and {} MiB of log",
        status.version,
        utc::span(status.now.saturating_sub(status.started_at)),
        status.stored_events,
        status.store_bytes >> 20,
        status.wal_bytes >> 20,
    );
    let _ = writeln!(
        text,
        "connections   {:>8}   {:>8.1} new/s   subscriptions {}",
        status.connections,
        rate(totals.connections, before.connections),
        status.subscriptions
    );
    let _ = writeln!(
        text,
        "NEG sessions  {:>8}   {:>8.1} new/s   {:.1} messages/s",
        status.neg_sessions,
        rate(totals.neg_sessions, before.neg_sessions),
        rate(totals.neg_messages, before.neg_messages)
    );
    let _ = writeln!(
        text,
        "commits       {:>8}   {:>8.1} /s       {commit_ms:.1} ms each",
        totals.commits,
        rate(totals.commits, before.commits)
    );
    let events: Vec<String> = totals
        .events
        .iter()
        .map(|(outcome, count)| {
            (outcome, rate(*count, before.events.get(outcome).copied().unwrap_or(0)))
        })
        .filter(|(_, rate)| *rate > 0.0)
        .map(|(outcome, rate)| format!("{rate:.1} {outcome}/s"))
        .collect();
    let events = if events.is_empty() { "none".to_owned() } else { events.join(", ") };
    let _ = writeln!(text, "events        {events}\n");
    text + &peer_table(&status.peers, status.now)
}
