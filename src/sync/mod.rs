//! Asking: brings this store and a peer to the same events. One connection reconciles (NIP-77)
//! and moves events at the same time; what is lost with a connection is found again by the next.
//!
//! The parts: `dial`, `connector`, `trust` and `peer` reach the peer, `information` learns its limits, `session`
//! is one connection's work, `download` and `upload` are its two windows of events under way,
//! `arrival` is what an event from a peer has to pass, `pass` keeps the accounts that prove
//! the result. `diff` moves nothing and tells what differs, sorted by `breakdown`.

mod arrival;
mod auth;
mod backoff;
mod breakdown;
mod connector;
mod dial;
mod diff;
mod download;
mod filter;
mod handover;
mod information;
mod look;
mod message;
mod pass;
mod peer;
mod rate_limit;
mod report;
mod schedule;
mod session;
mod status;
mod trace;
mod trust;
mod upload;

pub use breakdown::{By, Key};
pub use connector::Connector;
pub use dial::{PeerUrl, UrlError};
pub use diff::{Diff, DiffOptions, DiffRow, diff};
pub use filter::PeerFilter;
pub use report::{Counts, Method, Progress, Report};
pub use schedule::Schedule;
pub use trace::{Speaker, Trace};

pub use crate::config::Direction;

use crate::admission::Admission;
use crate::config::Config;
use crate::index::{Index, Sets};
use crate::store::{FilterError, Store, StoreError, Verifier};
use backoff::Backoff;
use breakdown::Breakdown;
use handover::Handover;
use nostr::Keys;
use session::{End, Memory, Session};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Our side of every sync. Clones share it.
#[derive(Clone)]
pub struct Local {
    /// The sets of events that we have.
    pub sets: Sets,
    /// What earlier syncs remember, and where events from peers are kept.
    pub store: Store,
    /// Where signatures are checked.
    pub verifier: Verifier,
    /// What decides about each event from a peer, as about one that is published.
    pub admission: Admission,
    /// Who we are to peers that ask (NIP-42).
    pub keys: Option<Keys>,
    /// How peers are reached.
    pub connector: Connector,
    // Where events from peers are kept, unless in `store`.
    relay: Option<Handover>,
}

impl Local {
    /// Our side with the default configuration and without a key.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new(index: Index) -> Result<Self, StoreError> {
        let admission = Admission::start(Config::default()).map_err(StoreError::Thread)?;
        Ok(Self {
            sets: index.sets().clone(),
            store: index.store().clone(),
            verifier: Verifier::start()?,
            admission,
            keys: None,
            connector: Connector::default(),
            relay: None,
        })
    }

    /// Our side as it is configured.
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
            admission,
        })
    }

    /// Our side where another process writes to the store: `sets` are read beside it, and `notes`
    /// holds what syncs remember. For what moves nothing; events from peers would go to `notes`.
    ///
    /// # Errors
    /// As [`Local::configured`].
    pub fn reading(sets: Sets, notes: Store, admission: Admission) -> Result<Self, SyncError> {
        let config = admission.config();
        let verifier = Verifier::start().map_err(|error| SyncError::Store(error.to_string()))?;
        Ok(Self {
            sets,
            store: notes,
            verifier,
            keys: auth::configured_keys(&config.sync)?,
            connector: Connector::configured(&config.sync)?,
            relay: None,
            admission,
        })
    }

    /// Our side where another relay keeps the events: `sets` are of its database, what comes from
    /// peers is handed to it at `attach.url`, and `notes` holds only what syncs remember. Inside a
    /// runtime.
    ///
    /// # Errors
    /// As [`Local::configured`], and when the URL leads to no relay.
    pub fn attached(sets: Sets, notes: Store, admission: Admission) -> Result<Self, SyncError> {
        let config = admission.config();
        let keys = auth::configured_keys(&config.sync)?;
        let connector = Connector::configured(&config.sync)?;
        let (url, direct) = (&config.attach.url, connector.direct());
        let relay = Some(Handover::start(url, sets.clone(), keys.clone(), direct)?);
        let verifier = Verifier::start().map_err(|error| SyncError::Store(error.to_string()))?;
        Ok(Self { sets, store: notes, verifier, admission, keys, connector, relay })
    }

    /// Whether events are moved that only their author may publish (NIP-70).
    fn moves_protected(&self) -> bool {
        self.admission.config().sync.protected
    }
}

/// After so many attempts in a row that moved nothing a peer is left.
const ATTEMPTS: u32 = 5;

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
    /// Ends the sync when it becomes `true`.
    pub stop: Option<watch::Receiver<bool>>,
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
            stop: None,
            trace: None,
        }
    }
}

/// Why a sync could not go on: a fault of our own. A peer's faults are in the [`Report`].
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The URL leads to no relay.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The peer is an onion service, and no proxy leads to it.
    #[error("no proxy for the onion service {url}")]
    OnionWithoutProxy {
        /// The peer.
        url: String,
    },
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
    Ok(run(local, url, options, None, progress).await?.0)
}

/// Syncs, and tells what differed in the last pass where that is to be told `by` something.
async fn run(
    local: &Local,
    url: &str,
    options: &Options,
    by: Option<By>,
    mut progress: impl FnMut(Progress) + Send,
) -> Result<(Report, Option<Breakdown>), SyncError> {
    let url = PeerUrl::parse(url)?;
    local.connector.check(&url)?;
    let began = Instant::now();
    let mut memory = Memory::new(&url, options, by);
    let mut backoff = Backoff::default();
    loop {
        let end = Session::run(local, &url, options, &mut memory, &mut progress).await;
        // What only looks begins anew on every connection: it is no nearer to its end.
        if memory.take_advanced() && !options.dry_run {
            backoff.reset();
        }
        let reason = match end {
            End::Finished => break,
            End::Failed(error) => return Err(SyncError::Store(error)),
            End::Lost(reason) => reason.to_string(),
        };
        let pause = backoff.next();
        let failures = backoff.failures();
        if options.attempts.is_some_and(|most| failures >= most) {
            memory.report.complete = false;
            memory.report.equal = false;
            memory.report.error = Some(match failures {
                1 => reason,
                _ => format!("after {failures} attempts in a row that moved nothing: {reason}"),
            });
            break;
        }
        progress(Progress::Waiting { reason, pause });
        if !sleep(pause, options).await {
            memory.report.error = Some(report::STOPPED.to_owned());
            break;
        }
        memory.report.reconnects += 1;
    }
    let mut report = memory.report;
    report.elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok((report, memory.breakdown))
}

/// Returns whether the sync goes on.
async fn sleep(pause: Duration, options: &Options) -> bool {
    match options.stop.clone() {
        None => {
            tokio::time::sleep(pause).await;
            true
        }
        Some(mut stop) => tokio::select! {
            () = tokio::time::sleep(pause) => true,
            stopped = stop.wait_for(|stop| *stop) => stopped.is_err(),
        },
    }
}
