//! Moves committed pages from the write-ahead log into the database beside the writer, so that no
//! commit waits for it.

use super::{StoreError, schema};
use rusqlite::Connection;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A log of so many pages (256 MiB) is worth moving: the more commits it holds, the more often a
/// page that all of them changed is written just once.
const CHECKPOINT_PAGES: usize = 65_536;
/// A log of so many pages (512 MiB) is moved by the writer itself: events come faster than the thread
/// moves them, and have to wait. Only a reader that does not end lets the log grow beyond this.
const LOG_PAGES: usize = 2 * CHECKPOINT_PAGES;
/// What the writer may move itself, in pages, before it starts the log over: a few milliseconds.
const RESTART_PAGES: usize = 2_048;
/// How often the thread runs after a log that grows while it is moved.
const PASSES: usize = 4;
/// How often the log is moved for want of room, at the most: with a long log that takes a while.
const RELIEVE_PAUSE: Duration = Duration::from_secs(1);

/// The checkpointing thread and what its owner, the writer, knows of the log.
pub(super) struct Checkpointer {
    // Full while a checkpoint is asked for or running: one is enough.
    requests: SyncSender<()>,
    // The log's length after the writer's last commit.
    log_pages: Arc<AtomicUsize>,
    // The thread has moved nearly all of the log.
    can_restart: Arc<AtomicBool>,
    relieved: Option<Instant>,
    thread: JoinHandle<()>,
}

impl Checkpointer {
    /// Starts the thread on a connection of its own.
    pub(super) fn start(writer: &mut Connection, own: Connection) -> Result<Self, StoreError> {
        let log_pages = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&log_pages);
        writer.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, pages: i32| {
            seen.store(usize::try_from(pages).unwrap_or(0), Ordering::Relaxed);
            Ok(())
        }))?;
        let can_restart = Arc::new(AtomicBool::new(false));
        let (requests, asked) = sync_channel(1);
        let caught_up = Arc::clone(&can_restart);
        let thread = std::thread::Builder::new()
            .name("store-checkpoint".into())
            .spawn(move || {
                while asked.recv().is_ok() {
                    let near = (0..PASSES).any(|_| {
                        checkpoint(&own, "PASSIVE").is_some_and(|left| left <= RESTART_PAGES)
                    });
                    caught_up.store(near, Ordering::Release);
                }
            })
            .map_err(StoreError::Thread)?;
        Ok(Self { requests, log_pages, can_restart, relieved: None, thread })
    }

    /// Called by the writer after each commit.
    pub(super) fn committed(&self, writer: &Connection) {
        let log_pages = self.log_pages.load(Ordering::Relaxed);
        if log_pages < CHECKPOINT_PAGES {
            return;
        }
        if log_pages >= LOG_PAGES {
            checkpoint(writer, "PASSIVE");
            self.can_restart.store(true, Ordering::Release);
        }
        if self.can_restart.swap(false, Ordering::Acquire) {
            // A writer that never rests would append to the log for ever. Readers that hold on to
            // it only put this off: never wait for them.
            let _ = without_waiting(writer, "RESTART");
        } else {
            let _ = self.requests.try_send(());
        }
    }

    /// Called by the writer when the disk is full: once all of the log has been moved, it is
    /// written from its beginning again and takes no more room for a while.
    pub(super) fn relieve(&mut self, writer: &Connection) {
        if self.relieved.is_none_or(|at| at.elapsed() >= RELIEVE_PAUSE) {
            checkpoint(writer, "PASSIVE");
            self.relieved = Some(Instant::now());
        }
    }

    /// Ends the thread and leaves as small a log as can be had.
    pub(super) fn finish(self, writer: &Connection) {
        drop(self.requests);
        if self.thread.join().is_err() {
            tracing::error!("the store's checkpoint thread panicked");
        }
        checkpoint(writer, "PASSIVE");
    }
}

/// Moves all of the log into the database, and whether that was done: both are then durable.
pub(super) fn is_done(writer: &Connection) -> bool {
    without_waiting(writer, "FULL") == Some(0)
}

/// As [`checkpoint`], and gives up where it would wait for readers.
fn without_waiting(writer: &Connection, mode: &str) -> Option<usize> {
    let left = writer
        .busy_timeout(Duration::ZERO)
        .map(|()| checkpoint(writer, mode))
        .and_then(|left| writer.busy_timeout(schema::BUSY_TIMEOUT).map(|()| left));
    left.unwrap_or_else(|error| {
        tracing::warn!(%error, "the write-ahead log could not be checkpointed");
        None
    })
}

/// Runs a checkpoint and returns how many pages of the log are still to be moved; `None` when it
/// could not run, or another one does.
fn checkpoint(connection: &Connection, mode: &str) -> Option<usize> {
    let left = connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
        let (log, moved): (i64, i64) = (row.get(1)?, row.get(2)?);
        Ok(usize::try_from(log).ok().zip(usize::try_from(moved).ok()))
    });
    left.map(|pages| pages.map(|(log, moved)| log.saturating_sub(moved))).unwrap_or_else(|error| {
        tracing::warn!(%error, "the write-ahead log could not be checkpointed");
        None
    })
}
