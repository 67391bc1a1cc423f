//! The SQLite event store: one writer with group commit, readers beside it, and the rules that
//! decide what an accepted event does.

mod checkpoint;
mod event;
mod filter;
mod query;
mod readers;
mod rules;
mod schema;
mod tag_key;
mod writer;

pub use event::{Event, EventError, Lifetime, VerifiedEvent};
pub use filter::{Filter, FilterError};
pub use query::Hit;
pub use rules::{Change, Outcome, Step};
pub use schema::Synchronous;
pub use tag_key::TagKey;
pub use writer::{OnCommit, Reply, unix_now};

use crate::item::Item;
use checkpoint::Checkpointer;
use readers::Readers;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use writer::Writer;

/// Why the store could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file could not be opened.
    #[error("cannot open the store {path}: {source}", path = path.display())]
    Open {
        /// The store's file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
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
    /// SQLite refused.
    #[error("the store: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A thread could not be started.
    #[error("cannot start a thread for the store: {0}")]
    Thread(std::io::Error),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// How a store is opened.
#[derive(Debug, Clone, Copy)]
pub struct StoreOptions {
    /// What an acknowledged event survives.
    pub synchronous: Synchronous,
    /// How many connections may read at the same time.
    pub readers: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { synchronous: Synchronous::Full, readers: 8 }
    }
}

/// An open store. Clones share it; it closes with [`Store::close`] or with the last clone.
///
/// All calls block: inside async code they belong on a blocking thread.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    readers: Readers,
    writer: Writer,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.writer.stop();
    }
}

impl Store {
    /// Opens the store in `path`, making it when it is not there. `on_commit` hears of every
    /// change, on the writer's thread, before the outcome of its events is told.
    ///
    /// # Errors
    /// When the file cannot be opened or is not a store of this version or an older one.
    pub fn open(
        path: &Path,
        options: StoreOptions,
        on_commit: OnCommit,
    ) -> Result<Self, StoreError> {
        let connection = schema::open_writer(path, options.synchronous)?;
        let checkpointer = Checkpointer::start(schema::open_checkpointer(path)?)?;
        let writer = Writer::start(connection, checkpointer, on_commit)?;
        let readers = Readers::new(path.to_owned(), options.readers);
        Ok(Self { inner: Arc::new(Inner { readers, writer }) })
    }

    /// Stores events in one commit with whatever else is waiting. `reply` gets one outcome an
    /// event, in order, once they are durable. Waits while the writer's queue is full.
    pub fn submit(&self, events: Vec<VerifiedEvent>, reply: Reply) {
        self.inner.writer.submit(events, reply);
    }

    /// Stores events and waits for their outcomes.
    ///
    /// # Errors
    /// [`StoreError::Closed`] when the writer has gone.
    pub fn publish(&self, events: Vec<VerifiedEvent>) -> Result<Vec<Outcome>, StoreError> {
        let (send, outcomes) = std::sync::mpsc::sync_channel(1);
        self.submit(events, Box::new(move |done| drop(send.send(done))));
        outcomes.recv().map_err(|_| StoreError::Closed)
    }

    /// NIP-40: removes what has expired by now, and waits until all who hear of commits know.
    ///
    /// # Errors
    /// [`StoreError::Closed`] when the writer has gone.
    pub fn expire(&self) -> Result<(), StoreError> {
        let (send, done) = std::sync::mpsc::sync_channel(1);
        self.inner.writer.expire(Box::new(move |_| {
            let _ = send.send(());
        }));
        done.recv().map_err(|_| StoreError::Closed)
    }

    /// The newest events that match any of the filters, each filter with its own limit and with
    /// no more than `most`; newest first, of one second the lowest id first, each once.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn newest(&self, filters: &[Filter], most: usize) -> Result<Vec<Hit>, StoreError> {
        self.inner.readers.with(|connection| {
            let mut hits = Vec::new();
            for filter in filters {
                hits.append(&mut query::newest(connection, filter, most)?);
            }
            query::order(&mut hits);
            Ok(hits)
        })
    }

    /// Calls `visit` with the JSON of each event, in the order of `hits`. Events that went in the
    /// meantime or that have expired are left out.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn fetch(
        &self,
        hits: &[Hit],
        mut visit: impl FnMut(&Item, &str),
    ) -> Result<(), StoreError> {
        self.inner.readers.with(|connection| query::fetch(connection, hits, unix_now(), &mut visit))
    }

    /// Calls `visit` with every item that matches the filter, `limit` aside, in no order and now
    /// and then twice, until it breaks off.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn items(
        &self,
        filter: &Filter,
        mut visit: impl FnMut(Item) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.inner.readers.with(|connection| query::items(connection, filter, &mut visit))
    }

    /// Commits what was submitted and closes the writer. Later submissions fail.
    pub fn close(&self) {
        self.inner.writer.stop();
    }
}
