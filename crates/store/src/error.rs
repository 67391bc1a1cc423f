//! Errors of a store.

use crate::sqlite_error::{self, SqliteError};
use std::path::{Path, PathBuf};

/// Why an operation of the store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file could not be opened.
    #[error("cannot open the store {path}: {source}", path = path.display())]
    Open {
        /// The store's file.
        path: PathBuf,
        /// SQLite's error.
        source: SqliteError,
    },
    /// The file is an SQLite database of another program.
    #[error("{path} is an SQLite database, but not a negsync store; name another file",
        path = path.display())]
    NotAStore {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a newer version.
    #[error("{path} has store version {version}, this negsync knows up to {newest}; \
        use a newer negsync", path = path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: i32,
        /// The newest version that this program supports.
        newest: usize,
    },
    /// The file was written by an older version, and this command only reads.
    #[error("{path} has store version {version}, this negsync reads {newest}; \
        `negsync relay` or `negsync import` on it brings it up to date", path = path.display())]
    TooOld {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: usize,
        /// The version that this program writes.
        newest: usize,
    },
    /// The file is damaged: it is not what SQLite wrote.
    #[error("the store {path} is damaged: {source}; run `negsync check` for the details, then restore a backup", path = path.display())]
    Damaged {
        /// The store's file.
        path: PathBuf,
        /// SQLite's error.
        source: SqliteError,
    },
    /// There is no room for the files that SQLite needs beside the database.
    #[error("cannot open the store {path}: its disk is full; free some space", path = path.display())]
    NoRoom {
        /// The store's file.
        path: PathBuf,
    },
    /// This process lacks the permission to write to the file.
    #[error("the store {path} cannot be written; give its file and its directory to the user \
        that runs negsync", path = path.display())]
    ReadOnly {
        /// The store's file.
        path: PathBuf,
    },
    /// The file has more than one hard link.
    #[error("the store {path} has {names} names (hard links), and SQLite keeps a log of its own \
        for each; remove the others", path = path.display())]
    Linked {
        /// The store's file.
        path: PathBuf,
        /// The number of links.
        names: u64,
    },
    /// The path is a directory.
    #[error("the store {path} is a directory; name a file in it", path = path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// Another process has the store open for writing.
    #[error("the store {path} is in use by another negsync{by}; stop it first",
        path = path.display(), by = pid.map_or(String::new(), |pid| format!(" (pid {pid})")))]
    InUse {
        /// The store's file.
        path: PathBuf,
        /// The process id, if the process has recorded it.
        pid: Option<u32>,
    },
    /// The lock file of the store cannot be created.
    #[error("cannot lock the store with {path}, beside it: {source}", path = path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The write failed, or may not be durable.
    #[error("the store could not be written: {0}")]
    NotWritten(String),
    /// A part of the write-ahead log is lost; nothing in that part was acknowledged.
    #[error(
        "write-ahead log lost in part: {0}. Nothing acknowledged is lost. Hint: stop all programs that \
        have the store open, then start again"
    )]
    LogDamaged(String),
    /// A file of the open store was changed or moved by another program.
    #[error(
        "a file of the store was moved, removed or replaced; the relay has to be started again"
    )]
    FileLost,
    /// The state of a file of the store cannot be read.
    #[error("cannot look at {path}: {source}", path = path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A log exists without its store.
    #[error("{log} is the write-ahead log of a store that is not there: {path} is missing or empty; \
        put the store back, or move the log beside it under the store's new name. Nothing was changed",
        log = log.display(), path = path.display())]
    OrphanedLog {
        /// The log.
        log: PathBuf,
        /// The expected path of its store.
        path: PathBuf,
    },
    /// A log exists beside a store that it does not belong to.
    #[error("{log} is the write-ahead log of another file than {path}, which took its place; put that \
        one back, or move the log to where it is, under its name. Nothing was changed",
        log = log.display(), path = path.display())]
    ForeignLog {
        /// The log.
        log: PathBuf,
        /// The file in the place of its store.
        path: PathBuf,
    },
    /// A rollback journal exists beside a store, which does not use one.
    #[error("{journal} is a rollback journal, which the store {path} does not use: SQLite would change the \
        store by it. Move it to its database. If another program has changed the journal mode of this \
        store, open the store with that program once. Nothing was changed",
        journal = journal.display(), path = path.display())]
    ForeignJournal {
        /// The journal.
        journal: PathBuf,
        /// The store.
        path: PathBuf,
    },
    /// SQLite failed.
    #[error("the store: {0}")]
    Sqlite(#[source] SqliteError),
    /// The deadline of a query has passed, or the query was cancelled.
    #[error("query timeout")]
    Interrupted,
    /// The database of another engine failed.
    #[error("the store {store}: {source}")]
    Database {
        /// The database, without a password.
        store: String,
        /// The engine's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The engine does not support the operation.
    #[error("{what} is not supported by this store; {instead}")]
    Unsupported {
        /// The requested operation.
        what: &'static str,
        /// The alternative to use.
        instead: &'static str,
    },
    /// A thread could not be started.
    #[error("cannot start a thread for the store: {0}")]
    Thread(std::io::Error),
    /// An event is due to be removed and still stored.
    #[error("expired events not removed: see the log for the error")]
    NotExpired,
    /// The file is not a database of a supported relay, or not of a supported version.
    #[error("{path} cannot be attached to: {reason}; this negsync knows nostr-rs-relay 0.8.12 and 0.9 \
        and nostr-relay (Python) 1.14", path = path.display())]
    UnknownSchema {
        /// The file.
        path: PathBuf,
        /// The part that is not supported.
        reason: String,
    },
    /// The database, or a file that SQLite keeps beside it, is not a regular file.
    #[error("{path} is no regular file; name the database's file", path = path.display())]
    NotAFile {
        /// The path of the other object.
        path: PathBuf,
    },
    /// Another relay's database does not exist at the configured path.
    #[error("the relay's database {path} is not there: {source}", path = path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Another relay's database was replaced by another file.
    #[error("the relay's database {path} was replaced or rewritten", path = path.display())]
    Rewritten {
        /// The file.
        path: PathBuf,
    },
    /// Another relay's database is locked, or is written without a pause.
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
        /// The reason, and a hint.
        reason: String,
    },
    /// A file of the index can no longer be read; the index will be rebuilt.
    #[error("the index file cannot be read; the index is being made anew, try again")]
    IndexLost,
    /// The address of a store on a server cannot be used.
    #[error("the address of the store: {0}")]
    Address(String),
    /// The tables were written by a newer version.
    #[error(
        "the store has version {version}, this negsync knows up to {newest}; use a newer negsync"
    )]
    NewerTables {
        /// Their version.
        version: i32,
        /// The newest version that this program supports.
        newest: i32,
    },
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Wraps an error of SQLite. There is no `From`, which would make its crate part of the public
    /// API.
    pub(crate) fn sqlite(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::OperationInterrupted) => Self::Interrupted,
            _ => Self::Sqlite(SqliteError(error)),
        }
    }

    /// Whether the store's file is damaged: it is not what SQLite wrote.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Sqlite(source) | Self::Damaged { source, .. } => {
                sqlite_error::is_damage(&source.0) || sqlite_error::is_damaged_row(&source.0)
            }
            _ => false,
        }
    }

    /// Adds the file name to an error that SQLite reported while opening the file.
    pub(crate) fn while_opening(self, path: &Path) -> Self {
        match self {
            // A file that is not a database may belong to another program: do not suggest `check`.
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
