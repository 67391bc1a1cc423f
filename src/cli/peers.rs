//! `negsync peers`

use super::{read_config, unless_closed};
use anyhow::{Context, bail, ensure};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use negsync::config::ListenAddress;
use negsync::utc;
use serde::Deserialize;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::net::TcpStream;

pub(super) const EXAMPLES: &str = "Examples:
  negsync peers --config /etc/negsync/relay.toml
  negsync peers --relay 127.0.0.1:7777 --json

The relay answers the addresses in metrics.allow, this machine by default, and never by way of a proxy.";

/// Timeout for the relay's answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum length of the answer.
const ANSWER_BYTES: usize = 16 << 20;

/// Which relay is asked.
#[derive(clap::Args)]
pub(super) struct AskedRelayArguments {
    /// Where the relay serves, in place of relay.listen; of `negsync attach` it is attach.status_listen.
    #[arg(long, value_name = "HOST:PORT")]
    relay: Option<ListenAddress>,
    /// The relay's configuration file, of which relay.listen counts.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(super) struct PeersArguments {
    #[command(flatten)]
    relay: AskedRelayArguments,
    /// Print the relay's answer, one JSON object.
    #[arg(long)]
    json: bool,
}

/// The printed part of the relay's answer.
#[derive(Deserialize)]
struct StatusAnswer {
    now: u64,
    peers: Vec<PrintedPeer>,
}

#[derive(Deserialize)]
pub(super) struct PrintedPeer {
    name: String,
    state: String,
    last_sync: Option<PrintedSync>,
    have: u64,
    need: u64,
    totals: PrintedTotals,
    last_error: Option<String>,
    last_error_at: Option<u64>,
}

#[derive(Deserialize)]
struct PrintedSync {
    ended_at: u64,
}

#[derive(Deserialize)]
struct PrintedTotals {
    stored: u64,
    uploaded: u64,
}

impl AskedRelayArguments {
    /// Requests the relay's answer to `/status`.
    pub(super) async fn ask(&self) -> anyhow::Result<String> {
        let config = read_config(self.config.as_deref())?.config;
        let address = self.relay.as_ref().unwrap_or(&config.relay.listen).reachable();
        let asked = tokio::time::timeout(TIMEOUT, ask(&address)).await;
        asked.with_context(|| format!("no answer from {address} in 10 s"))?
    }
}

pub(super) fn run(arguments: &PeersArguments) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let text = runtime.block_on(arguments.relay.ask())?;
    let mut out = std::io::stdout().lock();
    if arguments.json {
        unless_closed(writeln!(out, "{}", text.trim_end()).map_err(Into::into))?;
        return Ok(ExitCode::SUCCESS);
    }
    let answer: StatusAnswer =
        serde_json::from_str(&text).context("no negsync of this version answers there")?;
    unless_closed(write!(out, "{}", peer_table(&answer.peers, answer.now)).map_err(Into::into))?;
    Ok(ExitCode::SUCCESS)
}

async fn ask(address: &str) -> anyhow::Result<String> {
    let stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("no relay answers at {address}; name it with --relay"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get("/status").header(HOST, address);
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
    connection.abort();
    let body = body.map_err(anyhow::Error::from_boxed).context("the answer cannot be read")?;
    let text = String::from_utf8(body.to_bytes().into()).context("the answer is no text")?;
    if status == StatusCode::NOT_FOUND {
        bail!("no negsync of this version answers at {address}");
    }
    ensure!(status.is_success(), "the relay at {address} refuses: {}", text.trim_end());
    Ok(text)
}

/// The peers as a table, at the second `now`.
pub(super) fn peer_table(peers: &[PrintedPeer], now: u64) -> String {
    if peers.is_empty() {
        return "no peers are configured\n".to_owned();
    }
    let heads = ["PEER", "STATE", "LAST SYNC", "IT LACKS", "WE LACK", "IN", "OUT"];
    let mut rows = vec![heads.map(str::to_owned)];
    rows.extend(peers.iter().map(|peer| {
        let synced =
            peer.last_sync.as_ref().map_or("never".to_owned(), |last| ago(last.ended_at, now));
        let numbers = [peer.have, peer.need, peer.totals.stored, peer.totals.uploaded];
        let [have, need, stored, uploaded] = numbers.map(|number| number.to_string());
        [peer.name.clone(), peer.state.clone(), synced, have, need, stored, uploaded]
    }));
    let widths: Vec<usize> = (0..heads.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    let errors = peers.iter().map(|peer| peer.last_error.as_ref().zip(peer.last_error_at));
    for (row, error) in rows.iter().zip(std::iter::once(None).chain(errors)) {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if column < 3 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        out += line.trim_end();
        out += "\n";
        if let Some((error, at)) = error {
            out += &format!("    last error, {}: {error}\n", ago(at, now));
        }
    }
    out
}

fn ago(second: u64, now: u64) -> String {
    format!("{} ago", utc::span(now.saturating_sub(second)))
}
