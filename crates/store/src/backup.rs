//! Copies of a store: `backup` from a store that may be in use, `restore` to a new one.

use super::file_kind::literal;
use super::{SqliteError, StoreError, lock, query, schema};
use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Suffixes of the files from which SQLite changes a database when it opens it.
const LOGS: [&str; 2] = ["-wal", "-journal"];

/// Pages that one step copies: 256 KiB. Each step is flushed, so that a flush of the store never
/// waits for much of the copy.
const STEP_PAGES: i32 = 64;

/// Pause after each step of a copy beside a running relay, as a multiple of the step's duration,
/// and its maximum. It leaves the disk to the relay.
const RESTS: u32 = 2;
const MOST_REST: Duration = Duration::from_millis(200);

/// Why a copy failed. A failed copy leaves no file behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The store, or the backup to restore, cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file of this name exists already.
    #[error("{path} exists already; it is not overwritten", path = path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A log of another database is beside the copy.
    #[error("{path} is the log of another database, which SQLite would apply to the copy; move it away, \
        or name another file", path = path.display())]
    ForeignLog {
        /// The log.
        path: PathBuf,
    },
    /// The copy cannot be written.
    #[error("cannot write {path}: {source}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// SQLite could not copy a page.
    #[error("cannot copy to {path}: {source}", path = path.display())]
    Copy {
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        source: SqliteError,
    },
}

/// A completed copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupReport {
    /// The number of events in it.
    pub events: u64,
    /// The size of its file, in bytes.
    pub bytes: u64,
}

/// Copies one snapshot of the store in `path` to the new file `to`; the store may be written during
/// the copy. The file gets its name once it is complete and flushed. `progress` gets the number of
/// copied pages and the total. During the copy the store's write-ahead log cannot shrink.
///
/// # Errors
/// When `to` exists or has a log beside it, the store cannot be read, or the copy cannot be written.
pub fn backup(
    path: &Path,
    to: &Path,
    progress: impl FnMut(u64, u64),
) -> Result<BackupReport, BackupError> {
    refuse_existing(to)?;
    refuse_logs(to)?;
    copy(path, to, RESTS, progress)
}

/// Restores a backup to the store `path`. The backup may be of an earlier version. `progress` is as
/// in [`backup`].
///
/// # Errors
/// When a store exists in `path`, is being opened there or has left a log there, when `from` is not a
/// store, or when the copy cannot be written.
pub fn restore(
    from: &Path,
    path: &Path,
    progress: impl FnMut(u64, u64),
) -> Result<BackupReport, BackupError> {
    let _lock = lock::take(path)?;
    refuse_existing(path)?;
    refuse_logs(path)?;
    copy(from, path, 0, progress)
}

fn refuse_existing(path: &Path) -> Result<(), BackupError> {
    match path.symlink_metadata() {
        Ok(_) => Err(BackupError::Exists { path: path.to_owned() }),
        Err(_) => Ok(()),
    }
}

/// Refuses logs that another database has left beside the copy. An empty one has no effect.
fn refuse_logs(copy: &Path) -> Result<(), BackupError> {
    let logs = LOGS.map(|suffix| beside(copy, suffix));
    let found = logs.into_iter().find(|log| log.metadata().is_ok_and(|log| log.len() > 0));
    found.map_or(Ok(()), |path| Err(BackupError::ForeignLog { path }))
}

fn copy(
    from: &Path,
    to: &Path,
    rests: u32,
    progress: impl FnMut(u64, u64),
) -> Result<BackupReport, BackupError> {
    let source = schema::open_reader(from).map_err(|error| error.while_opening(from))?;
    schema::check_known(&source, from)?;
    let partial = beside(to, ".partial");
    let written = write(&source, &partial, rests, progress).and_then(|report| {
        std::fs::rename(&partial, to)
            .and_then(|()| flush_directory(to))
            .map_err(|source| BackupError::Write { path: to.to_owned(), source })?;
        Ok(report)
    });
    if written.is_err() {
        // A remaining partial file does no harm but takes room.
        let _ = std::fs::remove_file(&partial);
    }
    written
}

fn write(
    source: &Connection,
    partial: &Path,
    rests: u32,
    mut progress: impl FnMut(u64, u64),
) -> Result<BackupReport, BackupError> {
    let unwritten = |source| BackupError::Write { path: partial.to_owned(), source };
    let failed = |error| BackupError::Copy { path: partial.to_owned(), source: SqliteError(error) };
    // Left behind by a copy that was killed.
    if let Err(error) = std::fs::remove_file(partial)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(unwritten(error));
    }
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(partial).map_err(unwritten)?;
    // One transaction: commits of other connections neither restart the copy nor appear in it.
    source.execute_batch("BEGIN").map_err(failed)?;
    query::begin(source).map_err(StoreError::sqlite)?;
    let events: i64 = source
        .query_row("SELECT count(*) FROM event INDEXED BY event_time", [], |row| row.get(0))
        .map_err(failed)?;
    let mut target = Connection::open(literal(partial)).map_err(failed)?;
    target
        .execute_batch("PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY;")
        .map_err(failed)?;
    let pages = Backup::new(source, &mut target).map_err(failed)?;
    loop {
        let began = Instant::now();
        let found = pages.step(STEP_PAGES).map_err(failed)?;
        file.sync_data().map_err(unwritten)?;
        let now = pages.progress();
        let total = u64::try_from(now.pagecount).unwrap_or(0);
        progress(total.saturating_sub(u64::try_from(now.remaining).unwrap_or(0)), total);
        if found == StepResult::Done {
            break;
        }
        std::thread::sleep((began.elapsed() * rests).min(MOST_REST));
    }
    drop(pages);
    target.close().map_err(|(_, source)| failed(source))?;
    source.execute_batch("ROLLBACK").map_err(failed)?;
    file.sync_all().map_err(unwritten)?;
    let bytes = file.metadata().map_err(unwritten)?.len();
    Ok(BackupReport { events: events.unsigned_abs(), bytes })
}

/// A new file name is durable once its directory is flushed.
fn flush_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
