//! Meaning and wording of SQLite's errors, for publishers of events and for the log.

use super::StoreError;
use rusqlite::{Error, ErrorCode, Row, ffi};
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// An error of SQLite.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct SqliteError(pub(super) Error);

/// The cause of an SQLite error, if a program can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SqliteErrorKind {
    /// The file does not exist, or cannot be opened as a file.
    CannotOpen,
    /// This process lacks the permission.
    NotAllowed,
    /// The file is not an SQLite database.
    NotADatabase,
    /// Any other error.
    Other,
}

impl SqliteError {
    /// The cause of the error.
    #[must_use]
    pub fn kind(&self) -> SqliteErrorKind {
        match self.0.sqlite_error_code() {
            Some(ErrorCode::CannotOpen) => SqliteErrorKind::CannotOpen,
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => SqliteErrorKind::NotAllowed,
            Some(ErrorCode::NotADatabase) => SqliteErrorKind::NotADatabase,
            _ => SqliteErrorKind::Other,
        }
    }
}

/// Interval of log lines while writes fail.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// Describes the fault without naming a file: the text may go to a client.
pub(super) fn in_words(error: &StoreError) -> String {
    let StoreError::Sqlite(SqliteError(error)) = error else { return error.to_string() };
    let known = match error.sqlite_error_code() {
        Some(_) if has_no_room(error) => "the disk is full",
        Some(ErrorCode::SystemIoFailure) => "the disk cannot be read or written",
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another program holds the store; try again"
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => "the store cannot be written",
        Some(ErrorCode::CannotOpen) => "a file of the store cannot be opened",
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => "the store is damaged",
        _ => return error.to_string(),
    };
    known.to_owned()
}

/// Whether the file is damaged: it is not what SQLite wrote.
pub(super) fn is_damage(error: &Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Whether a row is damaged: a column has another type than the table declares.
pub(super) fn is_damaged_row(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidColumnType(..)
            | Error::FromSqlConversionFailure(..)
            | Error::IntegralValueOutOfRange(..)
    )
}

/// The text of a column that may be damaged. Invalid UTF-8 is replaced, so that the event can be
/// found and removed, and does not block other events.
pub(super) fn text<'row>(row: &'row Row<'_>, column: usize) -> rusqlite::Result<Cow<'row, str>> {
    let bytes = row.get_ref(column)?.as_bytes()?;
    // The common case, and faster than finding the invalid byte.
    let text = std::str::from_utf8(bytes).map(Cow::Borrowed);
    Ok(text.unwrap_or_else(|_| String::from_utf8_lossy(bytes)))
}

/// Whether a flush failed: the data may be lost, even if a later flush succeeds.
pub(super) fn is_failed_flush(error: &Error) -> bool {
    error.sqlite_error().is_some_and(|error| {
        matches!(error.extended_code, ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC)
    })
}

/// Whether more disk space would help: then moving the write-ahead log is worthwhile.
pub(super) fn is_full(error: &StoreError) -> bool {
    let StoreError::Sqlite(SqliteError(error)) = error else { return false };
    has_no_room(error)
}

/// Whether the disk is full. SQLite has an error of its own when the file shared by readers and
/// writer cannot grow.
pub(super) fn has_no_room(error: &Error) -> bool {
    let is_full = error.sqlite_error_code() == Some(ErrorCode::DiskFull);
    is_full
        || error
            .sqlite_error()
            .is_some_and(|error| error.extended_code == ffi::SQLITE_IOERR_SHMSIZE)
}

/// Logs that writing fails, at intervals and not with every event, and when it works again.
pub(super) struct Trouble {
    path: PathBuf,
    // When it was last logged; `None` while writes succeed.
    said: Option<Instant>,
    since_said: u64,
}

impl Trouble {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), said: None, since_said: 0 }
    }

    /// Records a failed write.
    pub(super) fn failed(&mut self, what: &str, error: &StoreError) {
        if matches!(error, StoreError::FileLost) {
            // Logged once where it was detected, with the file and a hint.
            return;
        }
        self.since_said += 1;
        if self.said.is_some_and(|at| at.elapsed() < SAY_AGAIN) {
            return;
        }
        let (store, words, times) = (self.path.display(), in_words(error), self.since_said);
        let is_damaged = matches!(error, StoreError::Sqlite(error) if is_damage(&error.0));
        let remedy = if is_damaged {
            "stop the relay and run `negsync check` on it"
        } else {
            "writes resume when this is repaired; no restart is needed"
        };
        tracing::error!(%store, %error, times, "{what}: {words}; {remedy}");
        self.said = Some(Instant::now());
        self.since_said = 0;
    }

    /// Records a successful write.
    pub(super) fn worked(&mut self) {
        if self.said.take().is_some() {
            self.since_said = 0;
            tracing::info!(store = %self.path.display(), "the store can be written again");
        }
    }
}
