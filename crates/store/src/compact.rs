//! Returns the room of removed events to the file system.

use super::change::Written;
use super::doubt::{self, Mender};
use super::presence::Presence;
use super::{StoreError, apply, clock::Clock, deletion, lock, operator, refused, schema};
use rusqlite::{Connection, TransactionBehavior};
use std::path::{Path, PathBuf};

/// Maximum number of rows that one commit writes, unless a single event has more.
const EXPIRE_ROWS: usize = 100_000;

/// The result of a compaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compacted {
    /// Size of the file and its log before, in bytes.
    pub before_bytes: u64,
    /// Size of the file and its log afterwards, in bytes.
    pub after_bytes: u64,
    /// The number of expired events that were removed.
    pub expired: usize,
    /// Tombstones: the ids and addresses that authors or the operator keep out. They are never
    /// removed by a compaction.
    pub tombstones: u64,
}

/// Removes expired events and rewrites the store in `path` without gaps. Needs as much free room
/// again beside the store, and in SQLite's directory for temporary files.
///
/// # Errors
/// When the store is missing, is in use, or cannot be written. The store is then unchanged.
pub fn compact(path: &Path) -> Result<Compacted, StoreError> {
    // Opening for writing would create a store.
    schema::open_reader(path).map_err(|error| error.while_opening(path))?;
    let lock = lock::take(path)?;
    let before_bytes = size(path);
    let is_left_over = doubt::has_log(&lock.store);
    lock::prepare_files(&lock);
    let mut connection = schema::open_writer(path).map_err(|error| error.while_opening(path))?;
    let log = doubt::open_log(&lock.store)?;
    let presence = Presence::of(path, &log, &lock)?;
    Mender::new(&lock.store, log, is_left_over, presence.clone()).mend(&connection)?;
    let expired = expire(&mut connection)?;
    refused::remember(&connection, &[], Clock::system().now()).map_err(StoreError::sqlite)?;
    // In memory, the temporary copy would be as large as the store.
    connection
        .execute_batch("PRAGMA temp_store = FILE; VACUUM; PRAGMA wal_checkpoint(TRUNCATE);")
        .map_err(StoreError::sqlite)?;
    // After a failed flush the function has returned before this point, and the next start repairs
    // the log.
    presence.check()?;
    schema::move_log_at_close(&connection).map_err(StoreError::sqlite)?;
    let count =
        "SELECT (SELECT count(*) FROM tombstone) + (SELECT count(*) FROM address_tombstone)";
    let tombstones: i64 =
        connection.query_row(count, [], |row| row.get(0)).map_err(StoreError::sqlite)?;
    let tombstones = tombstones.unsigned_abs()
        + operator::tombstones(&connection).map_err(StoreError::sqlite)?;
    drop(connection);
    let after_bytes = size(path);
    drop(lock);
    Ok(Compacted { before_bytes, after_bytes, expired, tombstones })
}

fn expire(connection: &mut Connection) -> Result<usize, StoreError> {
    let mut expired = 0;
    loop {
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(StoreError::sqlite)?;
        let mut written = Written::default();
        let there_is_more =
            apply::expire(&transaction, Clock::system().now(), EXPIRE_ROWS, &mut written)
                .map_err(StoreError::sqlite)?;
        deletion::remove_some(&transaction, usize::MAX, &mut Written::default())
            .map_err(StoreError::sqlite)?;
        transaction.commit().map_err(StoreError::sqlite)?;
        expired += written.steps.len();
        if !there_is_more {
            return Ok(expired);
        }
    }
}

fn size(path: &Path) -> u64 {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let bytes = |path: &Path| path.metadata().map_or(0, |metadata| metadata.len());
    bytes(path) + bytes(&PathBuf::from(log))
}
