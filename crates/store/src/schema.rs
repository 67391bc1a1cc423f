//! The tables, the connections, and the migrations from older versions.

use super::file_kind::{literal, refuse_other_than_files};
use super::presence::{refuse_foreign_journal, refuse_foreign_log, refuse_orphaned_log};
use super::sqlite_error::{self, SqliteError};
use super::{StoreError, deletion, index_mark, lock, retag};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// `PRAGMA application_id` of a negsync store: "nsyn" in ASCII.
const APPLICATION_ID: i32 = 0x6e73_796e;

/// A migration from one version of the store to the next.
enum Migration {
    /// Statements that run in one transaction, together with adjacent migrations.
    Sql(&'static str),
    /// Like `Sql`, followed by a function in the same transaction.
    SqlAnd(&'static str, fn(&Connection) -> rusqlite::Result<()>),
    /// A function that commits several times. When called again it continues where it stopped, so
    /// the migration of a large store can be interrupted.
    InSteps(fn(&mut Connection) -> rusqlite::Result<()>),
}
use Migration::{InSteps, Sql, SqlAnd};

/// The migrations: number `n` takes a store from `user_version` n to n + 1. Readers and older
/// programs refuse a store between two versions.
///
/// An event's row holds the columns for searches and the JSON that is sent. `address` is the `d`
/// value of an addressable event and empty for a replaceable one, so that the index over it allows
/// one version of each. `author` serves filters for an author with and without kinds. Each index
/// ends in `(created_at, id)`: it answers a reconciliation without touching the events themselves.
const MIGRATIONS: [Migration; 14] = [
    Sql("
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
"),
    // Ids that a sync need not move again, and how far each peer was last proven equal. `peer` is
    // empty if the reason is this store's own and applies to every peer.
    Sql("
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
"),
    // Within the second `created_at` of an address tombstone, versions with this id or a higher one
    // are deleted; an empty id is lower than any.
    Sql("
ALTER TABLE address_tombstone ADD COLUMN id BLOB NOT NULL DEFAULT x'';
"),
    // The duration of a scan by time reveals private kinds too.
    Sql("
DROP INDEX event_time;
CREATE INDEX event_time ON event (created_at, id, kind);
"),
    // NIP-62: the keys that have vanished, up to which second, and whether some of their events may
    // still be stored.
    Sql("
CREATE TABLE vanished (
    pubkey  BLOB NOT NULL PRIMARY KEY,
    until   INTEGER NOT NULL,
    pending INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX vanished_pending ON vanished (pending) WHERE pending = 1;
"),
    // NIP-09: the targets that a stored deletion request keeps out, by its row; filled by the last
    // migration. In older versions, a version deleted by its id kept older ones out too, and
    // tombstones outlived their requests. A request to vanish does not expire.
    Sql("
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
"),
    // The kind comes before the time: a scan by tag meets no event of other kinds, so its duration
    // reveals nothing about private events.
    Sql("
ALTER TABLE tag RENAME TO tag_before_kinds;
CREATE TABLE tag (
    key        BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    id         BLOB NOT NULL,
    kind       INTEGER NOT NULL,
    event      INTEGER NOT NULL,
    PRIMARY KEY (key, kind, created_at, id)
) STRICT, WITHOUT ROWID;
"),
    InSteps(retag::move_tags),
    // The kinds in the index `event_time_private`; all others are in `event_time`. See
    // private_times.rs.
    Sql("
CREATE TABLE private_time (kind INTEGER PRIMARY KEY) STRICT;
"),
    // NIP-09: the pending removals of deletion requests, in order; and the number of targets of
    // each author's requests. Then all stored requests are followed, because those of older stores
    // have no tombstones yet.
    SqlAnd(
        "
CREATE TABLE removal (
    seq INTEGER PRIMARY KEY,
    id  BLOB NOT NULL UNIQUE
) STRICT;
CREATE TABLE deleter (
    pubkey BLOB NOT NULL PRIMARY KEY,
    named  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO deleter SELECT pubkey, count(*) FROM
    (SELECT pubkey FROM tombstone UNION ALL SELECT pubkey FROM address_tombstone)
    GROUP BY pubkey;
",
        deletion::follow_all,
    ),
    // The state of a sync: how far a peer was equal or read, and how to query it. Null means not
    // proven; `read_until` is 0 if NIP-77 is tried.
    Sql("
CREATE TABLE sync_mark (
    peer        TEXT NOT NULL,
    filter      TEXT NOT NULL,
    equal_up_to INTEGER,
    read_from   INTEGER,
    read_to     INTEGER,
    whole_at    INTEGER,
    at          INTEGER NOT NULL,
    PRIMARY KEY (peer, filter)
) STRICT, WITHOUT ROWID;
INSERT INTO sync_mark (peer, filter, equal_up_to, at) SELECT peer, filter, up_to, at FROM synced;
DROP TABLE synced;
CREATE TABLE sync_peer (
    peer         TEXT NOT NULL PRIMARY KEY,
    read_until   INTEGER NOT NULL,
    why          TEXT NOT NULL,
    largest_page INTEGER NOT NULL,
    at           INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"),
    // The operator's removals, with the facts about each event; only the id, if the event was not
    // stored.
    Sql("
CREATE TABLE operator_tombstone (
    id         BLOB NOT NULL PRIMARY KEY,
    pubkey     BLOB,
    kind       INTEGER,
    created_at INTEGER,
    at         INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"),
    Sql(index_mark::TABLES),
    // Retention: the rules in force, their floors, and the ids removed last.
    Sql("
CREATE TABLE retention (
    rules TEXT NOT NULL,
    floor INTEGER NOT NULL
) STRICT;
CREATE TABLE retention_floor (
    pubkey     BLOB NOT NULL,
    kind       INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    id         BLOB NOT NULL,
    PRIMARY KEY (pubkey, kind)
) STRICT, WITHOUT ROWID;
CREATE TABLE retired (
    seq INTEGER PRIMARY KEY,
    id  BLOB NOT NULL UNIQUE
) STRICT;
"),
];

/// Opens the writer's connection, and migrates the tables to this version.
pub(super) fn open_writer(path: &Path) -> Result<Connection, StoreError> {
    refuse_other_than_files(path)?;
    refuse_orphaned_log(path)?;
    refuse_foreign_log(path)?;
    refuse_foreign_journal(path)?;
    let mut connection =
        open(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    // The database of another program is refused and stays unchanged.
    version(&connection, path)?;
    if connection.is_readonly(rusqlite::MAIN_DB).map_err(StoreError::sqlite)? {
        return Err(StoreError::ReadOnly { path: path.to_owned() });
    }
    // Pages in doubt after a failed flush must not be moved when the connection closes.
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(StoreError::sqlite)?;
    // The checkpointer moves pages out of the write-ahead log, and the flusher makes commits
    // durable; the writer waits for neither. At this level SQLite still flushes in the order that
    // keeps the file consistent.
    let pragmas = format!(
        "PRAGMA page_size = {PAGE_BYTES};
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = NORMAL;
         PRAGMA wal_autocheckpoint = 0;
         PRAGMA temp_store = MEMORY;
         PRAGMA mmap_size = {MMAP_BYTES};"
    );
    connection.execute_batch(&pragmas).map_err(StoreError::sqlite)?;
    migrate(&mut connection, path)?;
    Ok(connection)
}

/// Lets SQLite move the log into the file and remove it when this connection is the last to close.
pub(super) fn move_log_at_close(writer: &Connection) -> rusqlite::Result<()> {
    writer.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map(|_| ())
}

/// Sets the maximum page cache of a connection, in MiB.
pub(super) fn limit_cache(connection: &Connection, most_mb: usize) -> rusqlite::Result<()> {
    let kib = most_mb.saturating_mul(1_024);
    connection.execute_batch(&format!("PRAGMA cache_size = -{kib}"))
}

/// Opens a read-only connection.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    refuse_other_than_files(path)?;
    refuse_orphaned_log(path)?;
    refuse_foreign_log(path)?;
    refuse_foreign_journal(path)?;
    match open_reader_of(path, OpenFlags::SQLITE_OPEN_READ_ONLY) {
        // Readers share a file beside the store. It cannot be created here: the folder is
        // read-only, or the disk is full. If there is no writer and the log is empty, the file is
        // complete and can be read without sharing.
        Err(StoreError::Sqlite(SqliteError(error)))
            if (matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly)
            ) || sqlite_error::has_no_room(&error))
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
    super::doubt::has_log(&real)
}

/// The URI by which SQLite treats a file as immutable.
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
    let pragmas = format!(
        "PRAGMA query_only = TRUE;
         PRAGMA temp_store = MEMORY;
         PRAGMA mmap_size = {MMAP_BYTES};
         PRAGMA cache_size = -{READER_CACHE_KIB};"
    );
    connection.execute_batch(&pragmas).map_err(StoreError::sqlite)?;
    // SQLite opens the log at the first read: read now, so that an error occurs here and not later.
    connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
        .map_err(StoreError::sqlite)?;
    Ok(connection)
}

/// Opens the connection of the checkpointer.
pub(super) fn open_checkpointer(path: &Path) -> Result<Connection, StoreError> {
    let connection = open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(StoreError::sqlite)?;
    connection.execute_batch("PRAGMA wal_autocheckpoint = 0;").map_err(StoreError::sqlite)?;
    Ok(connection)
}

/// Page size of the file, in bytes.
pub(super) const PAGE_BYTES: usize = 4_096;
const READER_CACHE_KIB: u32 = 4_096;
const MMAP_BYTES: u64 = 64 << 30;
const STATEMENTS_CACHED: usize = 64;

/// Timeout for locks that another process holds.
pub(super) const BUSY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

fn open(path: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    let is_uri = flags.contains(OpenFlags::SQLITE_OPEN_URI);
    let name = if is_uri { path.to_owned() } else { literal(path) };
    let connection =
        Connection::open_with_flags(name, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(
            |source| StoreError::Open { path: path.to_owned(), source: SqliteError(source) },
        )?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(StoreError::sqlite)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    keep_plans(&connection).map_err(StoreError::sqlite)?;
    // Allows lists of values as a parameter.
    rusqlite::vtab::array::load_module(&connection).map_err(StoreError::sqlite)?;
    Ok(connection)
}

/// Keeps a statement's plan for all bindings. With STAT4, which the bundled SQLite has, it would
/// otherwise prepare a statement again each time an author is bound.
fn keep_plans(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(|_| ())
}

/// Fails unless the file is a store of exactly this version.
pub(super) fn check_version(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let (path, newest) = (path.to_owned(), MIGRATIONS.len());
    match version(connection, &path)? {
        0 => Err(StoreError::NotAStore { path }),
        version if version < newest => Err(StoreError::TooOld { path, version, newest }),
        _ => Ok(()),
    }
}

/// Fails unless the file is a store of this version or an earlier one.
pub(super) fn check_known(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    match version(connection, path)? {
        0 => Err(StoreError::NotAStore { path: path.to_owned() }),
        _ => Ok(()),
    }
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    loop {
        let begun = version(connection, path)?;
        match MIGRATIONS.get(begun) {
            None => return Ok(()),
            Some(Sql(_) | SqlAnd(..)) => {
                migrate_at_once(connection, begun).map_err(StoreError::sqlite)?
            }
            Some(InSteps(work)) => {
                work(connection).map_err(StoreError::sqlite)?;
                set_version(connection, begun + 1).map_err(StoreError::sqlite)?;
            }
        }
    }
}

/// Runs the migrations from version `begun` up to the next one that commits several times.
fn migrate_at_once(connection: &mut Connection, begun: usize) -> rusqlite::Result<()> {
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let mut reached = begun;
    loop {
        match MIGRATIONS.get(reached) {
            Some(Sql(statements)) => transaction.execute_batch(statements)?,
            Some(SqlAnd(statements, work)) => {
                transaction.execute_batch(statements)?;
                work(&transaction)?;
            }
            Some(InSteps(_)) | None => break,
        }
        reached += 1;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    set_version(&transaction, reached)?;
    transaction.commit()
}

fn set_version(connection: &Connection, version: usize) -> rusqlite::Result<()> {
    connection.pragma_update(None, "user_version", version as i64)
}

/// Rewrites the store's version unchanged: the smallest possible write.
pub(super) fn rewrite_version(connection: &Connection) -> rusqlite::Result<()> {
    set_version(connection, MIGRATIONS.len())
}

/// The store's version, 0 for an empty file.
fn version(connection: &Connection, path: &Path) -> Result<usize, StoreError> {
    let pragma = |name: &str| -> Result<i32, rusqlite::Error> {
        connection.pragma_query_value(None, name, |row| row.get(0))
    };
    let version = pragma("user_version").map_err(StoreError::sqlite)?;
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(StoreError::sqlite)?;
    if tables > 0 && pragma("application_id").map_err(StoreError::sqlite)? != APPLICATION_ID {
        return Err(StoreError::NotAStore { path: path.to_owned() });
    }
    let newest = MIGRATIONS.len();
    usize::try_from(version)
        .ok()
        .filter(|version| *version <= newest)
        .ok_or_else(|| StoreError::TooNew { path: path.to_owned(), version, newest })
}
