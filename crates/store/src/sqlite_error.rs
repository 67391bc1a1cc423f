//! What SQLite's errors mean, in words for whoever published an event and for the log.

use super::StoreError;
use rusqlite::{Error, ErrorCode, Row, ffi};
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What SQLite says.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct SqliteError(pub(super) Error);

/// What an error of SQLite is about, as far as a program can do something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SqliteErrorKind {
    /// The file is not there, or is no file that can be opened.
    CannotOpen,
    /// This process may not do it.
    NotAllowed,
    /// The file is not an SQLite database.
    NotADatabase,
    /// Anything else.
    Other,
}

impl SqliteError {
    /// What the error is about.
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

/// While nothing can be written the log says so this often.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// The fault in words that name no file: they may go to a stranger.
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

/// Whether the file is not what SQLite wrote.
pub(super) fn is_damage(error: &Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// The text in a column that damage may have reached. What is no UTF-8 any more is read all the
/// same: the event is found and can be removed, and does not stand in the way of all others.
pub(super) fn text<'row>(row: &'row Row<'_>, column: usize) -> rusqlite::Result<Cow<'row, str>> {
    let bytes = row.get_ref(column)?.as_bytes()?;
    // Nearly always, and quicker to tell than what is wrong.
    let text = std::str::from_utf8(bytes).map(Cow::Borrowed);
    Ok(text.unwrap_or_else(|_| String::from_utf8_lossy(bytes)))
}

/// Whether a flush has failed: what it was for may be lost, whatever the disk says later.
pub(super) fn is_failed_flush(error: &Error) -> bool {
    error.sqlite_error().is_some_and(|error| {
        matches!(error.extended_code, ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC)
    })
}

/// Whether room on the disk would help: then it is worth moving the write-ahead log.
pub(super) fn is_full(error: &StoreError) -> bool {
    let StoreError::Sqlite(SqliteError(error)) = error else { return false };
    has_no_room(error)
}

/// Whether there is no room, be it for the file that readers and writer share: that it cannot grow
/// is an error of its own.
pub(super) fn has_no_room(error: &Error) -> bool {
    let is_full = error.sqlite_error_code() == Some(ErrorCode::DiskFull);
    is_full
        || error
            .sqlite_error()
            .is_some_and(|error| error.extended_code == ffi::SQLITE_IOERR_SHMSIZE)
}

/// Says in the log that writing fails, now and then and not with every event, and when it works
/// again.
pub(super) struct Trouble {
    path: PathBuf,
    // When it was last said; `None` while all is well.
    said: Option<Instant>,
    since_said: u64,
}

impl Trouble {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), said: None, since_said: 0 }
    }

    /// Something could not be written.
    pub(super) fn failed(&mut self, what: &str, error: &StoreError) {
        if matches!(error, StoreError::FileLost) {
            // Said once, by who noticed, with the file and what to do.
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
            "writing goes on by itself once that is mended"
        };
        tracing::error!(%store, %error, times, "{what}: {words}; {remedy}");
        self.said = Some(Instant::now());
        self.since_said = 0;
    }

    /// Something was written.
    pub(super) fn worked(&mut self) {
        if self.said.take().is_some() {
            self.since_said = 0;
            tracing::info!(store = %self.path.display(), "the store can be written again");
        }
    }
}
