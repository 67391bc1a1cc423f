//! A database of one of the two relays, and a writer that performs the relay's writes.

use crate::support::model;
use negsync::store::RelayKind;
use rusqlite::{Connection, params};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

pub const KINDS: [RelayKind; 2] = [RelayKind::NostrRsRelay, RelayKind::NostrRelayPy];

const NOSTR_RS_RELAY: &str = "
PRAGMA journal_mode = WAL;
PRAGMA application_id = 1654008667;
PRAGMA user_version = 18;
CREATE TABLE event (id INTEGER PRIMARY KEY, event_hash BLOB NOT NULL, first_seen INTEGER NOT NULL,
    created_at INTEGER NOT NULL, expires_at INTEGER, author BLOB NOT NULL, delegated_by BLOB,
    kind INTEGER NOT NULL, hidden INTEGER, content TEXT NOT NULL);
CREATE UNIQUE INDEX event_hash_index ON event(event_hash);
CREATE INDEX author_index ON event(author);
CREATE INDEX kind_index ON event(kind);
CREATE INDEX created_at_index ON event(created_at);
CREATE INDEX delegated_by_index ON event(delegated_by);
CREATE INDEX event_composite_index ON event(kind, created_at);
CREATE INDEX kind_author_index ON event(kind, author);
CREATE INDEX kind_created_at_index ON event(kind, created_at);
CREATE INDEX author_created_at_index ON event(author, created_at);
CREATE INDEX author_kind_index ON event(author, kind);
CREATE INDEX event_expiration ON event(expires_at);
CREATE TABLE tag (id INTEGER PRIMARY KEY, event_id INTEGER NOT NULL REFERENCES event(id)
    ON DELETE CASCADE, name TEXT, value TEXT, value_hex BLOB, created_at INTEGER NOT NULL,
    kind INTEGER NOT NULL);
CREATE INDEX tag_val_index ON tag(value);
CREATE INDEX tag_composite_index ON tag(event_id, name, value);
CREATE INDEX tag_name_eid_index ON tag(name, event_id, value);
CREATE INDEX tag_covering_index ON tag(name, kind, value, created_at, event_id);
CREATE TABLE account (pubkey TEXT PRIMARY KEY, balance INTEGER);
";

const NOSTR_RELAY_PY: &str = "
PRAGMA journal_mode = WAL;
CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY);
INSERT INTO alembic_version VALUES ('63a13fc870a3');
CREATE TABLE events (id BLOB NOT NULL, created_at INTEGER, kind INTEGER, pubkey BLOB, tags JSON,
    sig BLOB, content TEXT, PRIMARY KEY (id));
CREATE INDEX createdidx ON events (created_at);
CREATE INDEX kindidx ON events (kind);
CREATE INDEX pubkeyidx ON events (pubkey);
CREATE INDEX kindcreatedpubkeyidx ON events (created_at, kind, pubkey);
CREATE TABLE tags (id BLOB REFERENCES events (id) ON DELETE CASCADE, name TEXT, value TEXT,
    UNIQUE (id, name, value));
CREATE INDEX tagidx ON tags (name, value);
CREATE TABLE account (pubkey TEXT PRIMARY KEY, balance INTEGER);
";

pub struct Database {
    pub kind: RelayKind,
    pub path: PathBuf,
    pub connection: Connection,
}

fn blob(event: &Value, field: &str) -> Vec<u8> {
    faster_hex::hex_decode_vec(event[field].as_str().unwrap().as_bytes()).unwrap()
}

fn tags(event: &Value) -> Vec<Vec<String>> {
    serde_json::from_value(event["tags"].clone()).unwrap()
}

fn values(event: &Value, name: &str) -> Vec<String> {
    let tags = tags(event).into_iter().filter(|tag| tag.len() > 1 && tag[0] == name);
    tags.map(|tag| tag[1].clone()).collect()
}

impl Database {
    pub fn new(kind: RelayKind, path: &Path) -> Self {
        let connection = Connection::open(path).unwrap();
        connection
            .execute_batch(match kind {
                RelayKind::NostrRsRelay => NOSTR_RS_RELAY,
                RelayKind::NostrRelayPy | RelayKind::Nostream => NOSTR_RELAY_PY,
            })
            .unwrap();
        connection.execute_batch("PRAGMA foreign_keys = ON; PRAGMA synchronous = OFF").unwrap();
        Self { kind, path: path.to_owned(), connection }
    }

    /// The database of an existing relay.
    pub fn existing(kind: RelayKind, path: &Path) -> Self {
        let connection = Connection::open(path).unwrap();
        Self { kind, path: path.to_owned(), connection }
    }

    pub fn table(&self) -> &'static str {
        match self.kind {
            RelayKind::NostrRsRelay => "event",
            RelayKind::NostrRelayPy | RelayKind::Nostream => "events",
        }
    }

    fn execute(&self, sql: &str, values: impl rusqlite::Params) -> usize {
        self.connection.prepare_cached(sql).unwrap().execute(values).unwrap()
    }

    /// Writes one event in a transaction of its own, by the relay's own rules.
    pub fn publish(&self, event: &Value) {
        self.connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        match self.kind {
            RelayKind::NostrRsRelay => self.publish_rs(event),
            RelayKind::NostrRelayPy | RelayKind::Nostream => self.publish_py(event),
        }
        self.connection.execute_batch("COMMIT").unwrap();
    }

    /// The events that the new one replaces, or that replace it: rows of the same author, kind and
    /// `d`.
    fn rivals(&self, event: &Value) -> Vec<(i64, u64)> {
        let kind = event["kind"].as_u64().unwrap();
        let d = |event: &Value| values(event, "d").first().cloned().unwrap_or_default();
        self.stored_where(&format!(
            "kind = {kind} AND {} = x'{}'",
            if self.kind == RelayKind::NostrRsRelay { "author" } else { "pubkey" },
            event["pubkey"].as_str().unwrap(),
        ))
        .into_iter()
        .filter(|(_, other)| kind < 30_000 || d(other) == d(event))
        .map(|(row, other)| (row, model::created_at(&other)))
        .collect()
    }

    fn publish_rs(&self, event: &Value) {
        let kind = event["kind"].as_u64().unwrap();
        if (20_000..30_000).contains(&kind) {
            return;
        }
        let created_at = model::created_at(event);
        let replaces = matches!(kind, 0 | 3 | 41 | 10_000..20_000 | 30_000..40_000);
        let rivals = if replaces { self.rivals(event) } else { Vec::new() };
        if rivals.iter().any(|(_, other)| *other >= created_at) {
            return;
        }
        let expires_at: Option<u64> =
            values(event, "expiration").first().and_then(|text| text.parse().ok());
        let inserted = self.execute(
            "INSERT OR IGNORE INTO event (event_hash, first_seen, created_at, expires_at, author,
                kind, hidden, content) VALUES (?, 0, ?, ?, ?, ?, FALSE, ?)",
            params![
                blob(event, "id"),
                created_at as i64,
                expires_at.map(|second| second as i64),
                blob(event, "pubkey"),
                kind as i64,
                event.to_string(),
            ],
        );
        if inserted == 0 {
            return;
        }
        let row = self.connection.last_insert_rowid();
        for tag in tags(event).iter().filter(|tag| tag.len() > 1 && tag[0].len() == 1) {
            self.execute(
                "INSERT INTO tag (event_id, name, value, created_at, kind) VALUES (?, ?, ?, ?, ?)",
                params![row, tag[0], tag[1], created_at as i64, kind as i64],
            );
        }
        for (rival, _) in rivals {
            self.execute("DELETE FROM event WHERE id = ?", [rival]);
        }
        if kind == 5 {
            for id in values(event, "e") {
                self.execute(
                    "UPDATE event SET hidden = TRUE
                     WHERE kind != 5 AND author = ? AND event_hash = ?",
                    params![blob(event, "pubkey"), faster_hex::hex_decode_vec(id.as_bytes()).ok()],
                );
            }
        } else {
            self.execute(
                "UPDATE event SET hidden = TRUE WHERE id = ?1 AND EXISTS
                 (SELECT 1 FROM tag JOIN event other ON other.id = tag.event_id WHERE
                  tag.name = 'e' AND tag.kind = 5 AND tag.value = ?2 AND other.author = ?3)",
                params![row, event["id"].as_str().unwrap(), blob(event, "pubkey")],
            );
        }
    }

    fn publish_py(&self, event: &Value) {
        let kind = event["kind"].as_u64().unwrap();
        let created_at = model::created_at(event);
        // One of the older versions is removed; all of them for profiles and contacts.
        if matches!(kind, 10_000..20_000 | 30_000..40_000) {
            let older = self.rivals(event).into_iter().find(|(_, other)| *other < created_at);
            if let Some((row, _)) = older {
                self.execute("DELETE FROM events WHERE rowid = ?", [row]);
            }
        }
        let inserted = self.execute(
            "INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?, ?, ?)",
            params![
                blob(event, "id"),
                created_at as i64,
                kind as i64,
                blob(event, "pubkey"),
                event["tags"].to_string(),
                blob(event, "sig"),
                event["content"].as_str().unwrap(),
            ],
        );
        if inserted == 0 {
            return;
        }
        if kind == 0 || kind == 3 {
            for (row, _) in self.rivals(event).iter().filter(|(_, other)| *other < created_at) {
                self.execute("DELETE FROM events WHERE rowid = ?", [row]);
            }
        }
        for tag in tags(event).iter().filter(|tag| tag[0].len() == 1 || tag[0] == "expiration") {
            let value = tag.get(1).map_or("", String::as_str);
            self.execute(
                "INSERT OR IGNORE INTO tags VALUES (?, ?, ?)",
                params![blob(event, "id"), tag[0], value],
            );
        }
        if kind == 5 {
            for id in values(event, "e") {
                self.execute(
                    "DELETE FROM events WHERE pubkey = ? AND id = ?",
                    params![blob(event, "pubkey"), faster_hex::hex_decode_vec(id.as_bytes()).ok()],
                );
            }
        }
    }

    /// Removes what the relay removes every few minutes.
    pub fn collect_garbage(&self, now: u64) {
        match self.kind {
            RelayKind::NostrRsRelay => {
                self.execute("DELETE FROM event WHERE expires_at <= ?", [now as i64]);
            }
            RelayKind::NostrRelayPy | RelayKind::Nostream => {
                self.execute(
                    "DELETE FROM events WHERE kind BETWEEN 20000 AND 29999 OR id IN
                     (SELECT id FROM tags WHERE name = 'expiration' AND value < ?)",
                    [now.to_string()],
                );
            }
        }
    }

    /// Rows and events, whether they are shown or not.
    fn stored_where(&self, condition: &str) -> Vec<(i64, Value)> {
        let columns = match self.kind {
            RelayKind::NostrRsRelay => "id, content",
            RelayKind::NostrRelayPy | RelayKind::Nostream => {
                "rowid, json_object('id', lower(hex(id)), 'pubkey', lower(hex(pubkey)), 'kind',
                 kind, 'created_at', created_at, 'tags', json(tags), 'content', content, 'sig',
                 lower(hex(sig)))"
            }
        };
        let sql = format!("SELECT {columns} FROM {} WHERE {condition}", self.table());
        let mut statement = self.connection.prepare_cached(&sql).unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)));
        rows.unwrap()
            .map(|row| row.unwrap())
            .map(|(row, json)| (row, serde_json::from_str(&json).unwrap()))
            .collect()
    }

    /// The events that the relay's clients may see at `now`, by a direct scan.
    pub fn visible(&self, now: u64) -> Vec<Value> {
        let shown = match self.kind {
            RelayKind::NostrRsRelay => "hidden != TRUE",
            RelayKind::NostrRelayPy | RelayKind::Nostream => "TRUE",
        };
        let events = self.stored_where(shown).into_iter().map(|(_, event)| event);
        events
            .filter(|event| !(20_000..30_000).contains(&event["kind"].as_u64().unwrap()))
            .filter(|event| {
                let expires_at = values(event, "expiration").first().and_then(|t| t.parse().ok());
                expires_at.is_none_or(|second: u64| second > now)
            })
            .collect()
    }

    /// Removes a row without any trace in other rows.
    pub fn remove_by_hand(&self, place: usize) {
        let sql = format!(
            "DELETE FROM {0} WHERE rowid IN (SELECT rowid FROM {0} ORDER BY rowid LIMIT 1 OFFSET ?)",
            self.table(),
        );
        self.execute(&sql, [place as i64]);
    }

    /// A write that does not affect events.
    pub fn write_elsewhere(&self, number: u64) {
        let key = json!(number).to_string();
        self.execute("INSERT OR REPLACE INTO account VALUES (?, 1)", [key]);
    }

    pub fn vacuum(&self) {
        self.connection.execute_batch("VACUUM").unwrap();
    }
}
