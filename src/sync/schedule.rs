//! The peers of a relay, each kept in sync by a task and a connection of its own, so that none
//! waits for another.

use super::backoff::Backoff;
use super::{Local, Options, PeerFilter, PeerUrl, Progress, Report, SyncError, sync};
use crate::config::{Config, PeerConfig};
use crate::index::Index;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long the syncs have to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The running syncs. They end with [`Schedule::stop`], or when this is dropped.
pub struct Schedule {
    stop: watch::Sender<bool>,
    peers: JoinSet<()>,
}

impl Schedule {
    /// Begins to keep each configured peer in sync.
    ///
    /// # Errors
    /// When a URL, a filter or the key is bad: before anything has begun.
    pub fn start(index: &Index, config: &Config) -> Result<Self, SyncError> {
        let (stop, stopping) = watch::channel(false);
        let mut peers = JoinSet::new();
        if config.peers.is_empty() {
            return Ok(Self { stop, peers });
        }
        let local = Local::configured(index.clone(), config)?;
        let mut prepared = Vec::new();
        for peer in &config.peers {
            PeerUrl::parse(&peer.url)?;
            prepared.push((peer.clone(), options(peer, stopping.clone())?));
        }
        for (peer, options) in prepared {
            peers.spawn(keep(local.clone(), peer, options));
        }
        Ok(Self { stop, peers })
    }

    /// Ends all syncs; what they have stored stays.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        let ended = async { while self.peers.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_TIMEOUT, ended).await.is_err() {
            tracing::warn!("some syncs did not end in time");
        }
    }
}

fn options(peer: &PeerConfig, stop: watch::Receiver<bool>) -> Result<Options, SyncError> {
    let text = serde_json::Value::Object(peer.filter.clone()).to_string();
    let filter = PeerFilter::parse(&text)
        .map_err(|source| SyncError::Filter { url: peer.url.clone(), source })?;
    Ok(Options {
        filter,
        direction: peer.direction,
        live: peer.live,
        // A live sync never ends by itself; one that is not is begun again anyway.
        attempts: if peer.live { None } else { Options::default().attempts },
        stop: Some(stop),
        ..Options::default()
    })
}

/// Syncs with a peer again and again.
async fn keep(local: Local, peer: PeerConfig, options: Options) {
    let interval = Duration::from_secs(peer.interval_s.get());
    let url = peer.url.as_str();
    let mut backoff = Backoff::default();
    loop {
        let pause = match sync(&local, url, &options, |progress| log(url, &progress)).await {
            Ok(report) => {
                log_report(&report);
                backoff.reset();
                interval
            }
            Err(error) => {
                tracing::error!(peer = url, %error, "a sync could not go on");
                backoff.next()
            }
        };
        let Some(mut stop) = options.stop.clone() else { return };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

fn log(peer: &str, progress: &Progress) {
    match progress {
        Progress::Note(text) => tracing::info!(peer, "{text}"),
        Progress::Waiting { reason, pause } => {
            tracing::info!(peer, "{reason}; again in {:.1} s", pause.as_secs_f64());
        }
        Progress::Live => tracing::info!(peer, "synced; events are passed on as they come"),
        Progress::Connected | Progress::Pass(_) | Progress::Moved(_) => {}
    }
}

fn log_report(report: &Report) {
    let (peer, stored, uploaded) = (&report.url, report.stored, report.uploaded);
    match &report.error {
        Some(error) => tracing::warn!(%peer, stored, uploaded, "not synced: {error}"),
        None => tracing::info!(%peer, stored, uploaded, equal = report.equal, "synced"),
    }
}
