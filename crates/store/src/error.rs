//! What can go wrong with a store, in the words of whoever asked it.

use crate::sqlite_error::{self, SqliteError};
use std::path::{Path, PathBuf};

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

impl StoreError {
    /// An error of SQLite; no `From`, which would make its crate a part of what is public.
    pub(crate) fn sqlite(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::OperationInterrupted) => Self::Interrupted,
            _ => Self::Sqlite(SqliteError(error)),
        }
    }

    /// Names the file in an error of SQLite that came up while it was opened.
    pub(crate) fn while_opening(self, path: &Path) -> Self {
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
