//! An event store for Nostr on SQLite: one writer with group commit, readers beside it, and the rules that
//! decide what an accepted event does to the others (replaceable events, deletion requests, requests to
//! vanish, expiration).
//!
//! ```
//! use negsync_store::{Event, Filter, Outcome, Store, StoreOptions};
//! use std::ops::ControlFlow;
//!
//! # let folder = tempfile::tempdir()?;
//! let path = folder.path().join("events.sqlite");
//! let store = Store::open(&path, StoreOptions::default(), Box::new(|_| {}))?;
//! let event = Event::parse(EVENT)?.verify()?;
//! assert_eq!(store.publish(vec![event])?, [Outcome::Stored]);
//!
//! let filter = Filter::parse(r#"{"kinds": [1]}"#)?;
//! let mut found = Vec::new();
//! store.reader().items(&filter, |item| {
//!     found.push(item.id);
//!     ControlFlow::Continue(())
//! })?;
//! assert_eq!(found.len(), 1);
//! # const EVENT: &str = include_str!("../examples/event.json");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod apply;
mod attached;
mod backup;
mod change;
mod check;
mod checkpoint;
mod commits;
mod compact;
mod deadline;
mod deletion;
mod doubt;
mod event_store;
mod export_mark;
mod file_kind;
mod flush;
mod index_mark;
mod lock;
mod metrics;
mod newest;
mod operator;
mod options;
mod presence;
mod private_times;
mod query;
mod read_gate;
mod readers;
mod refused;
mod retag;
mod retention;
pub mod rules;
mod schema;
mod source;
mod source_queue;
mod sqlite_error;
pub mod submission;
mod sync_mark;
mod vanish;
mod verifier;
mod viewer;
mod wal;
mod writer;

pub use attached::{Attached, FollowedDatabase, Listener, RelayKind, keep_following};
pub use backup::{BackupError, BackupReport, backup, restore};
pub use change::{Change, Step};
pub use check::{CheckReport, Finding, check};
pub use compact::{Compacted, compact};
pub use deadline::Deadline;
pub use event_store::{EventStore, VisitEvent};
pub use export_mark::ExportMark;
pub use flush::OnCommit;
pub use index_mark::MarkName;
pub use metrics::{Distribution, StoreMetrics, Timer};
pub use negsync_nostr::kinds::{AUTHENTICATION, Lifetime, VANISH};
pub use negsync_nostr::{Event, EventError, Filter, FilterError, TagKey, VerifiedEvent};
pub use newest::{Rest, cut, order};
pub use operator::{
    BuriedFacts, FindIds, REMOVED_BY_OPERATOR, Selected, Selection, Undelete, UndeleteError,
};
pub use options::{StoreOptions, Synchronous};
pub use query::Hit;
pub use readers::{LeftOut, ReadSnapshot, Reader, StoredPage};
pub use refused::RefusedId;
pub use retention::{KindRange, RETIRED, Retention, RetentionRule, RetentionWindow, RuleMatches};
pub use rules::Outcome;
pub use source::{EventSource, SourceSnapshot, Work};
pub use source_queue::{NextJob, Origin, SourceQueue};
pub use sqlite_error::{SqliteError, SqliteErrorKind};
pub use sync_mark::{PeerTraits, ReadMark, SyncMark};
pub use verifier::Verifier;
pub use viewer::{PrivateKinds, View, Viewer};
pub use writer::{Batches, Reply, unix_now};

use apply::RuleMemory;
use checkpoint::{Checkpointer, LogLength};
use commits::Commits;
use doubt::{Doubt, Mender, log_path};
use lock::Lock;
use presence::Presence;
use read_gate::ReadGate;
use retention::Retaining;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::sync::oneshot;
use vanish::Vanishing;
use writer::{Writer, WriterContext};

/// Why the store could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file could not be opened.
    #[error("cannot open the store {path}: {source}", path = path.display())]
    Open {
        /// The store's file.
        path: PathBuf,
        /// What SQLite says.
        source: SqliteError,
    },
    /// The file is an SQLite database of another program.
    #[error("{path} is an SQLite database, but not a negsync store; name another file",
        path = path.display())]
    NotAStore {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a later version.
    #[error("{path} has store version {version}, this negsync knows up to {newest}; \
        use a newer negsync", path = path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: i32,
        /// The newest version that this program reads.
        newest: usize,
    },
    /// The file was written by an earlier version, and is only read here.
    #[error("{path} has store version {version}, this negsync reads {newest}; \
        `negsync relay` or `negsync import` on it brings it up to date", path = path.display())]
    TooOld {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: usize,
        /// The version that this program reads.
        newest: usize,
    },
    /// The file is not what SQLite wrote.
    #[error("the store {path} is damaged: {source}; `negsync check` says where, and a copy from \
        before has to take its place", path = path.display())]
    Damaged {
        /// The store's file.
        path: PathBuf,
        /// What SQLite says.
        source: SqliteError,
    },
    /// There is no room for what SQLite needs beside the file.
    #[error("cannot open the store {path}: its disk is full; free some space", path = path.display())]
    NoRoom {
        /// The store's file.
        path: PathBuf,
    },
    /// This process may not write to the file.
    #[error("the store {path} cannot be written; give its file and its directory to the user \
        that runs negsync", path = path.display())]
    ReadOnly {
        /// The store's file.
        path: PathBuf,
    },
    /// The file has more than one name.
    #[error("the store {path} has {names} names (hard links), and SQLite keeps a log of its own \
        for each; remove the others", path = path.display())]
    Linked {
        /// The store's file.
        path: PathBuf,
        /// How many.
        names: u64,
    },
    /// What is there is no file.
    #[error("the store {path} is a directory; name a file in it", path = path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// Another process writes to it.
    #[error("the store {path} is in use by another negsync{by}; stop it first",
        path = path.display(), by = pid.map_or(String::new(), |pid| format!(" (pid {pid})")))]
    InUse {
        /// The store's file.
        path: PathBuf,
        /// The process, where it has left its number.
        pid: Option<u32>,
    },
    /// The file that marks the store as in use cannot be made.
    #[error("cannot lock the store with {path}, beside it: {source}", path = path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// What was to be written is not there, or not safely.
    #[error("the store could not be written: {0}")]
    NotWritten(String),
    /// A part of the write-ahead log is lost, and nothing of it was acknowledged.
    #[error(
        "{0}; end all programs that have the store open and start again: what was acknowledged \
        stands before it"
    )]
    LogDamaged(String),
    /// A file of an open store is not what it was, or not where.
    #[error(
        "a file of the store was moved, removed or replaced; the relay has to be started again"
    )]
    FileLost,
    /// A file of the store cannot be looked at.
    #[error("cannot look at {path}: {source}", path = path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// There is a log and no store.
    #[error("{log} is the write-ahead log of a store that is not there: {path} is missing or empty; \
        put the store back, or move the log beside it under the store's new name. Nothing was changed",
        log = log.display(), path = path.display())]
    OrphanedLog {
        /// The log.
        log: PathBuf,
        /// Where its store should be.
        path: PathBuf,
    },
    /// There is a log, and not the store that it belongs to.
    #[error("{log} is the write-ahead log of another file than {path}, which took its place; put that \
        one back, or move the log to where it is, under its name. Nothing was changed",
        log = log.display(), path = path.display())]
    ForeignLog {
        /// The log.
        log: PathBuf,
        /// What stands where its store should be.
        path: PathBuf,
    },
    /// SQLite refused.
    #[error("the store: {0}")]
    Sqlite(#[source] SqliteError),
    /// The deadline of a query is over, or the query was cancelled.
    #[error("query timeout")]
    Interrupted,
    /// The database of another engine cannot be used.
    #[error("the store {store}: {source}")]
    Database {
        /// The database, without a password.
        store: String,
        /// What the engine says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The engine cannot do this.
    #[error("{what} cannot be had over this store; {instead}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// What to use in its place.
        instead: &'static str,
    },
    /// A thread could not be started.
    #[error("cannot start a thread for the store: {0}")]
    Thread(std::io::Error),
    /// Something is due to be removed and still there.
    #[error("what has expired could not be removed; the log says why")]
    NotExpired,
    /// The file is not a database of a known relay, or of a version that is not known.
    #[error("{path} cannot be attached to: {reason}; this negsync knows nostr-rs-relay 0.8.12 and 0.9 \
        and nostr-relay (Python) 1.14", path = path.display())]
    UnknownSchema {
        /// The file.
        path: PathBuf,
        /// What is not known about it.
        reason: String,
    },
    /// Something else stands where the database, or what SQLite keeps beside it, should be.
    #[error("{path} is no regular file; name the database's file", path = path.display())]
    NotAFile {
        /// What is no file.
        path: PathBuf,
    },
    /// Another relay's database is not where it was said to be.
    #[error("the relay's database {path} is not there: {source}", path = path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Another relay's database has become another one.
    #[error("the relay's database {path} was replaced or rewritten", path = path.display())]
    Rewritten {
        /// The file.
        path: PathBuf,
    },
    /// Another relay's database is locked, or is written to without a pause.
    #[error("the relay's database {path} cannot be read at this moment; try again",
        path = path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// Another relay's database on a server cannot be read.
    #[error("the relay's database {database} cannot be read: {reason}")]
    Attached {
        /// The database, without its password.
        database: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A file of the index cannot be read any more; the index is made anew.
    #[error("the index file cannot be read; the index is being made anew, try again")]
    IndexLost,
    /// The address of a store on a server cannot be used.
    #[error("the address of the store: {0}")]
    Address(String),
    /// The tables were made by a later version.
    #[error(
        "the store has version {version}, this negsync knows up to {newest}; use a newer negsync"
    )]
    NewerTables {
        /// Their version.
        version: i32,
        /// The newest version that this program reads.
        newest: i32,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::OperationInterrupted) => Self::Interrupted,
            _ => Self::Sqlite(SqliteError(error)),
        }
    }
}

impl StoreError {
    /// Names the file in an error of SQLite that came up while it was opened.
    fn while_opening(self, path: &Path) -> Self {
        match self {
            // What is no database at all may be somebody's: it is not for `check`.
            Self::Sqlite(source)
                if source.0.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseCorrupt) =>
            {
                Self::Damaged { path: path.to_owned(), source }
            }
            Self::Sqlite(source) if sqlite_error::has_no_room(&source.0) => {
                Self::NoRoom { path: path.to_owned() }
            }
            Self::Sqlite(source) => Self::Open { path: path.to_owned(), source },
            other => other,
        }
    }
}

/// An open store. Clones share it; it closes with [`Store::close`] or with the last clone.
///
/// All calls block: inside async code they belong on a blocking thread.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    // With the deadline of this clone.
    reader: Reader,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

struct Inner {
    path: PathBuf,
    reader: Reader,
    writer: Writer,
    doubt: Doubt,
    metrics: StoreMetrics,
    // One process writes: the index in its memory is the whole truth about the file.
    lock: Lock,
}

impl Inner {
    fn close(&self) {
        // The writer last: SQLite removes the write-ahead log when the last connection closes that
        // may write.
        self.reader.close();
        self.writer.stop();
        self.lock.release();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

impl Store {
    /// Opens the store in `path`, making it when it is not there. `on_commit` hears of every
    /// change, one after the other, before the outcome of its events is told.
    ///
    /// # Errors
    /// When the file cannot be opened or is not a store of this version or an older one.
    pub fn open(
        path: &Path,
        options: StoreOptions,
        on_commit: OnCommit,
    ) -> Result<Self, StoreError> {
        let lock = lock::take(path)?;
        let real = lock.store.clone();
        presence::refuse_orphaned_log(path)?;
        let is_left_over = doubt::has_log(&real);
        lock::prepare_files(&lock);
        let unopened = |error: StoreError| error.while_opening(path);
        let mut connection = schema::open_writer(path).map_err(unopened)?;
        schema::limit_cache(&connection, options.cache_mb)?;
        let checkpointer = schema::open_checkpointer(path).map_err(unopened)?;
        let log = doubt::open_log(&real)?;
        let presence = Presence::of(path, &log, &lock)?;
        let mut mender = Mender::new(&real, Arc::clone(&log), is_left_over, presence.clone());
        let doubt = mender.doubt.clone();
        let length = LogLength::from_mb(options.wal_mb);
        mender.mend(&connection)?;
        if let Some(private) = &options.private_times {
            private_times::keep_apart(&mut connection, private)?;
        }
        let (commits, gate) = (Commits::default(), ReadGate::default());
        let checkpointer =
            Checkpointer::start(&mut connection, checkpointer, length, mender, gate.clone())?;
        let (metrics, expired_until) = (StoreMetrics::default(), Arc::new(AtomicU64::new(0)));
        let vanishing = Vanishing::load(&connection, options.relay_url.map(|url| url.name()))?;
        let retaining = Retaining::load(&connection, options.retention)?;
        let rules = RuleMemory { vanishing, retaining };
        let flush = flush::log_flush(log, presence.clone(), options.synchronous);
        let beside = WriterContext {
            checkpointer,
            commits: commits.clone(),
            expired_until: Arc::clone(&expired_until),
            metrics: metrics.clone(),
            batches: options.batches,
        };
        let writer = Writer::start(path, connection, beside, rules, flush, on_commit)?;
        let (readers, presence) = (options.readers, Some(presence));
        let reader = Reader::beside_writer(path, readers, commits, gate, expired_until, presence)?;
        let inner = Inner { path: real, reader: reader.clone(), writer, doubt, metrics, lock };
        Ok(Self { inner: Arc::new(inner), reader })
    }

    /// Stores events together with whatever else is waiting, in as many commits as it takes; each
    /// origin has its turn. `reply` gets one outcome an event, in order, once all are durable. Does not
    /// wait: whoever submits bounds what it has under way.
    pub fn submit(&self, origin: &Origin, events: Vec<VerifiedEvent>, reply: Reply) {
        self.inner.writer.submit(origin, events, reply);
    }

    /// As [`Store::submit`], and returns the outcomes.
    pub async fn put(&self, origin: &Origin, events: Vec<VerifiedEvent>) -> Vec<Outcome> {
        let count = events.len();
        let (done, outcomes) = oneshot::channel();
        self.submit(origin, events, Box::new(move |outcomes| drop(done.send(outcomes))));
        let lost = |_| vec![Outcome::Failed("the store gave no answer".into()); count];
        outcomes.await.unwrap_or_else(lost)
    }

    /// Stores events and waits for their outcomes.
    ///
    /// # Errors
    /// [`StoreError::Closed`] when the writer has gone.
    pub fn publish(&self, events: Vec<VerifiedEvent>) -> Result<Vec<Outcome>, StoreError> {
        let (send, outcomes) = std::sync::mpsc::sync_channel(1);
        self.submit(&Origin::Local, events, Box::new(move |done| drop(send.send(done))));
        outcomes.recv().map_err(|_| StoreError::Closed)
    }

    /// NIP-40: removes what has expired by now, and waits until all who hear of commits know.
    ///
    /// # Errors
    /// When SQLite refuses or the writer has gone: something is due and still there.
    pub fn expire(&self) -> Result<(), StoreError> {
        let now = unix_now();
        if !self.inner.writer.has_expired(now) {
            return Ok(());
        }
        self.inner.writer.expire()?;
        if self.inner.writer.has_expired(now) { Err(StoreError::NotExpired) } else { Ok(()) }
    }

    /// Removes every event that matches, `limit` aside. Nothing keeps them from coming back.
    ///
    /// # Errors
    /// When SQLite refuses or the writer has gone.
    pub fn remove(&self, filter: &Filter) -> Result<(), StoreError> {
        let mut ids = Vec::new();
        self.reader().items(filter, |item| {
            ids.push(item.id);
            std::ops::ControlFlow::Continue(())
        })?;
        ids.sort_unstable();
        ids.dedup();
        self.inner.writer.remove(ids)
    }

    /// Removes what an operator means, and keeps it out until [`Store::undelete`].
    ///
    /// # Errors
    /// When SQLite refuses or the writer has gone; a part may be removed by then.
    pub fn delete(&self, selection: &Selection) -> Result<Selected, StoreError> {
        let selected = self.reader().selected(selection)?;
        self.inner.writer.delete(selected.ids.clone())?;
        Ok(selected)
    }

    /// Takes back what [`Store::delete`] has kept out, and returns how many ids that are. The events
    /// are not brought back: whoever has them may send them again.
    ///
    /// # Errors
    /// When SQLite refuses, the writer has gone, or the filter asks for tags.
    pub fn undelete(&self, undelete: &Undelete) -> Result<u64, UndeleteError> {
        let ids = self.reader().undeleted(undelete)?;
        let count = ids.len() as u64;
        for ids in ids.chunks(writer::STEP_ROWS) {
            let ids = ids.to_vec();
            self.inner.writer.note(move |connection, _| operator::undelete(connection, &ids))?;
        }
        Ok(count)
    }

    /// Puts rules of retention in force, in place of those of [`StoreOptions::retention`].
    ///
    /// # Errors
    /// When SQLite refuses or the writer has gone.
    pub fn retain(&self, rules: Retention) -> Result<(), StoreError> {
        self.inner.writer.retain(rules)
    }

    /// Removes what the rules of retention do not keep, and waits until nothing is left of it.
    ///
    /// # Errors
    /// When the writer has gone.
    pub fn retire(&self) -> Result<(), StoreError> {
        self.inner.writer.retire()
    }

    /// Remembers ids that a sync need not move again, and returns once they are written.
    ///
    /// # Errors
    /// When SQLite refuses or the writer has gone.
    pub fn remember_refused(&self, refused: Vec<RefusedId>) -> Result<(), StoreError> {
        self.inner.writer.note(move |connection, now| refused::remember(connection, &refused, now))
    }

    /// Remembers how far a peer is known for a filter, given as text, and returns once that is
    /// written. What `mark` leaves out stays as it was.
    ///
    /// # Errors
    /// When SQLite refuses or the writer has gone.
    pub fn remember_mark(
        &self,
        peer: String,
        filter: String,
        mark: SyncMark,
    ) -> Result<(), StoreError> {
        self.inner.writer.note(move |connection, now| {
            sync_mark::remember(connection, &peer, &filter, &mark, now)
        })
    }

    /// Remembers how a peer has to be asked, and returns once that is written.
    ///
    /// # Errors
    /// When SQLite refuses or the writer has gone.
    pub fn remember_traits(&self, peer: String, traits: PeerTraits) -> Result<(), StoreError> {
        self.inner.writer.note(move |connection, now| {
            sync_mark::remember_traits(connection, &peer, &traits, now)
        })
    }

    /// Makes a mark for files of the index, and returns its name once it is written and all commits
    /// before it are told. What the sets hold from now on can be written under that name.
    ///
    /// # Errors
    /// When SQLite refuses or the writer has gone.
    pub fn begin_index_mark(&self) -> Result<MarkName, StoreError> {
        let (send, name) = std::sync::mpsc::sync_channel(1);
        self.inner.writer.note(move |connection, _| {
            let _ = send.send(index_mark::begin(connection)?);
            Ok(())
        })?;
        name.recv().map_err(|_| StoreError::Closed)
    }

    /// Drops every mark but this one, and what was logged for others; returns once that is written.
    ///
    /// # Errors
    /// When SQLite refuses or the writer has gone.
    pub fn keep_index_mark(&self, name: Option<MarkName>) -> Result<(), StoreError> {
        self.inner.writer.note(move |connection, _| index_mark::keep_only(connection, name))?;
        loop {
            let (send, there_is_more) = std::sync::mpsc::sync_channel(1);
            self.inner.writer.note(move |connection, _| {
                let _ = send.send(index_mark::trim(connection, writer::STEP_ROWS)?);
                Ok(())
            })?;
            if !there_is_more.recv().map_err(|_| StoreError::Closed)? {
                return Ok(());
            }
        }
    }

    /// Whether something can be written now: writes the store's version anew, through the queue
    /// and as durably as an event.
    ///
    /// # Errors
    /// When SQLite refuses or the writer has gone.
    pub fn check_writable(&self) -> Result<(), StoreError> {
        self.inner.writer.note(|connection, _| schema::rewrite_version(connection))
    }

    /// Whether everything that the sets show is on the disk, where the next start looks for it: not
    /// from a flush that failed, before the listener hears of its commit, until that is made up for;
    /// and not once a file was lost.
    pub fn is_durable(&self) -> bool {
        !self.inner.doubt.is_there() && self.check_in_place().is_ok()
    }

    /// Whether the store's files are where they were when it was opened.
    ///
    /// # Errors
    /// [`StoreError::FileLost`], from then on, when one was moved, removed or replaced.
    pub fn check_in_place(&self) -> Result<(), StoreError> {
        self.inner.doubt.check_in_place()
    }

    /// Where the store's file is, links followed.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The size of the store's file and of its write-ahead log, in bytes; 0 for what is not there.
    pub fn file_bytes(&self) -> (u64, u64) {
        let bytes = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
        (bytes(&self.inner.path), bytes(&log_path(&self.inner.path)))
    }

    /// What the store measures.
    pub fn metrics(&self) -> &StoreMetrics {
        &self.inner.metrics
    }

    /// The reading side.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// The same store, whose reads end as those of [`Reader::with_deadline`].
    pub fn with_deadline(&self, deadline: Deadline) -> Self {
        Self { inner: Arc::clone(&self.inner), reader: self.reader.with_deadline(deadline) }
    }

    /// Commits what was submitted, closes the writer and gives the store free for another one.
    /// Later reads and submissions fail.
    pub fn close(&self) {
        self.inner.close();
    }
}

// The example in README.md is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
