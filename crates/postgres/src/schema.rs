//! The tables, and the migrations from older versions. All tables are in the schema `negsync` of
//! the database; other schemas are not touched.

use crate::connection::ServerSession;
use crate::fault::fault;
use negsync_store::StoreError;
use tokio_postgres::error::SqlState;

/// Held while tables are created, because several nodes may start at a time. "negsync" in ASCII.
const LOCK: i64 = 0x6e_6567_7379_6e63;

/// The migrations: number `n` takes a store from version n to n + 1.
///
/// A row of `event` holds the columns for searches and the JSON that is sent. `address` is a hash
/// of author, kind and `d` value, because an index entry may hold at most 2,704 bytes. Each index
/// that answers a filter ends in `(created_at DESC, id)`, the order in which a client gets events
/// (NIP-01), and covers all columns that a reconciliation reads.
const MIGRATIONS: [&str; 3] = ["
-- The order of all commits. Whoever writes holds the row: numbers have no gaps, and a commit of a
-- lower number is never seen after one of a higher number.
-- `mark` is that of the last commit.
CREATE TABLE head (
    single BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (single),
    seq    BIGINT NOT NULL,
    mark   BIGINT NOT NULL
);
INSERT INTO head (seq, mark)
    VALUES (0, ('x' || substr(md5(random()::text || clock_timestamp()::text), 1, 16))::bit(64)::bigint);

-- One row a commit. A random mark tells it from another commit of that number, after a fail-over that
-- lost some.
CREATE TABLE feed_commit (
    seq     BIGINT PRIMARY KEY,
    mark    BIGINT NOT NULL,
    added   INTEGER NOT NULL,
    removed INTEGER NOT NULL
);
INSERT INTO feed_commit (seq, mark, added, removed) SELECT seq, mark, 0, 0 FROM head;

-- `seq` is the commit that the event came with.
CREATE TABLE event (
    id         BYTEA PRIMARY KEY,
    pubkey     BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    kind       INTEGER NOT NULL,
    address    BYTEA,
    expires_at BIGINT,
    seq        BIGINT NOT NULL,
    json       TEXT NOT NULL
) WITH (autovacuum_vacuum_insert_scale_factor = 0.02);
CREATE INDEX event_time ON event (created_at DESC, id) INCLUDE (kind);
CREATE INDEX event_kind ON event (kind, created_at DESC, id);
CREATE INDEX event_author ON event (pubkey, kind, created_at DESC, id);
CREATE UNIQUE INDEX event_address ON event (address) WHERE address IS NOT NULL;
CREATE INDEX event_expiry ON event (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX event_seq ON event (seq);

-- What left, and with which commit.
CREATE TABLE gone (
    seq        BIGINT NOT NULL,
    id         BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (seq, id)
);

-- One row for each single-letter tag of each event.
CREATE TABLE tag (
    key        BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    id         BYTEA NOT NULL,
    kind       INTEGER NOT NULL
) WITH (autovacuum_vacuum_insert_scale_factor = 0.02);
CREATE UNIQUE INDEX tag_key ON tag (key, created_at DESC, id) INCLUDE (kind);

-- NIP-09: what a stored deletion request keeps out, by the id of the request; and how much the requests
-- of each author name.
CREATE TABLE tombstone (
    id       BYTEA NOT NULL,
    pubkey   BYTEA NOT NULL,
    deletion BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (id, pubkey, deletion)
);
CREATE INDEX tombstone_deletion ON tombstone (deletion);
CREATE TABLE address_tombstone (
    address    BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    deletion   BYTEA NOT NULL,
    pubkey     BYTEA NOT NULL,
    PRIMARY KEY (address, created_at, deletion)
);
CREATE INDEX address_tombstone_deletion ON address_tombstone (deletion);
CREATE TABLE deleter (pubkey BYTEA PRIMARY KEY, named BIGINT NOT NULL);

-- NIP-62: who has asked to vanish, with all up to which second, and whether some of it may still be there.
CREATE TABLE vanished (pubkey BYTEA PRIMARY KEY, until BIGINT NOT NULL, pending BOOLEAN NOT NULL);
CREATE INDEX vanished_pending ON vanished (pubkey) WHERE pending;

-- What the operator has removed and keeps out, with what is known of it.
CREATE TABLE operator_tombstone (
    id         BYTEA PRIMARY KEY,
    pubkey     BYTEA,
    kind       INTEGER,
    created_at BIGINT,
    at         BIGINT NOT NULL
);

-- Ephemeral events on their way to the subscriptions of other nodes. A crash of the server loses them, as it may.
CREATE UNLOGGED TABLE ephemeral (
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    node   BIGINT NOT NULL,
    at     TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    json   TEXT NOT NULL
);

-- Which node does what only one of them does, and until when.
CREATE TABLE lease (
    single BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (single),
    node   BIGINT NOT NULL,
    until  TIMESTAMPTZ NOT NULL
);

-- What syncs remember: ids that need not be moved, how far each peer is known, how it is asked.
CREATE TABLE refused (
    peer   TEXT NOT NULL,
    id     BYTEA NOT NULL,
    reason TEXT NOT NULL,
    until  BIGINT NOT NULL,
    PRIMARY KEY (peer, id)
);
CREATE INDEX refused_until ON refused (until);
CREATE TABLE sync_mark (
    peer        TEXT NOT NULL,
    filter      TEXT NOT NULL,
    equal_up_to BIGINT,
    read_from   BIGINT,
    read_to     BIGINT,
    whole_at    BIGINT,
    at          BIGINT NOT NULL,
    PRIMARY KEY (peer, filter)
);
CREATE TABLE sync_peer (
    peer         TEXT PRIMARY KEY,
    read_until   BIGINT NOT NULL,
    why          TEXT NOT NULL,
    largest_page BIGINT NOT NULL,
    at           BIGINT NOT NULL
);
", "
-- NIP-62: the URL of the relay that the stored requests to vanish were read for last.
ALTER TABLE store ADD COLUMN vanish_url TEXT;
-- An event is handed over once, however often its transaction is sent.
ALTER TABLE ephemeral ADD COLUMN id BYTEA UNIQUE;
", "
-- Retention: the rules in force, of each author and kind the newest event that was one too many, and what was
-- removed last.
CREATE TABLE retention (single BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (single), rules TEXT NOT NULL);
CREATE TABLE retention_floor (
    pubkey     BYTEA NOT NULL,
    kind       INTEGER NOT NULL,
    created_at BIGINT NOT NULL,
    id         BYTEA NOT NULL,
    PRIMARY KEY (pubkey, kind)
);
CREATE TABLE retired (
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id     BYTEA NOT NULL UNIQUE
);
"];

/// Checks that the tables exist and have this version.
pub(crate) async fn expect(connection: &ServerSession) -> Result<(), StoreError> {
    let newest = MIGRATIONS.len() as i32;
    let version = connection.client().query_one("SELECT version FROM store", &[]).await;
    match version.and_then(|row| row.try_get::<_, i32>(0)) {
        Ok(version) if version > newest => Err(StoreError::NewerTables { version, newest }),
        Ok(version) if version < newest => {
            let reason = format!(
                "its tables have version {version} and not {newest}; `negsync relay` brings them up to date"
            );
            Err(StoreError::Address(reason))
        }
        Ok(_) => Ok(()),
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {
            Err(StoreError::Address("the database holds no store of negsync".to_owned()))
        }
        Err(error) => Err(fault(error)),
    }
}

/// Creates the tables, or migrates them to this version.
pub(crate) async fn migrate(connection: &ServerSession) -> Result<(), StoreError> {
    let done = migrate_in_transaction(connection).await;
    if done.is_err() {
        // The error is returned; the transaction ends with the connection at the latest.
        let _ = connection.client().batch_execute("ROLLBACK").await;
    }
    done
}

async fn migrate_in_transaction(connection: &ServerSession) -> Result<(), StoreError> {
    let client = connection.client();
    let encoding = client.query_one("SHOW server_encoding", &[]).await.map_err(fault)?;
    let encoding: &str = encoding.try_get(0).map_err(fault)?;
    if encoding != "UTF8" {
        let reason =
            format!("the database's encoding is {encoding}; make one with ENCODING 'UTF8'");
        return Err(StoreError::Address(reason));
    }
    client.batch_execute("BEGIN").await.map_err(fault)?;
    client.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await.map_err(fault)?;
    client
        .batch_execute(
            "CREATE SCHEMA IF NOT EXISTS negsync;
             CREATE TABLE IF NOT EXISTS store (
                 single BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (single), version INTEGER NOT NULL);
             INSERT INTO store (version) VALUES (0) ON CONFLICT DO NOTHING;",
        )
        .await
        .map_err(fault)?;
    let version = client.query_one("SELECT version FROM store", &[]).await.map_err(fault)?;
    let version: i32 = version.try_get(0).map_err(fault)?;
    let newest = MIGRATIONS.len() as i32;
    if version > newest {
        return Err(StoreError::NewerTables { version, newest });
    }
    for step in MIGRATIONS.iter().skip(version.max(0) as usize) {
        client.batch_execute(step).await.map_err(fault)?;
    }
    client.execute("UPDATE store SET version = $1", &[&newest]).await.map_err(fault)?;
    client.batch_execute("COMMIT").await.map_err(fault)
}
