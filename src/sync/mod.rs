//! Asking: brings this store and a peer to the same events. One connection reconciles (NIP-77)
//! and moves events at the same time; what is lost with a connection is found again by the next.
//!
//! The parts: `machine` decides, without any I/O, what is said and done; `driver` gives it a socket,
//! threads and the clock. `dial`, `connector`, `tls` and `peer` reach the peer, no faster than `rate_limit` says, `nip11` learns its limits, `ingest`
//! is what an event from a peer has to pass, `report` and `reason` say how it ended. `diff` moves
//! nothing and tells what differs, sorted by `breakdown`; `between` syncs relays that are not ours; `schedule` keeps a relay's peers in sync.

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
    /// The sets of events that we have.
    pub sets: Sets,
    /// What earlier syncs remember, and where events from peers are kept.
    pub store: Arc<dyn EventStore>,
    /// Where signatures are checked.
    pub verifier: Verifier,
    /// What decides about each event from a peer, as about one that is published.
    pub admission: Admission,
    /// Who we are to peers that ask (NIP-42).
    pub keys: Option<Keys>,
    /// How peers are reached.
    pub connector: Connector,
    // Where events from peers are kept, unless in `store`.
    relay: Option<RelaySink>,
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Local").finish_non_exhaustive()
    }
}

impl Local {
    /// Writes the index to files where enough has changed, and closes the store.
    pub fn close(&self) {
        self.sets.write_files();
        self.store.close();
    }

    /// The clock of the store that the sets are of.
    fn clock(&self) -> &Clock {
        self.sets.clock()
    }

    /// Our side with the default configuration and without a key. It goes by the clock of the store.
    ///
    /// # Errors
    /// When the system gives no thread, or the ban list cannot be used.
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

    /// Our side as it is configured. It goes by the clock of the store.
    ///
    /// # Errors
    /// When the key or the file of authorities cannot be read, or the system gives no thread.
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

    /// Our side where another process writes to the store: `sets` are read beside it, and `notes`
    /// holds what syncs remember. For what moves nothing; events from peers would go to `notes`.
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

    /// Our side where another relay keeps the events: `sets` are of its database, what comes from
    /// peers is handed to it at `attach.url`, and `notes` holds only what syncs remember. Inside a
    /// runtime.
    ///
    /// # Errors
    /// As [`Local::configured`], and when the URL leads to no relay.
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

    /// Whether events are moved that only their author may publish (NIP-70).
    fn moves_protected(&self) -> bool {
        self.admission.config().sync.protected
    }
}

/// After so many attempts in a row that moved nothing a peer is left.
const ATTEMPTS: u32 = 5;

/// The default of [`Options::full_interval_s`]: a week.
const FULL_INTERVAL_S: u64 = 7 * DAY_S;

/// How to sync.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which events.
    pub filter: PeerFilter,
    /// Which way.
    pub direction: Direction,
    /// Find out what differs and move nothing.
    pub dry_run: bool,
    /// Compare id lists and believe no fingerprint (NIP-77): 64 bytes an id, each time all is looked
    /// at.
    pub exact: bool,
    /// Go on when all is synced: move events as they come, until stopped.
    pub live: bool,
    /// The connections in a row that may fail, or end without having moved anything, before the
    /// sync gives up; `None` for any number.
    pub attempts: Option<u32>,
    /// After how many seconds a peer without NIP-77 is read whole again, and not only what is new.
    pub full_interval_s: u64,
    /// Ends the sync when it is cancelled.
    pub stop: CancellationToken,
    /// Hears what is said.
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

/// Why a sync could not go on: a fault of our own. A peer's faults are in the [`Report`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    /// The URL leads to no relay.
    #[error(transparent)]
    Url(#[from] RelayUrlError),
    /// The peer is an onion service, and no proxy leads to it.
    #[error("no proxy for the onion service {url}")]
    OnionWithoutProxy {
        /// The peer.
        url: String,
    },
    /// Too many relays are to be synced at a time.
    #[error("more than {MOST_RELAYS} relays")]
    TooManyRelays,
    /// A peer's filter cannot be used.
    #[error("the filter of the peer {url}: {source}")]
    Filter {
        /// The peer.
        url: String,
        /// What is wrong with its filter.
        source: FilterError,
    },
    /// The key for NIP-42 cannot be used.
    #[error("the key for NIP-42 in {place}: {reason}")]
    Key {
        /// Where it stands.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file of the key for NIP-42 can be read by others than its owner.
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
    /// The file of authorities cannot be used.
    #[error("the certificates in {}: {reason}", file.display())]
    Authorities {
        /// Where they stand.
        file: PathBuf,
        /// What is wrong with them.
        reason: String,
    },
    /// The store cannot be read or written.
    #[error("{0}")]
    Store(String),
}

/// Syncs with the peer at `url`, reconnecting as often as it takes, and reports what was done.
/// Dropping the future ends the sync; what was stored stays.
///
/// # Errors
/// When the URL is bad or the store fails.
pub async fn sync(
    local: &Local,
    url: &str,
    options: &Options,
    progress: impl FnMut(Progress) + Send,
) -> Result<Report, SyncError> {
    Ok(driver::run(local, url, options, None, progress).await?.0)
}
