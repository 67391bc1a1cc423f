//! The tables, the way the file is opened, and the steps from older versions to this one.

use super::doubt::log_path;
use super::{StoreError, deletion, fault, lock};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// `PRAGMA application_id` of a negsync store: "nsyn" in ASCII.
const APPLICATION_ID: i32 = 0x6e73_796e;

/// One step a version: step `n` takes a store from `user_version` n to n + 1.
///
/// An event's row holds what is looked up and the JSON that is sent. `address` is the `d` value of
/// an addressable event and empty for a replaceable one, so that the index over it allows one
/// version of each; `author` answers for an author with and without kinds. Each index ends in
/// `(created_at, id)`: it answers a reconciliation without touching the events themselves.
const MIGRATIONS: [&str; 6] = [
    "
CREATE TABLE event (
    row        INTEGER PRIMARY KEY,
    id         BLOB NOT NULL,
    pubkey     BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    kind       INTEGER NOT NULL,
    address    TEXT,
    expires_at INTEGER,
    json       TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX event_id ON event (id);
CREATE INDEX event_time ON event (created_at, id);
CREATE INDEX event_kind ON event (kind, created_at, id);
CREATE INDEX event_author ON event (pubkey, kind, created_at, id);
CREATE UNIQUE INDEX event_address ON event (pubkey, kind, address) WHERE address IS NOT NULL;
CREATE INDEX event_expiry ON event (expires_at) WHERE expires_at IS NOT NULL;

-- One row for each single-letter tag of each event; for the form of `key` see tag_key.rs.
-- `event` is the event's row.
CREATE TABLE tag (
    key        BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    id         BLOB NOT NULL,
    kind       INTEGER NOT NULL,
    event      INTEGER NOT NULL,
    PRIMARY KEY (key, created_at, id)
) STRICT, WITHOUT ROWID;

-- NIP-09: what an author has deleted stays deleted, stored here or not.
CREATE TABLE tombstone (
    id     BLOB NOT NULL,
    pubkey BLOB NOT NULL,
    PRIMARY KEY (id, pubkey)
) STRICT, WITHOUT ROWID;
CREATE TABLE address_tombstone (
    pubkey     BLOB NOT NULL,
    kind       INTEGER NOT NULL,
    address    TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (pubkey, kind, address)
) STRICT, WITHOUT ROWID;
",
    // Ids that a sync need not move again, and how far each peer was last seen to be equal.
    // `peer` is empty where the reason is this store's own and so holds for every peer.
    "
CREATE TABLE refused (
    peer   TEXT NOT NULL,
    id     BLOB NOT NULL,
    reason TEXT NOT NULL,
    until  INTEGER NOT NULL,
    PRIMARY KEY (peer, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX refused_until ON refused (until);
CREATE TABLE synced (
    peer   TEXT NOT NULL,
    filter TEXT NOT NULL,
    up_to  INTEGER NOT NULL,
    at     INTEGER NOT NULL,
    PRIMARY KEY (peer, filter)
) STRICT, WITHOUT ROWID;
",
    // Of the second `created_at` of an address tombstone, the versions with this id or a higher
    // one are gone; empty, it is lower than any.
    "
ALTER TABLE address_tombstone ADD COLUMN id BLOB NOT NULL DEFAULT x'';
",
    // Which kinds are not for everybody shows in a scan by time as well.
    "
DROP INDEX event_time;
CREATE INDEX event_time ON event (created_at, id, kind);
",
    // NIP-62: who has asked to vanish, with all up to which second, and whether some of it may
    // still be there.
    "
CREATE TABLE vanished (
    pubkey  BLOB NOT NULL PRIMARY KEY,
    until   INTEGER NOT NULL,
    pending INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX vanished_pending ON vanished (pending) WHERE pending = 1;
",
    // NIP-09: what a stored deletion request keeps out, by its row; filled by `deletion::follow_all`.
    // Before, a version that was deleted by its id kept older ones out, too, and tombstones outlived
    // their requests. A request to vanish does not expire.
    "
DROP TABLE tombstone;
CREATE TABLE tombstone (
    id       BLOB NOT NULL,
    pubkey   BLOB NOT NULL,
    deletion INTEGER NOT NULL,
    PRIMARY KEY (id, pubkey, deletion)
) STRICT, WITHOUT ROWID;
DROP TABLE address_tombstone;
CREATE TABLE address_tombstone (
    pubkey     BLOB NOT NULL,
    kind       INTEGER NOT NULL,
    address    TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    deletion   INTEGER NOT NULL,
    PRIMARY KEY (pubkey, kind, address, created_at, deletion)
) STRICT, WITHOUT ROWID;
UPDATE event SET expires_at = NULL WHERE kind = 62 AND expires_at IS NOT NULL;
",
];
/// The version from which on tombstones belong to their requests.
const TOMBSTONES_OF_REQUESTS: usize = 6;

/// Opens the connection that writes, and brings the tables to this version.
pub(super) fn open_writer(path: &Path) -> Result<Connection, StoreError> {
    let mut connection =
        open(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    // A database of another program is refused as it was found.
    version(&connection, path)?;
    if connection.is_readonly(rusqlite::MAIN_DB)? {
        return Err(StoreError::ReadOnly { path: path.to_owned() });
    }
    // What a flush has lost must not be moved when the connection closes.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // The checkpointer moves pages out of the write-ahead log and the flusher makes commits
    // durable; the writer stops for neither. At this level SQLite still flushes in the order that
    // keeps the file whole.
    connection.execute_batch(&format!(
        "PRAGMA page_size = {PAGE_BYTES};
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = NORMAL;
         PRAGMA wal_autocheckpoint = 0;
         PRAGMA temp_store = MEMORY;
         PRAGMA mmap_size = {MMAP_BYTES};"
    ))?;
    migrate(&mut connection, path)?;
    Ok(connection)
}

/// Lets SQLite move the log into the file, and remove it, when this connection closes as the last one.
pub(super) fn move_log_at_close(writer: &Connection) -> rusqlite::Result<()> {
    writer.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map(|_| ())
}

/// Bounds the pages that a connection keeps in memory, in MiB.
pub(super) fn limit_cache(connection: &Connection, most_mb: usize) -> rusqlite::Result<()> {
    let kib = most_mb.saturating_mul(1_024);
    connection.execute_batch(&format!("PRAGMA cache_size = -{kib}"))
}

/// Opens a connection that cannot write.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    match open_reader_of(path, OpenFlags::SQLITE_OPEN_READ_ONLY) {
        // Readers share a file beside the store, and here it cannot be made: nothing can be written,
        // or there is no room. Where nobody writes and the log is empty the file is all there is,
        // and can be read without being shared.
        Err(StoreError::Sqlite(error))
            if (matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly)
            ) || fault::has_no_room(&error))
                && !has_log(path)
                && !lock::is_held(path) =>
        {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
            open_reader_of(&immutable(path), flags)
        }
        opened => opened,
    }
}

fn has_log(path: &Path) -> bool {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    log_path(&real).metadata().is_ok_and(|metadata| metadata.len() > 0)
}

/// The URI by which SQLite takes a file as one that nobody writes.
fn immutable(path: &Path) -> PathBuf {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        let _ = write!(uri, "%{byte:02x}");
    }
    uri.push_str("?immutable=1");
    uri.into()
}

fn open_reader_of(path: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    let connection = open(path, flags)?;
    connection.execute_batch(&format!(
        "PRAGMA query_only = TRUE;
         PRAGMA temp_store = MEMORY;
         PRAGMA mmap_size = {MMAP_BYTES};
         PRAGMA cache_size = -{READER_CACHE_KIB};"
    ))?;
    // SQLite opens the log with the first read: what fails there fails here, and not later.
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    Ok(connection)
}

/// Opens the connection that checkpoints the write-ahead log.
pub(super) fn open_checkpointer(path: &Path) -> Result<Connection, StoreError> {
    let connection = open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.execute_batch("PRAGMA wal_autocheckpoint = 0;")?;
    Ok(connection)
}

/// The bytes of a page of the file.
pub(super) const PAGE_BYTES: usize = 4_096;
const READER_CACHE_KIB: u32 = 4_096;
const MMAP_BYTES: u64 = 64 << 30;
const STATEMENTS_CACHED: usize = 64;

/// How long SQLite waits for a lock that another process holds.
pub(super) const BUSY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

fn open(path: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    Ok(connection)
}

/// Refuses a file that is not a store of exactly this version.
pub(super) fn check_version(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let (path, newest) = (path.to_owned(), MIGRATIONS.len());
    match version(connection, &path)? {
        0 => Err(StoreError::NotAStore { path }),
        version if version < newest => Err(StoreError::TooOld { path, version, newest }),
        _ => Ok(()),
    }
}

/// Refuses a file that is not a store of this version or an earlier one.
pub(super) fn check_known(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    match version(connection, path)? {
        0 => Err(StoreError::NotAStore { path: path.to_owned() }),
        _ => Ok(()),
    }
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    if version(connection, path)? == MIGRATIONS.len() {
        return Ok(());
    }
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let from = version(&transaction, path)?;
    for step in MIGRATIONS.iter().skip(from) {
        transaction.execute_batch(step)?;
    }
    if from < TOMBSTONES_OF_REQUESTS {
        deletion::follow_all(&transaction)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
    transaction.commit()?;
    Ok(())
}

/// Writes the store's version as it is: the least that can be written.
pub(super) fn rewrite_version(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "user_version", MIGRATIONS.len() as i64)
}

/// The store's version, 0 for an empty file.
fn version(connection: &Connection, path: &Path) -> Result<usize, StoreError> {
    let pragma = |name: &str| -> Result<i32, rusqlite::Error> {
        connection.pragma_query_value(None, name, |row| row.get(0))
    };
    let version = pragma("user_version")?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables > 0 && pragma("application_id")? != APPLICATION_ID {
        return Err(StoreError::NotAStore { path: path.to_owned() });
    }
    let newest = MIGRATIONS.len();
    usize::try_from(version)
        .ok()
        .filter(|version| *version <= newest)
        .ok_or_else(|| StoreError::TooNew { path: path.to_owned(), version, newest })
}
