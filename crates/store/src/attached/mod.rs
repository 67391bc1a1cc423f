//! The database of another relay, read beside its running writer, as a source of events. It is
//! never written.
//!
//! `schema` has the differences between the two supported relays, `follow` reads new writes, and
//! `compare` compares the set with the database in case of doubt.

mod compare;
mod follow;
mod nostr_relay_py;
mod nostr_rs_relay;
mod schema;
mod watch;

pub use watch::{FollowedDatabase, keep_following};

use super::change::Change;
use super::file_kind::{literal, refuse_other_than_files};
use super::read_gate::ReadGate;
use super::read_pool::{Pool, ReadTransaction};
use super::source::{EventSource, SourceSnapshot, Work};
use super::viewer::PrivateKinds;
use super::{Clock, Deadline, StoreError};
use follow::Follower;
use negsync_nostr::Filter;
use negsync_reconcile::Item;
use rusqlite::{Connection, OpenFlags};
use schema::{Schema, Wanted};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Timeout for locks that the relay holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// Full reads before the database counts as changing all the time.
const MOST_READINGS: usize = 3;
/// Attempts to begin a read at a known commit: nothing may be written between the last poll and the
/// begin.
const MOST_BEGINNINGS: usize = 100;
const CACHE_KIB: u32 = 2_048;
const STATEMENTS_CACHED: usize = 64;

/// The relays whose databases are supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayKind {
    /// nostr-rs-relay, with SQLite or PostgreSQL.
    NostrRsRelay,
    /// nostr-relay (Python), with SQLite.
    NostrRelayPy,
    /// nostream, with PostgreSQL.
    Nostream,
}

impl RelayKind {
    /// The kind with this name in `relay.toml`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::NostrRsRelay, Self::NostrRelayPy, Self::Nostream];
        all.into_iter().find(|kind| kind.name() == name)
    }

    /// The name in `relay.toml`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NostrRsRelay => "nostr-rs-relay",
            Self::NostrRelayPy => "nostr-relay-py",
            Self::Nostream => "nostream",
        }
    }
}

fn schema(kind: RelayKind, path: &Path, private: PrivateKinds) -> Result<Schema, StoreError> {
    match kind {
        RelayKind::NostrRsRelay => Ok(nostr_rs_relay::schema(private)),
        RelayKind::NostrRelayPy => Ok(nostr_relay_py::schema(private)),
        RelayKind::Nostream => Err(StoreError::UnknownSchema {
            path: path.to_owned(),
            reason: "nostream keeps its events in PostgreSQL; name its database by a URL".into(),
        }),
    }
}

/// How another relay's database is opened.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AttachedOptions {
    /// How many connections may read at the same time.
    pub readers: usize,
    /// The kinds that only filters that ask for them find.
    pub private_kinds: PrivateKinds,
    /// Says what time it is.
    pub clock: Clock,
}

impl Default for AttachedOptions {
    fn default() -> Self {
        Self { readers: 8, private_kinds: PrivateKinds::default(), clock: Clock::system() }
    }
}

impl AttachedOptions {
    /// Sets [`AttachedOptions::readers`].
    #[must_use]
    pub fn readers(self, readers: usize) -> Self {
        Self { readers, ..self }
    }

    /// Sets [`AttachedOptions::private_kinds`].
    #[must_use]
    pub fn private_kinds(self, private_kinds: PrivateKinds) -> Self {
        Self { private_kinds, ..self }
    }

    /// Sets [`AttachedOptions::clock`].
    #[must_use]
    pub fn clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }
}

/// Receives the relay's writes: the set of all its public events, and each change to it.
pub trait Listener: Send + Sync {
    /// Replaces the whole set. `items` are in no order.
    fn begun(&self, items: Vec<Item>);
    /// Applies a change to the set.
    fn changed(&self, change: Arc<Change>);
    /// Whether an item is in the set.
    fn holds(&self, item: &Item) -> bool;
    /// Calls `visit` with the items of a range of seconds, both ends included, in order.
    fn held(&self, from: u64, to: u64, visit: &mut dyn FnMut(Item));
}

/// Another relay's database. Clones share it; dropping the last clone ends the following.
#[derive(Clone)]
pub struct Attached {
    inner: Arc<AttachedInner>,
    // The deadline for reads of this clone.
    deadline: Deadline,
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attached").finish_non_exhaustive()
    }
}

struct AttachedInner {
    schema: Arc<Schema>,
    path: PathBuf,
    readers: usize,
    clock: Clock,
    listener: Box<dyn Listener>,
    follower: Mutex<Option<Follower>>,
    // Number of full reads that failed.
    failures: AtomicU64,
    // The connections to the file that is followed. A replaced file gets a new pool.
    pool: Mutex<Arc<Pool>>,
}

impl Attached {
    /// Opens the database in `path`, reads the whole set and begins to follow new writes. `listener`
    /// receives the set and the changes. Events of the options' private kinds are not published to it;
    /// only filters that ask for them find them.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be read or is not a database of a supported version of
    /// the relay.
    pub fn open(
        kind: RelayKind,
        path: &Path,
        options: AttachedOptions,
        listener: Box<dyn Listener>,
    ) -> Result<Self, StoreError> {
        let AttachedOptions { readers, private_kinds, clock } = options;
        let schema = Arc::new(schema(kind, path, private_kinds)?);
        let pool = Mutex::new(Arc::new(pool(path, readers)));
        let follower = Mutex::new(None);
        let path = path.to_owned();
        let failures = AtomicU64::new(0);
        let inner =
            AttachedInner { schema, path, readers, clock, listener, follower, failures, pool };
        let inner = Arc::new(inner);
        inner.begin(&mut inner.lock())?;
        keep_following(&inner)?;
        Ok(Self { inner, deadline: Deadline::default() })
    }
}

impl AttachedInner {
    /// Reads the whole set again.
    fn begin(&self, follower: &mut Option<Follower>) -> Result<(), StoreError> {
        let mut readings = 1;
        let (begun, items) = loop {
            let fresh = Arc::new(pool(&self.path, self.readers));
            *self.pool.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
            match Follower::begin(&self.schema, &self.path, self.clock.now()) {
                Ok(begun) => break begun,
                // Or the relay's last checkpoint ran during the read.
                Err(StoreError::Rewritten { .. }) if readings < MOST_READINGS => readings += 1,
                Err(error) => {
                    self.failures.fetch_add(1, Ordering::Relaxed);
                    return Err(error);
                }
            }
        };
        self.listener.begun(items);
        *follower = Some(begun);
        Ok(())
    }

    /// Publishes what was written since the last poll. After an error the whole set is read again;
    /// reads fail until that succeeds.
    fn catch_up(&self) -> Result<(), StoreError> {
        let failures = self.failures.load(Ordering::Relaxed);
        let mut follower = self.lock();
        if follower.is_none() && self.failures.load(Ordering::Relaxed) != failures {
            // The caller that held the lock has just waited for the database in vain: the others
            // would wait one after the other.
            return Err(StoreError::Busy { path: self.path.clone() });
        }
        self.catch_up_until(&mut follower, self.clock.now())
    }

    /// Checks that everything read from this pool came from one file. Fails if the file was
    /// overwritten in the meantime.
    fn check_still(&self, pool: &Arc<Pool>) -> Result<(), StoreError> {
        self.catch_up()?;
        if Arc::ptr_eq(pool, &self.pool()) {
            Ok(())
        } else {
            Err(StoreError::Rewritten { path: self.path.clone() })
        }
    }

    fn catch_up_until(&self, follower: &mut Option<Follower>, now: u64) -> Result<(), StoreError> {
        // If this panics, a part of the writes is unknown. The follower is gone then, so the set is
        // read again.
        if let Some(mut following) = follower.take() {
            match following.catch_up(self.listener.as_ref(), now) {
                Ok(()) => {
                    *follower = Some(following);
                    return Ok(());
                }
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), %error, "attached database changed: reading all events again");
                }
            }
        }
        self.begin(follower)
    }

    /// Begins a read on this connection at exactly the state that the listener knows, and calls
    /// `beside` before the listener learns of another change. Returns the second of that state, or
    /// `None` if something was written in the meantime.
    fn begin_at_known(
        &self,
        pool: &Arc<Pool>,
        connection: &Connection,
        beside: &mut dyn FnMut(),
    ) -> Result<Option<u64>, StoreError> {
        let mut follower = self.lock();
        // Events that expire later are still in the set.
        let now = self.clock.now();
        self.catch_up_until(&mut follower, now)?;
        self.schema.ends(connection).map_err(StoreError::sqlite)?;
        let is_behind = follower.as_ref().map_or(Ok(true), Follower::is_behind)?;
        if is_behind || !Arc::ptr_eq(pool, &self.pool()) {
            return Ok(None);
        }
        // Everything that this read sees is published.
        beside();
        Ok(Some(now))
    }

    fn pool(&self) -> Arc<Pool> {
        Arc::clone(&self.pool.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Follower>> {
        self.follower.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FollowedDatabase for AttachedInner {
    const LOOK_INTERVAL: Duration = Duration::from_millis(50);
    // A file that is being replaced exists again shortly.
    const RETRY_INTERVAL: Duration = Self::LOOK_INTERVAL;

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn look(&self) -> Result<(), StoreError> {
        self.catch_up()
    }
}

impl EventSource for Attached {
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
        self.inner.catch_up()
    }

    fn read_snapshot(&self, work: &mut Work<'_>) -> Result<(), StoreError> {
        let (schema, now) = (self.inner.schema.as_ref(), self.inner.clock.now());
        let pool = self.inner.pool();
        pool.with(&self.deadline, |read| work(&AttachedSnapshot { schema, read, now }))?;
        self.inner.check_still(&pool)
    }

    fn read_at_commit(
        &self,
        beside: &mut dyn FnMut(),
        work: &mut Work<'_>,
    ) -> Result<(), StoreError> {
        let schema = self.inner.schema.as_ref();
        for _ in 0..MOST_BEGINNINGS {
            let pool = self.inner.pool();
            let is_done = pool.with(&self.deadline, |read| {
                let known = self.inner.begin_at_known(&pool, read, beside)?;
                if let Some(now) = known {
                    work(&AttachedSnapshot { schema, read, now })?;
                }
                Ok::<_, StoreError>(known.is_some())
            })?;
            if is_done {
                return self.inner.check_still(&pool);
            }
        }
        Err(StoreError::Busy { path: self.inner.path.clone() })
    }

    fn events(
        &self,
        ids: &[[u8; 32]],
        visit: &mut dyn FnMut(&Item, &str),
    ) -> Result<(), StoreError> {
        let (schema, now) = (&self.inner.schema, self.inner.clock.now());
        self.inner.pool().with(&self.deadline, |read| {
            let mut found = Vec::new();
            schema
                .rows(read, &Wanted::Ids(ids), &mut |row| {
                    if row.is_public(now) {
                        found.push(row);
                    }
                })
                .map_err(StoreError::sqlite)?;
            for row in found {
                if let Some(json) = schema.json(read, row.row).map_err(StoreError::sqlite)? {
                    visit(&row.item, &json);
                }
            }
            Ok(())
        })
    }
}

/// One snapshot of the database.
struct AttachedSnapshot<'moment> {
    schema: &'moment Schema,
    read: &'moment ReadTransaction<'moment>,
    now: u64,
}

impl SourceSnapshot for AttachedSnapshot<'_> {
    fn items(
        &self,
        filter: &Filter,
        visit: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.schema.items(self.read, filter, self.now, visit).map_err(StoreError::sqlite)
    }
}

fn pool(path: &Path, readers: usize) -> Pool {
    let path = path.to_owned();
    Pool::new(Box::new(move || open(&path)), readers, ReadGate::default(), Arc::default())
}

/// Opens the database read-only. Memory mapping stays off, because the relay may truncate the file.
fn open(path: &Path) -> Result<Connection, StoreError> {
    refuse_other_than_files(path)?;
    let failed =
        |source| StoreError::Open { path: path.to_owned(), source: crate::SqliteError(source) };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(literal(path), flags).map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    connection
        .execute_batch(&format!("PRAGMA query_only = TRUE; PRAGMA cache_size = -{CACHE_KIB};"))
        .map_err(failed)?;
    Ok(connection)
}
