//! Moves committed pages from the write-ahead log into the database beside the writer, so that no
//! commit waits for it.

use super::StoreError;
use rusqlite::Connection;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

/// After so many changes the log is worth moving.
const CHECKPOINT_STEPS: usize = 5_000;
/// A log of more pages than this is started over by the writer itself, once the checkpointer has
/// moved nearly all of it: without that a writer that never rests would let it grow for ever.
const RESTART_PAGES: i64 = 32_768;

/// The checkpointing thread and what its owner, the writer, has to remember for it.
pub(super) struct Checkpointer {
    // Full while a checkpoint is asked for or running: one is enough.
    requests: SyncSender<()>,
    // The pages in the log after each checkpoint.
    log_pages: Receiver<i64>,
    thread: JoinHandle<()>,
    steps_since: usize,
}

impl Checkpointer {
    pub(super) fn start(connection: Connection) -> Result<Self, StoreError> {
        let (requests, asked) = sync_channel(1);
        let (report, log_pages) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("store-checkpoint".into())
            .spawn(move || {
                while asked.recv().is_ok() {
                    let pages = checkpoint(&connection, "PASSIVE");
                    // A report that nobody took yet says the same.
                    if let Err(TrySendError::Disconnected(_)) = report.try_send(pages) {
                        break;
                    }
                }
            })
            .map_err(StoreError::Thread)?;
        Ok(Self { requests, log_pages, thread, steps_since: 0 })
    }

    /// Called by the writer after a commit of `steps` changes.
    pub(super) fn wrote(&mut self, writer: &Connection, steps: usize) {
        self.steps_since += steps;
        if self.log_pages.try_recv().is_ok_and(|pages| pages > RESTART_PAGES) {
            // Readers that hold on to the old log only put this off: never wait for them.
            restart(writer);
        }
        if self.steps_since >= CHECKPOINT_STEPS && self.requests.try_send(()).is_ok() {
            self.steps_since = 0;
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

fn restart(writer: &Connection) {
    let patience = writer.busy_timeout(std::time::Duration::ZERO);
    checkpoint(writer, "RESTART");
    if patience.and_then(|()| writer.busy_timeout(super::schema::BUSY_TIMEOUT)).is_err() {
        tracing::warn!("the store's lock timeout could not be set");
    }
}

/// Runs a checkpoint and returns how many pages the log holds.
fn checkpoint(connection: &Connection, mode: &str) -> i64 {
    let pages = connection
        .query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| row.get::<_, i64>(1));
    pages.unwrap_or_else(|error| {
        tracing::warn!(%error, "the write-ahead log could not be checkpointed");
        0
    })
}
