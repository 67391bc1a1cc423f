//! The files of the store that a failed flush has put in doubt, and their repair.
//!
//! Until the repair nothing is committed, acknowledged, or moved from the log into the store.

use super::presence::Presence;
use super::wal::{self, LogError};
use super::{StoreError, sqlite_error};
use rusqlite::Connection;
use std::fs::File;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Delay before the next attempt after a failed repair: each attempt writes the whole log.
const MEND_AGAIN: Duration = Duration::from_secs(1);

/// The files in doubt: whether everything is on the disk, and under the expected names. Clones
/// share it.
#[derive(Clone)]
pub(super) struct Doubt {
    files: Arc<Files>,
    presence: Presence,
}

#[derive(Default)]
struct Files {
    log: AtomicBool,
    store: AtomicBool,
}

impl Doubt {
    /// Records a failed flush of the log.
    pub(super) fn log_failed(&self) {
        self.files.log.store(true, Ordering::Release);
    }

    /// Records an error of SQLite. For a failed flush SQLite does not say which file it was.
    pub(super) fn note(&self, error: &rusqlite::Error) {
        if sqlite_error::is_failed_flush(error) {
            self.everything();
        }
    }

    /// Puts everything that was flushed in doubt.
    pub(super) fn everything(&self) {
        self.log_failed();
        self.files.store.store(true, Ordering::Release);
    }

    /// Whether a failed flush has not been repaired yet.
    pub(super) fn is_there(&self) -> bool {
        self.files.log.load(Ordering::Acquire)
    }

    /// Like [`Presence::check`].
    pub(super) fn check_in_place(&self) -> Result<(), StoreError> {
        self.presence.check()
    }

    /// Stops the check of the files, before the store closes.
    pub(super) fn close(&self) {
        self.presence.close();
    }

    /// Whether only the log was lost.
    pub(super) fn has_lost_log(&self) -> bool {
        self.presence.has_lost_log()
    }

    /// Whether pages may be moved out of the log. They may not while the log is in doubt: after a
    /// power cut the store would have pages that the log has lost, but not the pages before them.
    /// They also may not be moved into a file that another program may have opened under another
    /// name.
    pub(super) fn may_move(&self) -> bool {
        !self.is_there() && (self.check_in_place().is_ok() || self.has_lost_log())
    }
}

/// Repairs the files; owned by the writer.
pub(super) struct Mender {
    path: PathBuf,
    log: Arc<File>,
    pub(super) doubt: Doubt,
    // Never closed: closing it would drop SQLite's locks on the file in this process.
    store: Option<ManuallyDrop<File>>,
    failed_at: Option<Instant>,
}

impl Mender {
    /// For the store in `path`, a path without links, and its log. A log left behind by a process
    /// that has ended is in doubt, because it is unknown what that process had flushed.
    pub(super) fn new(path: &Path, log: Arc<File>, is_left_over: bool, presence: Presence) -> Self {
        let doubt = Doubt { files: Arc::default(), presence };
        if is_left_over {
            doubt.everything();
        }
        let path = path.to_owned();
        Self { path, log, doubt, store: None, failed_at: None }
    }

    /// Writes everything again that may not be on the disk. No checkpoint and no transaction of
    /// `writer` may run meanwhile.
    ///
    /// # Errors
    /// When the disk still fails, or a part of the log is lost for good.
    pub(super) fn mend(&mut self, writer: &Connection) -> Result<(), StoreError> {
        if !self.doubt.is_there() {
            return Ok(());
        }
        if self.failed_at.is_some_and(|at| at.elapsed() < MEND_AGAIN) {
            return Err(StoreError::NotWritten("a flush failed and is not made up for".into()));
        }
        self.doubt.check_in_place()?;
        let began = Instant::now();
        match self.rewrite(writer) {
            Ok(frames) => {
                self.doubt.files.store.store(false, Ordering::Release);
                self.doubt.files.log.store(false, Ordering::Release);
                self.failed_at = None;
                let (store, elapsed_s) = (self.path.display(), began.elapsed().as_secs_f64());
                tracing::info!(%store, frames, elapsed_s, "write-ahead log written again and flushed");
                Ok(())
            }
            Err(error) => {
                self.failed_at = Some(Instant::now());
                Err(error)
            }
        }
    }

    /// Returns the number of frames in the log.
    fn rewrite(&mut self, writer: &Connection) -> Result<usize, StoreError> {
        let failed = |error: LogError| match error {
            LogError::Damaged { .. } => StoreError::LogDamaged(error.to_string()),
            LogError::Disk(error) => {
                StoreError::NotWritten(format!("the disk still fails: {error}"))
            }
        };
        let opened = |file: std::io::Result<File>| file.map_err(|error| failed(error.into()));
        let (frames, moved) = log_length(writer).map_err(StoreError::sqlite)?;
        // Keeps other connections from restarting the log.
        writer.execute_batch("BEGIN IMMEDIATE").map_err(StoreError::sqlite)?;
        let mut done = || {
            wal::rewrite(&self.log, frames).map_err(failed)?;
            if self.doubt.files.store.load(Ordering::Acquire) && moved > 0 {
                let store = match &self.store {
                    Some(store) => store,
                    None => self.store.insert(ManuallyDrop::new(opened(
                        File::options().write(true).open(&self.path),
                    )?)),
                };
                wal::rewrite_moved(&self.log, moved, frames, store).map_err(failed)?;
            }
            Ok(frames)
        };
        let done = done();
        writer.execute_batch("ROLLBACK").map_err(StoreError::sqlite)?;
        done
    }
}

/// The number of frames in the log, and how many of them have been moved to the store.
fn log_length(writer: &Connection) -> rusqlite::Result<(usize, usize)> {
    writer.query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| {
        let number = |column| row.get(column).map(|it: i64| usize::try_from(it).unwrap_or(0));
        Ok((number(1)?, number(2)?))
    })
}

/// Opens the write-ahead log of the store in `path`, a path without links. SQLite must have it open
/// already.
pub(super) fn open_log(path: &Path) -> Result<Arc<File>, StoreError> {
    let log = log_path(path);
    let opened = File::options().read(true).write(true).open(&log);
    Ok(Arc::new(opened.map_err(|source| StoreError::NotFound { path: log, source })?))
}

/// Whether a log exists that SQLite has not opened yet.
pub(super) fn has_log(path: &Path) -> bool {
    log_path(path).metadata().is_ok_and(|log| log.len() > 0)
}

/// The write-ahead log of the store in `path`, a path without links.
pub(super) fn log_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}
