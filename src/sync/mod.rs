//! The sync: brings this store and a peer to the same set of events. One connection reconciles
//! (NIP-77) and moves events at the same time; work lost with a connection is found again on the
//! next one.
//!
//! `machine` decides, without any I/O, about all messages and work; `driver` connects it to a
//! socket, threads and the clock. `dial`, `connector`, `tls` and `peer` connect to the peer,
//! `rate_limit` limits the bandwidth, and `nip11` reads the peer's limits. `ingest` checks events
//! from a peer; `report` and `reason` are the result. `diff` lists differences without moving
//! anything, grouped by `breakdown`; `between` syncs other relays with each other; `schedule` keeps
//! a relay's peers in sync.

mod auth;
mod backoff;
mod between;
mod breakdown;
mod connector;
mod dial;
mod diff;
mod drift_check;
mod driver;
mod filter;
mod ingest;
mod lease;
#[doc(hidden)]
pub mod machine;
mod message;
mod nip11;
mod peer;
mod rate_limit;
mod reason;
mod relay_sink;
mod report;
mod schedule;
mod status;
mod tls;
mod trace;

pub use between::{Between, BetweenRelay, BetweenReport, MOST_RELAYS, PairReport};
pub use breakdown::{By, Key, Rows};
pub use connector::Connector;
pub use diff::{Diff, DiffOptions, DiffRow, diff};
pub use filter::{PeerFilter, Window};
pub use machine::Unseen;
pub use nip11::Information;
pub use reason::Reason;
pub use report::{Counts, Method, Progress, Proof, Report, Verdict};
pub use schedule::Schedule;
pub use tls::Trust;
pub use trace::{Speaker, Trace};

pub use crate::config::Direction;
pub use crate::metrics::{DayDiffers, DriftLook, LastSync, PeerState, PeerStatus, Peers, Tally};
pub use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::config::Config;
use crate::index::{Index, Sets};
use crate::relay_url::RelayUrlError;
use crate::store::DAY_S;
use crate::store::{Clock, EventStore, FilterError, Verifier};
use nostr::Keys;
use relay_sink::RelaySink;
use std::path::PathBuf;
use std::sync::Arc;

/// Our side of every sync. Clones share it.
#[derive(Clone)]
pub struct Local {
    /// The sets of our events.
    pub sets: Sets,
    /// The recorded state of syncs, and the storage for events from peers.
    pub store: Arc<dyn EventStore>,
    /// The pool that checks signatures.
    pub verifier: Verifier,
    /// Admits or refuses events from peers, as published events are.
    pub admission: Admission,
    /// The keys for authentication to peers (NIP-42).
    pub keys: Option<Keys>,
    /// Settings for connecting to peers.
    pub connector: Connector,
    // The relay that stores events from peers, if it is not `store`.
    relay: Option<RelaySink>,
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Local").finish_non_exhaustive()
    }
}

impl Local {
    /// Writes the index to files if enough has changed, and closes the store.
    pub fn close(&self) {
        self.sets.write_files();
        self.store.close();
    }

    /// The clock of the store.
    fn clock(&self) -> &Clock {
        self.sets.clock()
    }

    /// Our side with the default configuration, without a key, and with the clock of the store.
    ///
    /// # Errors
    /// [`SyncError`] when a thread cannot be started, or the ban list cannot be used.
    pub fn new(index: Index) -> Result<Self, SyncError> {
        let failed = |error: &dyn std::error::Error| SyncError::Store(error.to_string());
        let admission = Admission::start(Config::default()).map_err(|error| failed(&error))?;
        Ok(Self {
            admission: admission.by_clock(index.sets().clock()),
            sets: index.sets().clone(),
            store: index.store().clone(),
            verifier: Verifier::start().map_err(|error| failed(&error))?,
            keys: None,
            connector: Connector::default(),
            relay: None,
        })
    }

    /// Our side as configured, with the clock of the store.
    ///
    /// # Errors
    /// [`SyncError`] when the key or the file of authorities cannot be read, or a thread cannot be
    /// started.
    pub fn configured(index: Index, admission: Admission) -> Result<Self, SyncError> {
        let config = admission.config();
        Ok(Self {
            sets: index.sets().clone(),
            store: index.store().clone(),
            verifier: Verifier::start().map_err(|error| SyncError::Store(error.to_string()))?,
            keys: auth::configured_keys(&config.sync)?,
            connector: Connector::configured(&config.sync)?,
            relay: None,
            admission: admission.by_clock(index.sets().clock()),
        })
    }

    /// Our side when another process writes to the store: `sets` are read beside it, and `notes`
    /// holds the recorded state of syncs. For syncs that move nothing; events from peers would go
    /// to `notes`.
    ///
    /// # Errors
    /// As [`Local::configured`].
    pub fn reading(
        sets: Sets,
        notes: Arc<dyn EventStore>,
        admission: Admission,
    ) -> Result<Self, SyncError> {
        let config = admission.config();
        let verifier = Verifier::start().map_err(|error| SyncError::Store(error.to_string()))?;
        Ok(Self {
            admission: admission.by_clock(sets.clock()),
            sets,
            store: notes,
            verifier,
            keys: auth::configured_keys(&config.sync)?,
            connector: Connector::configured(&config.sync)?,
            relay: None,
        })
    }

    /// Our side when another relay stores the events: `sets` are over its database, events from
    /// peers are sent to it at `attach.url`, and `notes` holds only the recorded state of syncs.
    /// Must be called inside a runtime.
    ///
    /// # Errors
    /// As [`Local::configured`], and when the URL is not that of a relay.
    pub fn attached(
        sets: Sets,
        notes: Arc<dyn EventStore>,
        admission: Admission,
    ) -> Result<Self, SyncError> {
        let config = admission.config();
        let keys = auth::configured_keys(&config.sync)?;
        let connector = Connector::configured(&config.sync)?;
        let (url, direct) = (&config.attach.url, connector.direct());
        let relay = Some(RelaySink::start(url, sets.clone(), keys.clone(), direct)?);
        let verifier = Verifier::start().map_err(|error| SyncError::Store(error.to_string()))?;
        let admission = admission.by_clock(sets.clock());
        Ok(Self { sets, store: notes, verifier, admission, keys, connector, relay })
    }

    /// Whether to move events that only their author may publish (NIP-70).
    fn moves_protected(&self) -> bool {
        self.admission.config().sync.protected
    }
}

/// Default number of attempts in a row without progress before the sync gives up.
const ATTEMPTS: u32 = 5;

/// The default of [`Options::full_interval_s`]: a week.
const FULL_INTERVAL_S: u64 = 7 * DAY_S;

/// Options of a sync.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// The events to sync.
    pub filter: PeerFilter,
    /// The direction of moves.
    pub direction: Direction,
    /// Find differences and move nothing.
    pub dry_run: bool,
    /// Compare id lists and trust no fingerprint (NIP-77): 64 bytes an id in each round.
    pub exact: bool,
    /// After the sync, continue to move new events until stopped.
    pub live: bool,
    /// Maximum number of connections in a row that fail or make no progress before the sync gives
    /// up; `None` for no limit.
    pub attempts: Option<u32>,
    /// Interval of complete readings of a peer without NIP-77, in seconds; in between only new
    /// events are read.
    pub full_interval_s: u64,
    /// Cancels the sync.
    pub stop: CancellationToken,
    /// Receives all messages.
    pub trace: Option<Trace>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            filter: PeerFilter::default(),
            direction: Direction::Both,
            dry_run: false,
            exact: false,
            live: false,
            attempts: Some(ATTEMPTS),
            full_interval_s: FULL_INTERVAL_S,
            stop: CancellationToken::new(),
            trace: None,
        }
    }
}

impl Options {
    /// Sets [`Options::filter`].
    #[must_use]
    pub fn filter(mut self, filter: PeerFilter) -> Self {
        self.filter = filter;
        self
    }

    /// Sets [`Options::direction`].
    #[must_use]
    pub fn direction(mut self, direction: Direction) -> Self {
        self.direction = direction;
        self
    }

    /// Sets [`Options::dry_run`].
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Sets [`Options::exact`].
    #[must_use]
    pub fn exact(mut self, exact: bool) -> Self {
        self.exact = exact;
        self
    }

    /// Sets [`Options::live`].
    #[must_use]
    pub fn live(mut self, live: bool) -> Self {
        self.live = live;
        self
    }

    /// Sets [`Options::attempts`].
    #[must_use]
    pub fn attempts(mut self, attempts: impl Into<Option<u32>>) -> Self {
        self.attempts = attempts.into();
        self
    }

    /// Sets [`Options::full_interval_s`].
    #[must_use]
    pub fn full_interval_s(mut self, full_interval_s: u64) -> Self {
        self.full_interval_s = full_interval_s;
        self
    }

    /// Sets [`Options::stop`].
    #[must_use]
    pub fn stop(mut self, stop: CancellationToken) -> Self {
        self.stop = stop;
        self
    }

    /// Sets [`Options::trace`].
    #[must_use]
    pub fn trace(mut self, trace: impl Into<Option<Trace>>) -> Self {
        self.trace = trace.into();
        self
    }
}

/// Why a sync failed on our side. Faults of the peer are in the [`Report`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    /// The URL is not that of a relay.
    #[error(transparent)]
    Url(#[from] RelayUrlError),
    /// The peer is an onion service, and no proxy is configured.
    #[error("no proxy for the onion service {url}")]
    OnionWithoutProxy {
        /// The peer.
        url: String,
    },
    /// More relays were given than can be synced at a time.
    #[error("more than {MOST_RELAYS} relays")]
    TooManyRelays,
    /// A peer's filter is invalid.
    #[error("the filter of the peer {url}: {source}")]
    Filter {
        /// The peer.
        url: String,
        /// The fault of the filter.
        source: FilterError,
    },
    /// The key for NIP-42 is invalid.
    #[error("the key for NIP-42 in {place}: {reason}")]
    Key {
        /// The variable or file that contains it.
        place: String,
        /// The fault of the key.
        reason: String,
    },
    /// The file of the key for NIP-42 can be read by other users than its owner.
    #[error(
        "the key for NIP-42 in {}: its permissions are {mode:04o}, and others can read it",
        file.display()
    )]
    KeyPermissions {
        /// The file.
        file: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file of authorities is invalid.
    #[error("the certificates in {}: {reason}", file.display())]
    Authorities {
        /// The file.
        file: PathBuf,
        /// The fault of the file.
        reason: String,
    },
    /// The store cannot be read or written.
    #[error("{0}")]
    Store(String),
}

/// Syncs with the peer at `url`, reconnecting as needed, and returns a report. Dropping the future
/// ends the sync; stored events stay.
///
/// # Errors
/// [`SyncError`] when the URL is invalid or the store fails.
pub async fn sync(
    local: &Local,
    url: &str,
    options: &Options,
    progress: impl FnMut(Progress) + Send,
) -> Result<Report, SyncError> {
    Ok(driver::run(local, url, options, None, progress).await?.0)
}
