//! Copies of a store: `backup` from one that may be written meanwhile, `restore` to a new one.

use super::{SqliteError, StoreError, lock, query, schema};
use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The pages that one step copies: 256 KiB. Each is flushed, so that no flush of the store has to
/// wait for much of the copy.
const STEP_PAGES: i32 = 64;

/// How long a copy that is made beside others leaves the disk to them after each step: so many times
/// as long as the step took, and this at the most.
const RESTS: u32 = 2;
const MOST_REST: Duration = Duration::from_millis(200);

/// Why no copy was made. Nothing is left of one that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The store, or the backup that is to be restored, cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file of this name is there already.
    #[error("{path} exists already; it is not overwritten", path = path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The copy cannot be written.
    #[error("cannot write {path}: {source}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// SQLite could not copy a page.
    #[error("cannot copy to {path}: {source}", path = path.display())]
    Copy {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: SqliteError,
    },
}

/// A copy that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupReport {
    /// The events in it.
    pub events: u64,
    /// The bytes of its file.
    pub bytes: u64,
}

/// Copies the store in `path` to the new file `to`, as it is at one moment, while others may write
/// to it. The file gets its name once it is whole and on the disk. `progress` is told how many of
/// how many pages are copied. Meanwhile the store's write-ahead log only grows.
///
/// # Errors
/// When `to` exists, or the store cannot be read or the copy not be written.
pub fn backup(
    path: &Path,
    to: &Path,
    progress: impl FnMut(u64, u64),
) -> Result<BackupReport, BackupError> {
    refuse_existing(to)?;
    copy(path, to, RESTS, progress)
}

/// Makes the store `path` of a backup, which may be of an earlier version. `progress` is as in
/// [`backup`].
///
/// # Errors
/// When there is a store in `path` already or somebody opens one there, when `from` is no store, or
/// the copy cannot be written.
pub fn restore(
    from: &Path,
    path: &Path,
    progress: impl FnMut(u64, u64),
) -> Result<BackupReport, BackupError> {
    let _lock = lock::take(path)?;
    refuse_existing(path)?;
    // A log of another store would be taken for its own.
    refuse_existing(&beside(path, "-wal"))?;
    copy(from, path, 0, progress)
}

fn refuse_existing(path: &Path) -> Result<(), BackupError> {
    match path.symlink_metadata() {
        Ok(_) => Err(BackupError::Exists { path: path.to_owned() }),
        Err(_) => Ok(()),
    }
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
        // What is left of it is in nobody's way but takes room.
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
    // Left over from a copy that was killed.
    if let Err(error) = std::fs::remove_file(partial)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(unwritten(error));
    }
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(partial).map_err(unwritten)?;
    // One transaction: what others commit meanwhile neither begins the copy anew nor is in it.
    source.execute_batch("BEGIN").map_err(failed)?;
    query::begin(source).map_err(StoreError::sqlite)?;
    let events: i64 = source
        .query_row("SELECT count(*) FROM event INDEXED BY event_time", [], |row| row.get(0))
        .map_err(failed)?;
    let mut target = Connection::open(partial).map_err(failed)?;
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

/// A new name is safe once its directory is on the disk.
fn flush_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
