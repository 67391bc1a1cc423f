//! The peers of a relay. A task with a connection of its own keeps each of them in sync, so that
//! none waits for another.

use super::auth::configured_keys;
use super::backoff::Backoff;
use super::connector::Connector;
use super::drift_check::DriftCheck;
use super::lease::Lease;
use super::status::Status;
use super::{Local, Options, PeerFilter, SyncError, sync};
use crate::admission::Admission;
use crate::config::{Config, PeerConfig};
use crate::index::Index;
use crate::metrics::Peers;
use crate::store::EventStore;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Timeout for syncs to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The running syncs. They end with [`Schedule::stop`], or when this is dropped.
pub struct Schedule {
    stop: CancellationToken,
    syncs: JoinSet<()>,
}

impl std::fmt::Debug for Schedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Schedule").finish_non_exhaustive()
    }
}

impl Schedule {
    /// Starts to keep each configured peer in sync. `peers` gets the state of each one; entries of
    /// an earlier schedule are removed.
    ///
    /// # Errors
    /// [`SyncError`] when a URL, a filter or the key is invalid; nothing has started then.
    pub fn start(index: &Index, admission: &Admission, peers: &Peers) -> Result<Self, SyncError> {
        let local = || Local::configured(index.clone(), admission.clone());
        Self::of(&admission.config(), peers, local, Some(Arc::clone(index.store())))
    }

    /// Like [`Schedule::start`], for another relay's events.
    ///
    /// # Errors
    /// As [`Schedule::start`].
    pub fn attached(local: Local, peers: &Peers) -> Result<Self, SyncError> {
        let config = local.admission.config();
        Self::of(&config, peers, || Ok(local), None)
    }

    fn of(
        config: &Config,
        peers: &Peers,
        local: impl FnOnce() -> Result<Local, SyncError>,
        shared: Option<Arc<dyn EventStore>>,
    ) -> Result<Self, SyncError> {
        let stop = CancellationToken::new();
        let mut syncs = JoinSet::new();
        if config.peers.is_empty() {
            peers.clear();
            return Ok(Self { stop, syncs });
        }
        let ours = local()?;
        let prepared = prepare(config, &stop)?;
        peers.clear();
        let term = Duration::from_secs(config.sync.lease_s);
        let lease = match shared {
            Some(store) => {
                let (lease, kept) = Lease::of(store, term, stop.clone());
                syncs.spawn(kept);
                lease
            }
            None => Lease::always(),
        };
        for (peer, options) in prepared {
            let local = Local { connector: ours.connector.for_peer(&peer), ..ours.clone() };
            let watched = peers.add(&peer.url.to_string(), peer.direction, peer.live);
            if config.page.enabled {
                let looking = DriftCheck {
                    local: local.clone(),
                    url: peer.url.clone(),
                    filter: options.filter.clone(),
                    interval: Duration::from_secs(config.page.look_interval_s),
                    stop: stop.clone(),
                    watched: watched.clone(),
                };
                syncs.spawn(looking.run());
            }
            let status = Status::new(peer.url.to_string(), watched, local.clock().clone());
            syncs.spawn(keep_with_lease(lease.clone(), local, peer, options, status));
        }
        Ok(Self { stop, syncs })
    }

    /// Checks that the configured schedule could start.
    ///
    /// # Errors
    /// As [`Schedule::start`].
    pub fn check(config: &Config) -> Result<(), SyncError> {
        configured_keys(&config.sync)?;
        prepare(config, &CancellationToken::new()).map(|_| ())
    }

    /// A schedule without syncs.
    pub fn none() -> Self {
        Self { stop: CancellationToken::new(), syncs: JoinSet::new() }
    }

    /// Ends all syncs; stored events stay.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let ended = async { while self.syncs.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_TIMEOUT, ended).await.is_err() {
            tracing::warn!("some syncs did not end in time");
        }
    }
}

fn prepare(
    config: &Config,
    stop: &CancellationToken,
) -> Result<Vec<(PeerConfig, Options)>, SyncError> {
    let connector = Connector::configured(&config.sync)?;
    let mut prepared = Vec::new();
    for peer in &config.peers {
        connector.for_peer(peer).check(&peer.url)?;
        // A union is synced filter by filter: few relays accept several filters in one NEG-OPEN.
        for filter in peer.filter.texts() {
            let mut options = options(peer, &filter, stop.clone())?;
            options.full_interval_s = config.sync.full_interval_s;
            prepared.push((peer.clone(), options));
        }
    }
    Ok(prepared)
}

fn options(peer: &PeerConfig, filter: &str, stop: CancellationToken) -> Result<Options, SyncError> {
    let filter = PeerFilter::parse(filter)
        .map_err(|source| SyncError::Filter { url: peer.url.to_string(), source })?;
    Ok(Options {
        filter,
        direction: peer.direction,
        live: peer.live,
        // A live sync never ends by itself; another one is restarted in any case.
        attempts: if peer.live { None } else { Options::default().attempts },
        stop,
        ..Options::default()
    })
}

/// Syncs with a peer while this node holds the lease.
async fn keep_with_lease(
    mut lease: Lease,
    local: Local,
    peer: PeerConfig,
    mut options: Options,
    mut status: Status,
) {
    let stop = options.stop.clone();
    loop {
        lease.held(&stop).await;
        if stop.is_cancelled() {
            return;
        }
        options.stop = stop.child_token();
        let mut keeping = pin!(keep(&local, &peer, &options, &mut status));
        tokio::select! {
            () = &mut keeping => {}
            () = lease.lost(&stop) => {
                options.stop.cancel();
                keeping.await;
            }
        }
    }
}

/// Syncs with a peer repeatedly.
async fn keep(local: &Local, peer: &PeerConfig, options: &Options, status: &mut Status) {
    let interval = Duration::from_secs(peer.interval_s);
    let mut backoff = Backoff::default();
    loop {
        status.begin();
        let pause =
            match sync(local, peer.url.expose(), options, |progress| status.take(progress)).await {
                Ok(report) => {
                    status.ended(&report);
                    backoff.reset();
                    interval
                }
                Err(error) => {
                    status.failed(error.to_string());
                    backoff.next()
                }
            };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = options.stop.cancelled() => return,
        }
    }
}
