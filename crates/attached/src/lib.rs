//! The PostgreSQL database of another relay, read beside its running writer, as a source of events.
//! Its tables are never written.
//!
//! `feed` reads the server's feed of commits, `follower` keeps the set equal to it, `database`
//! serializes the polls, `scan` reads a snapshot, and `relay_table` has the differences between the
//! supported relays.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use negsync_attached::AttachedPostgres;
//! use negsync_store::{AttachedOptions, Change, EventSource, Listener, PrivateKinds, RelayKind};
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
//!     AttachedOptions::default().private_kinds(PrivateKinds::new([4, 1059])),
//!     Box::new(Printed),
//! )?;
//! relay.catch_up()?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]
#![warn(missing_debug_implementations, missing_docs)]
#![warn(clippy::must_use_candidate, clippy::return_self_not_must_use)]

mod database;
mod feed;
mod follower;
mod nostr_rs_relay;
mod nostream;
mod pgoutput;
mod relay_table;
mod scan;
mod session;

use database::{BEGINNING_INTERVAL, PostgresDatabase};
use negsync_nostr::relay_url::redacted;
use negsync_reconcile::Item;
use negsync_store::{
    AttachedOptions, Clock, Deadline, EventSource, Listener, RelayKind, StoreError, Work,
    keep_following,
};
use scan::AttachedMoment;
use session::{DatabaseError, ServerConnector};
use std::fmt;
use std::sync::Arc;

/// Attempts to begin a read at a known commit: nothing may be committed between the last poll and
/// the begin.
const MOST_BEGINNINGS: usize = 100;

/// Another relay's database on a PostgreSQL server. Clones share it; dropping the last clone ends
/// the following.
#[derive(Clone)]
pub struct AttachedPostgres {
    inner: Arc<PostgresDatabase>,
    // The deadline for reads of this clone.
    deadline: Deadline,
}

impl fmt::Debug for AttachedPostgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttachedPostgres").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl AttachedPostgres {
    /// Connects to `url`, `postgres://USER@HOST/DATABASE`, reads the whole set and follows new
    /// commits. Uses one connection for the feed in addition to the readers' connections.
    /// `listener` gets the set and the changes, except for events of the options' private kinds,
    /// which only filters that ask for these kinds find. Blocks.
    ///
    /// # Errors
    /// When the server cannot be reached or does not allow changes to be followed, or when the
    /// database is not of a supported version of the relay.
    pub fn open(
        kind: RelayKind,
        url: &str,
        options: AttachedOptions,
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
        let connector = ServerConnector::new(url).map_err(|error| error.of(&name))?;
        let inner = PostgresDatabase::new(table, name, connector, options, listener);
        let inner = Arc::new(inner);
        inner.begin().map_err(|error| error.of(&inner.name))?;
        keep_following(&inner)?;
        Ok(Self { inner, deadline: Deadline::default() })
    }
}

impl EventSource for AttachedPostgres {
    fn with_deadline(&self, deadline: Deadline) -> Arc<dyn EventSource> {
        Arc::new(Self { deadline, ..self.clone() })
    }

    fn deadline(&self) -> &Deadline {
        &self.deadline
    }

    fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    fn catch_up(&self) -> Result<(), StoreError> {
        self.inner.catch_up(true, &self.deadline).map_err(|error| error.of(&self.inner.name))
    }

    fn waits_for_server(&self) -> bool {
        true
    }

    fn read_snapshot(&self, work: &mut Work<'_>) -> Result<(), StoreError> {
        let PostgresDatabase { pool, table, name, .. } = &*self.inner;
        let read = pool.with(&self.deadline, |session| {
            self.inner.begin_seeing_known(session, &self.deadline)?;
            let (deadline, now) = (&self.deadline, self.inner.clock.now());
            work(&AttachedMoment { table, session, deadline, now, database: name })?;
            session.execute("COMMIT")
        });
        read.map_err(|error| error.of(name))
    }

    fn read_at_commit(
        &self,
        beside: &mut dyn FnMut(),
        work: &mut Work<'_>,
    ) -> Result<(), StoreError> {
        let PostgresDatabase { pool, table, name, .. } = &*self.inner;
        let read = pool.with(&self.deadline, |session| {
            for _ in 0..MOST_BEGINNINGS {
                if let Some(now) = self.inner.begin_at_known(session, &self.deadline, beside)? {
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
        let PostgresDatabase { pool, table, private, name, .. } = &*self.inner;
        let wanted = (ids, self.inner.clock.now());
        pool.with(&self.deadline, |session| {
            scan::events(session, table, private, wanted, &self.deadline, visit)
        })
        .map_err(|error| error.of(name))
    }
}

// The example in README.md is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
