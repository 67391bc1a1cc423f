//! nostr-relay (Python) with SQLite as its store (1.14).
//!
//! It removes deleted and replaced events at once. It removes ephemeral and expired events every
//! five minutes and shows them until then.

use super::schema::Schema;
use crate::viewer::PrivateKinds;
use negsync_nostr::hex;
use rusqlite::{Connection, OptionalExtension};
use serde_json::json;
use serde_json::value::RawValue;

/// The latest Alembic migration whose tables this module supports.
const VERSION: &str = "63a13fc870a3";
/// The columns of the event table, in order.
const COLUMNS: &str = "id created_at kind pubkey tags sig content";

pub(super) fn schema(private: PrivateKinds) -> Schema {
    Schema {
        check,
        table: "events",
        row: "rowid",
        id: "id",
        author: "pubkey",
        shown: "TRUE",
        expires_at: "(SELECT value FROM tags WHERE tags.id = events.id AND name = 'expiration')",
        tags: "tags",
        tagged: "id IN (SELECT id FROM tags WHERE name = ? AND value IN",
        kind_beside_tags: "+kind",
        tags_named: "SELECT events.rowid, tags.value FROM tags JOIN events ON events.id = tags.id
            WHERE tags.name = ?",
        event: "id, created_at, kind, pubkey, tags, sig, content",
        read_json,
        removes_deleted: true,
        private,
    }
}

fn check(connection: &Connection) -> rusqlite::Result<Result<(), String>> {
    let columns: String = connection.query_row(
        "SELECT coalesce(group_concat(name, ' '), '') FROM pragma_table_info('events')",
        [],
        |row| row.get(0),
    )?;
    if columns != COLUMNS {
        return Ok(Err("it is not a database of nostr-relay (Python)".to_owned()));
    }
    let has_versions: bool = connection.query_row(
        "SELECT count(*) FROM sqlite_schema WHERE name = 'alembic_version'",
        [],
        |row| row.get(0),
    )?;
    let version: Option<String> = if has_versions {
        let sql = "SELECT version_num FROM alembic_version";
        connection.query_row(sql, [], |row| row.get(0)).optional()?
    } else {
        None
    };
    Ok(match version.as_deref() {
        Some(VERSION) => Ok(()),
        Some(other) => Err(format!(
            "its tables are at migration {other} of nostr-relay (Python), and only {VERSION} is \
             known"
        )),
        None => Err("it does not say which version of nostr-relay (Python) made it".to_owned()),
    })
}

fn read_json(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<String>> {
    let hex = |place: usize| -> rusqlite::Result<String> {
        Ok(hex::encode(row.get_ref(place)?.as_blob().unwrap_or_default()))
    };
    let tags: Option<String> = row.get(4)?;
    let Ok(tags) = RawValue::from_string(tags.unwrap_or_else(|| "[]".to_owned())) else {
        return Ok(None);
    };
    Ok(Some(
        json!({
            "id": hex(0)?,
            "created_at": row.get::<_, i64>(1)?,
            "kind": row.get::<_, i64>(2)?,
            "pubkey": hex(3)?,
            "tags": tags,
            "sig": hex(5)?,
            "content": row.get::<_, Option<String>>(6)?.unwrap_or_default(),
        })
        .to_string(),
    ))
}
