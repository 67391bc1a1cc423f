//! The PostgreSQL database of another relay, read beside its running writer: what a relay that
//! people already run has stored, as a source of events. Its tables are never written to.
//!
//! `feed` has what the server tells of commits, `follower` keeps the set equal to it, `scan` reads at
//! one moment, and `relay_table` has what the known relays differ in.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use negsync_attached::AttachedPostgres;
//! use negsync_store::{Change, EventSource, Listener, PrivateKinds, RelayKind};
//! # use negsync_reconcile::Item;
//! use std::sync::Arc;
//!
//! struct Printed;
//! impl Listener for Printed {
//!     fn begun(&self, items: Vec<Item>) {
//!         println!("{} events", items.len());
//!     }
//!     fn changed(&self, change: Arc<Change>) {
//!         println!("{change:?}");
//!     }
//! #   fn holds(&self, _: &Item) -> bool { false }
//! #   fn held(&self, _: u64, _: u64, _: &mut dyn FnMut(Item)) {}
//! }
//!
//! let url = "postgres://negsync@127.0.0.1/nostream";
//! let relay = AttachedPostgres::open(
//!     RelayKind::Nostream,
//!     url,
//!     4,
//!     PrivateKinds::new([4, 1059]),
//!     Box::new(Printed),
//! )?;
//! relay.catch_up()?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod feed;
mod follower;
mod nostr_rs_relay;
mod nostream;
mod pgoutput;
mod relay_table;
mod scan;
mod session;

use follower::RelayFollower;
use negsync_nostr::relay_url::redacted;
use negsync_reconcile::Item;
use negsync_store::{
    Deadline, EventSource, Listener, PrivateKinds, RelayKind, StoreError, Work, unix_now,
};
use relay_table::RelayTable;
use scan::{AttachedMoment, begin_snapshot};
use session::{DatabaseError, Outcome, RelaySession, RelaySessions, ServerConnector};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// How often the feed is read when nobody asks for a set.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long to wait before a database that could not be read is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How often a reading is begun that has to see what is known and nothing more: between its
/// beginning and the last look at the feed nothing may be committed.
const MOST_BEGINNINGS: usize = 100;
/// Between two of these.
const BEGINNING_INTERVAL: Duration = Duration::from_millis(2);

/// Another relay's database on a PostgreSQL server. Clones share it; the last one ends the
/// following.
#[derive(Clone)]
pub struct AttachedPostgres {
    inner: Arc<FollowedDatabase>,
    // Of the reads of this clone.
    deadline: Deadline,
}

struct FollowedDatabase {
    table: &'static RelayTable,
    // As it is shown: without a password.
    name: String,
    private: PrivateKinds,
    connector: Arc<ServerConnector>,
    pool: RelaySessions,
    listener: Box<dyn Listener>,
    state: Mutex<FollowState>,
    /// How many looks at the feed have begun.
    looks: AtomicU64,
}

enum FollowState {
    Following(Box<RelayFollower>),
    /// Everything has to be read anew, for this reason.
    Lost(String),
}

impl AttachedPostgres {
    /// Connects to `url`, `postgres://USER@HOST/DATABASE`, with at most `readers` connections beside
    /// that of the feed, reads the whole set and begins to follow what is committed; `listener`
    /// hears of both. It does not hear of events of `private` kinds: they are found only by filters
    /// that ask for them. Blocks.
    ///
    /// # Errors
    /// When the server cannot be reached, does not let changes be followed, or the database is not
    /// of a known version of the relay.
    pub fn open(
        kind: RelayKind,
        url: &str,
        readers: usize,
        private: PrivateKinds,
        listener: Box<dyn Listener>,
    ) -> Result<Self, StoreError> {
        let name = redacted(url);
        let table = match kind {
            RelayKind::Nostream => &nostream::TABLE,
            RelayKind::NostrRsRelay => &nostr_rs_relay::TABLE,
            other => {
                let reason = format!("{} does not work with PostgreSQL", other.name());
                return Err(DatabaseError::Refused(reason).of(&name));
            }
        };
        let connector = Arc::new(ServerConnector::new(url).map_err(|error| error.of(&name))?);
        let pool = RelaySessions::new(Arc::clone(&connector), readers);
        let state = Mutex::new(FollowState::Lost("it is being read".into()));
        let looks = AtomicU64::new(0);
        let inner = Arc::new(FollowedDatabase {
            table,
            name,
            private,
            connector,
            pool,
            listener,
            state,
            looks,
        });
        inner.begin().map_err(|error| error.of(&inner.name))?;
        let watched = Arc::downgrade(&inner);
        std::thread::Builder::new()
            .name("attached".into())
            .spawn(move || watch(&watched))
            .map_err(StoreError::Thread)?;
        Ok(Self { inner, deadline: Deadline::default() })
    }
}

impl FollowedDatabase {
    /// Reads everything anew.
    fn begin(&self) -> Outcome<()> {
        let (follower, items) = RelayFollower::begin(&self.connector, self.table, &self.private)?;
        let mut state = self.lock();
        self.listener.begun(items);
        *state = FollowState::Following(Box::new(follower));
        Ok(())
    }

    /// Makes known what was committed before the call. After an error nothing is answered until
    /// everything has been read anew.
    fn catch_up(&self, is_sure: bool) -> Outcome<()> {
        let looks = self.looks.load(Ordering::Acquire);
        let mut state = self.lock();
        // One that began after the call has seen all of it.
        let is_done = is_sure && self.looks.load(Ordering::Acquire) > looks;
        self.look(&mut state, is_sure, is_done)
    }

    fn look(
        &self,
        state: &mut MutexGuard<'_, FollowState>,
        is_sure: bool,
        is_done: bool,
    ) -> Outcome<()> {
        let follower = match &mut **state {
            FollowState::Following(_) if is_done => return Ok(()),
            FollowState::Following(follower) => follower,
            FollowState::Lost(reason) => {
                let reason = format!("it is being read anew; try again ({reason})");
                return Err(DatabaseError::Refused(reason));
            }
        };
        // A look that is not sure is none to rely on.
        if is_sure {
            self.looks.fetch_add(1, Ordering::AcqRel);
        }
        let outcome = follower.catch_up(self.listener.as_ref(), unix_now(), is_sure);
        if let Err(error) = &outcome {
            tracing::warn!(database = self.name, %error, "the feed was lost; reading everything anew");
            **state = FollowState::Lost(error.to_string());
        }
        outcome
    }

    /// Begins to read, on this connection, a moment that sees all that the listener knows.
    fn begin_seeing_known(&self, session: &RelaySession, deadline: &Deadline) -> Outcome<()> {
        loop {
            let snapshot = begin_snapshot(session)?;
            match &*self.lock() {
                FollowState::Following(follower) if !follower.feed.is_seen_by(&snapshot)? => {}
                _ => return Ok(()),
            }
            session.execute("ROLLBACK")?;
            deadline.check()?;
            std::thread::sleep(BEGINNING_INTERVAL);
        }
    }

    /// Begins to read, on this connection, what the listener knows now and nothing more; calls
    /// `beside` before anything else becomes known. `false` when something was committed meanwhile.
    fn begin_at_known(&self, session: &RelaySession, beside: &mut dyn FnMut()) -> Outcome<bool> {
        let mut state = self.lock();
        self.look(&mut state, true, false)?;
        let snapshot = begin_snapshot(session)?;
        let FollowState::Following(follower) = &mut *state else { return Ok(false) };
        let is_exact = follower.feed.is_seen_by(&snapshot)? && follower.is_still()?;
        if is_exact {
            // All that can be read here is known.
            beside();
        }
        Ok(is_exact)
    }

    fn lock(&self) -> MutexGuard<'_, FollowState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_lost(&self) -> bool {
        matches!(&*self.lock(), FollowState::Lost(_))
    }
}

/// Looks again and again, until nobody has the database open any more, and reads everything anew
/// where that is needed.
fn watch(watched: &Weak<FollowedDatabase>) {
    let mut failing = false;
    while let Some(database) = watched.upgrade() {
        let mut interval = LOOK_INTERVAL;
        if database.is_lost() {
            match database.begin() {
                Ok(()) => {
                    tracing::info!(database = database.name, "the database can be read again");
                    failing = false;
                }
                Err(error) => {
                    if !failing {
                        tracing::error!(
                            database = database.name,
                            %error,
                            "sets cannot be answered until the database can be read"
                        );
                    }
                    failing = true;
                    interval = RETRY_INTERVAL;
                }
            }
        } else {
            // What is wrong has been said, and is mended next.
            let _ = database.catch_up(false);
        }
        drop(database);
        std::thread::sleep(interval);
    }
}

impl EventSource for AttachedPostgres {
    fn with_deadline(&self, deadline: Deadline) -> Arc<dyn EventSource> {
        Arc::new(Self { deadline, ..self.clone() })
    }

    fn deadline(&self) -> &Deadline {
        &self.deadline
    }

    fn catch_up(&self) -> Result<(), StoreError> {
        self.inner.catch_up(true).map_err(|error| error.of(&self.inner.name))
    }

    fn waits_for_server(&self) -> bool {
        true
    }

    fn read_snapshot(&self, work: &mut Work<'_>) -> Result<(), StoreError> {
        let FollowedDatabase { pool, table, name, .. } = &*self.inner;
        let read = pool.with(&self.deadline, |session| {
            self.inner.begin_seeing_known(session, &self.deadline)?;
            let deadline = &self.deadline;
            work(&AttachedMoment { table, session, deadline, now: unix_now(), database: name })?;
            session.execute("COMMIT")
        });
        read.map_err(|error| error.of(name))
    }

    fn read_at_commit(
        &self,
        beside: &mut dyn FnMut(),
        work: &mut Work<'_>,
    ) -> Result<(), StoreError> {
        let FollowedDatabase { pool, table, name, .. } = &*self.inner;
        let read = pool.with(&self.deadline, |session| {
            for _ in 0..MOST_BEGINNINGS {
                let now = unix_now();
                if self.inner.begin_at_known(session, beside)? {
                    let deadline = &self.deadline;
                    work(&AttachedMoment { table, session, deadline, now, database: name })?;
                    return session.execute("COMMIT");
                }
                session.execute("ROLLBACK")?;
                self.deadline.check()?;
                std::thread::sleep(BEGINNING_INTERVAL);
            }
            Err(DatabaseError::Refused("it is written to without a pause; try again".into()))
        });
        read.map_err(|error| error.of(name))
    }

    fn events(
        &self,
        ids: &[[u8; 32]],
        visit: &mut dyn FnMut(&Item, &str),
    ) -> Result<(), StoreError> {
        let FollowedDatabase { pool, table, private, name, .. } = &*self.inner;
        let wanted = (ids, unix_now());
        pool.with(&self.deadline, |session| {
            scan::events(session, table, private, wanted, &self.deadline, visit)
        })
        .map_err(|error| error.of(name))
    }
}

// The example in README.md is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
