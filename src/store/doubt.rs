//! Which of the store's files a failed flush has put in doubt, and how they are made whole again.
//!
//! Until then nothing is committed, acknowledged, or moved from the log into the store.

use super::wal::{self, LogError};
use super::{StoreError, fault};
use rusqlite::Connection;
use std::fs::File;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// After an attempt that failed the next one is made this much later: each writes the whole log.
const MEND_AGAIN: Duration = Duration::from_secs(1);

/// What is in doubt. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Doubt(Arc<Files>);

#[derive(Default)]
struct Files {
    log: AtomicBool,
    store: AtomicBool,
}

impl Doubt {
    /// A flush of the log has failed.
    pub(super) fn log_failed(&self) {
        self.0.log.store(true, Ordering::Release);
    }

    /// SQLite has met an error. Where a flush failed it does not say of which file.
    pub(super) fn note(&self, error: &rusqlite::Error) {
        if fault::is_failed_flush(error) {
            self.everything();
        }
    }

    /// Nothing is known of what was flushed.
    pub(super) fn everything(&self) {
        self.log_failed();
        self.0.store.store(true, Ordering::Release);
    }

    /// Whether a file is in doubt.
    pub(super) fn is_there(&self) -> bool {
        self.0.log.load(Ordering::Acquire)
    }
}

/// Makes the files whole; owned by whoever writes.
pub(super) struct Mender {
    path: PathBuf,
    pub(super) doubt: Doubt,
    // Never closed: that would drop the locks that SQLite has on the file in this process.
    store: Option<ManuallyDrop<File>>,
    failed_at: Option<Instant>,
}

impl Mender {
    /// For the store in `path`, a path without links. A log that is there already was left by a
    /// process that came to an end: what that one had flushed is not known.
    pub(super) fn new(path: &Path) -> Self {
        let doubt = Doubt::default();
        if log_path(path).metadata().is_ok_and(|log| log.len() > 0) {
            doubt.everything();
        }
        Self { path: path.to_owned(), doubt, store: None, failed_at: None }
    }

    /// Writes again what may not be on the disk. No checkpoint may run meanwhile, and no transaction
    /// of `writer`.
    ///
    /// # Errors
    /// When the disk still fails, or has lost a part of the log for good.
    pub(super) fn mend(&mut self, writer: &Connection) -> Result<(), StoreError> {
        if !self.doubt.is_there() {
            return Ok(());
        }
        if self.failed_at.is_some_and(|at| at.elapsed() < MEND_AGAIN) {
            return Err(StoreError::NotWritten("a flush failed and is not made up for".into()));
        }
        let began = Instant::now();
        match self.rewrite(writer) {
            Ok(frames) => {
                self.doubt.0.store.store(false, Ordering::Release);
                self.doubt.0.log.store(false, Ordering::Release);
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

    /// Returns how many frames the log has.
    fn rewrite(&mut self, writer: &Connection) -> Result<usize, StoreError> {
        let failed = |error: LogError| match error {
            LogError::Damaged { .. } => StoreError::LogDamaged(error.to_string()),
            LogError::Disk(error) => {
                StoreError::NotWritten(format!("the disk still fails: {error}"))
            }
        };
        let opened = |file: std::io::Result<File>| file.map_err(|error| failed(error.into()));
        let (frames, moved) = log_length(writer)?;
        // Nobody else begins the log anew.
        writer.execute_batch("BEGIN IMMEDIATE")?;
        let mut done = || {
            let log = opened(File::options().read(true).write(true).open(log_path(&self.path)))?;
            wal::rewrite(&log, frames).map_err(failed)?;
            if self.doubt.0.store.load(Ordering::Acquire) && moved > 0 {
                let store = match &self.store {
                    Some(store) => store,
                    None => self.store.insert(ManuallyDrop::new(opened(
                        File::options().write(true).open(&self.path),
                    )?)),
                };
                wal::rewrite_moved(&log, moved, frames, store).map_err(failed)?;
            }
            Ok(frames)
        };
        let done = done();
        writer.execute_batch("ROLLBACK")?;
        done
    }
}

/// How many frames the log has, and how many of them are in the store.
fn log_length(writer: &Connection) -> rusqlite::Result<(usize, usize)> {
    writer.query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| {
        let number = |column| row.get(column).map(|it: i64| usize::try_from(it).unwrap_or(0));
        Ok((number(1)?, number(2)?))
    })
}

/// The write-ahead log of the store in `path`, a path without links.
pub(super) fn log_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}
