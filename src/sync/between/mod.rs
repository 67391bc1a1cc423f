//! Brings other relays to the same set of events, without a store of our own.
//!
//! A machine syncs with each relay as with any peer, but its own side is the other relays instead
//! of a store. `side` implements that: it lists the relay's ids and passes events on. `exchange`
//! tracks the events that each relay lacks, `id_list` and `spool` keep ids and events on disk once
//! they are many, and `report` compares the relays by their last lists.

mod exchange;
#[cfg(test)]
mod exchange_tests;
mod id_list;
mod report;
mod side;
mod spool;

pub use report::{BetweenReport, PairReport};

use super::auth::configured_keys;
use super::connector::Connector;
use super::driver::{SyncClock, drive, settings};
use super::machine::Machine;
use super::report::{Progress, Report};
use super::{Options, SyncError, Trace};
use crate::config::SyncConfig;
use crate::relay_url::RelayUrl;
use crate::store::{Clock, PeerTraits, Verifier};
use exchange::{Exchange, Remains};
use nostr::Keys;
use report::{RelayEnd, judge};
use side::{Common, RelaySide};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use tokio::task::JoinSet;

/// Maximum number of relays.
pub const MOST_RELAYS: usize = 16;
/// Passes after which sets that keep changing are left as they are.
const MOST_PASSES: u32 = 3;
/// Maximum number of passes, each of which moved events.
const MOST_MOVING_PASSES: u32 = 1_000;

/// The connection and authentication settings for all relays.
pub struct Between {
    verifier: Verifier,
    keys: Option<Keys>,
    connector: Connector,
    moves_protected: bool,
    clock: Clock,
}

impl std::fmt::Debug for Between {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Between").finish_non_exhaustive()
    }
}

/// One relay of the sync.
#[derive(Clone)]
#[non_exhaustive]
pub struct BetweenRelay {
    /// Its URL.
    pub url: RelayUrl,
    /// Receives all messages to and from it.
    pub trace: Option<Trace>,
}

impl BetweenRelay {
    /// The relay of a URL.
    #[must_use]
    pub fn new(url: RelayUrl) -> Self {
        Self { url, trace: None }
    }

    /// Sets [`BetweenRelay::trace`].
    #[must_use]
    pub fn trace(mut self, trace: impl Into<Option<Trace>>) -> Self {
        self.trace = trace.into();
        self
    }
}

impl std::fmt::Debug for BetweenRelay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BetweenRelay").finish_non_exhaustive()
    }
}

/// State that outlives a pass.
struct Told<F> {
    traits: Vec<Arc<Mutex<PeerTraits>>>,
    progress: Arc<F>,
    clock: SyncClock,
}

impl Between {
    /// Settings from `[sync]`.
    ///
    /// # Errors
    /// [`SyncError`] when the key or the file of authorities cannot be read, or a thread cannot be
    /// started.
    pub fn configured(config: &SyncConfig) -> Result<Self, SyncError> {
        Ok(Self {
            verifier: Verifier::start().map_err(|error| SyncError::Store(error.to_string()))?,
            keys: configured_keys(config)?,
            connector: Connector::configured(config)?,
            moves_protected: config.protected,
            clock: Clock::system(),
        })
    }

    /// Replaces the clock of the system.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Brings up to [`MOST_RELAYS`] relays to the same set of events: all events that match the
    /// filter and that any of them shows. Events move in all directions. Ids are compared as lists,
    /// whatever the options. Progress comes with the index of the relay.
    ///
    /// # Errors
    /// [`SyncError`] when there are more relays, one cannot be reached without a proxy, or a
    /// temporary file cannot be written. Faults of a relay are in the report.
    pub async fn sync(
        &self,
        relays: &[BetweenRelay],
        options: &Options,
        progress: impl Fn(usize, Progress) + Send + Sync + 'static,
    ) -> Result<BetweenReport, SyncError> {
        if relays.len() > MOST_RELAYS {
            return Err(SyncError::TooManyRelays);
        }
        let traits = relays.iter().map(|_| Arc::default()).collect();
        let told =
            Told { traits, progress: Arc::new(progress), clock: SyncClock::start(&self.clock) };
        let mut earlier: Option<Vec<Report>> = None;
        let mut failed = HashMap::new();
        let mut passes = 0;
        loop {
            passes += 1;
            let exchange = Exchange::new(relays.len(), options.live, failed);
            let (mut ends, remains) = self.pass(relays, options, exchange, &told).await?;
            if let Some(earlier) = &earlier {
                ends.iter_mut().zip(earlier).for_each(|(end, earlier)| add(end, earlier));
            }
            let moved: u64 = ends.iter().map(|end| end.report.uploaded).sum();
            let before = earlier.iter().flatten().map(|report| report.uploaded).sum::<u64>();
            let Remains { lists, failed: not_sent, is_cut } = remains;
            let (report, untried) = judge(ends, &lists, !options.dry_run).map_err(failure)?;
            let is_stopped = report.relays.iter().any(Report::is_stopped);
            let has_more = is_cut && moved > before && passes < MOST_MOVING_PASSES;
            let has_new = untried > 0 && passes < MOST_PASSES;
            if options.dry_run || is_stopped || !(has_more || has_new) {
                return Ok(report);
            }
            failed = not_sent;
            earlier = Some(report.relays);
        }
    }

    /// Lists all relays, moves missing events, and lists those relays again that received any.
    async fn pass<F: Fn(usize, Progress) + Send + Sync + 'static>(
        &self,
        relays: &[BetweenRelay],
        options: &Options,
        exchange: Exchange,
        told: &Told<F>,
    ) -> Result<(Vec<RelayEnd>, Remains), SyncError> {
        let common = Arc::new(Common {
            exchange,
            verifier: self.verifier.clone(),
            keys: self.keys.clone(),
            moves_protected: self.moves_protected,
            dry_run: options.dry_run,
            clock: self.clock.clone(),
        });
        let key = self.keys.as_ref().map(|keys| keys.public_key().to_bytes());
        let mut syncs = JoinSet::new();
        for ((place, relay), traits) in relays.iter().enumerate().zip(&told.traits) {
            let side = Arc::new(RelaySide::new(&common, place, &relay.url, traits));
            let settings = settings(options, None, key);
            let machine = Machine::new(&relay.url.to_string(), settings, told.clock.now());
            let options = Options { trace: relay.trace.clone(), ..options.clone() };
            let (connector, url) = (self.connector.clone(), relay.url.clone());
            let (progress, clock) = (Arc::clone(&told.progress), told.clock.clone());
            let common = Arc::clone(&common);
            syncs.spawn(async move {
                let machine = machine.over_ids();
                let tell = |told| progress(place, told);
                let ended =
                    drive(&connector, &url, &options, machine, side, clock.clone(), tell).await;
                // Whether the sync succeeded or failed, the others no longer wait for it.
                common.exchange.lost(place, true);
                let ended = ended.and_then(|machine| {
                    let left = machine.left();
                    let (report, _) = machine.into_report().map_err(SyncError::Store)?;
                    let report = Report { elapsed_ms: clock.elapsed_ms(), ..report };
                    Ok(RelayEnd { report, left })
                });
                (place, ended)
            });
        }
        let mut ends = Vec::new();
        while let Some(ended) = syncs.join_next().await {
            match ended {
                Ok((place, Ok(end))) => ends.push((place, end)),
                Ok((_, Err(error))) => {
                    common.exchange.stop();
                    return Err(error);
                }
                Err(panic) => {
                    common.exchange.stop();
                    return Err(SyncError::Store(panic.to_string()));
                }
            }
        }
        ends.sort_by_key(|(place, _)| *place);
        let ends = ends.into_iter().map(|(_, end)| end).collect();
        Ok((ends, common.exchange.remains()))
    }
}

/// Adds the results of an earlier pass. Differences that it left are in the later report again.
fn add(end: &mut RelayEnd, earlier: &Report) {
    let report = &mut end.report;
    report.have += earlier.uploaded;
    report.need += earlier.stored;
    report.uploaded += earlier.uploaded;
    report.stored += earlier.stored;
    report.round_trips += earlier.round_trips;
    report.bytes_up += earlier.bytes_up;
    report.bytes_down += earlier.bytes_down;
    report.passes += earlier.passes;
    report.reconnects += earlier.reconnects;
}

fn failure(error: io::Error) -> SyncError {
    SyncError::Store(error.to_string())
}
