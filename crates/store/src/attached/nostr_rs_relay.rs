//! nostr-rs-relay, schema 18, used by 0.8.12 and 0.9 (`nostr.db` in its data directory).
//!
//! It hides deleted events, removes replaced ones and, every ten minutes, expired ones. It shows a
//! row if `hidden != TRUE` and `expires_at` is null or in the future.

use super::schema::Schema;
use crate::viewer::PrivateKinds;
use rusqlite::Connection;

/// `PRAGMA application_id` of its databases.
const APPLICATION_ID: i64 = 1_654_008_667;
/// `PRAGMA user_version`: the supported schema.
const VERSION: i64 = 18;

pub(super) fn schema(private: PrivateKinds) -> Schema {
    Schema {
        check,
        table: "event",
        row: "id",
        id: "event_hash",
        author: "author",
        shown: "coalesce(hidden != TRUE, FALSE)",
        expires_at: "expires_at",
        tags: "content",
        // The plus keeps SQLite from reading all tags with the name: the value is more selective.
        tagged: "id IN (SELECT event_id FROM tag WHERE +name = ? AND value IN",
        kind_beside_tags: "kind",
        tags_named: "SELECT event_id, value FROM tag WHERE name = ?",
        event: "content",
        read_json: |row| row.get(0),
        removes_deleted: false,
        private,
    }
}

fn check(connection: &Connection) -> rusqlite::Result<Result<(), String>> {
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (application, version) = (pragma("application_id")?, pragma("user_version")?);
    Ok(if application != APPLICATION_ID {
        Err("it is not a database of nostr-rs-relay".to_owned())
    } else if version != VERSION {
        Err(format!("it has schema {version} of nostr-rs-relay, and only {VERSION} is known"))
    } else {
        Ok(())
    })
}
