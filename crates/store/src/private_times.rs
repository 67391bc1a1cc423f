//! Where events stand by time. Those of private kinds have an index of their own, so that a scan by
//! time for everybody meets none of them: its length says nothing about how many there are.
//!
//! Which kinds these are is kept in the store, because the indexes outlive the configuration. Every
//! scan goes by what the store says, and is right whatever is configured; when a relay starts with
//! other kinds, the two indexes are made anew.

use super::viewer::PrivateKinds;
use negsync_nostr::Filter;
use rusqlite::{Connection, TransactionBehavior};
use std::time::Instant;

/// The kinds whose times stand apart, in order.
pub(super) fn kinds(connection: &Connection) -> rusqlite::Result<Vec<u16>> {
    let mut select = connection.prepare_cached("SELECT kind FROM private_time ORDER BY kind")?;
    select.query_map([], |row| row.get(0))?.collect()
}

/// The statements that walk the events of a time, newest first, one for each index that can hold
/// what the filter asks for. Their parameters are the first and the last second.
pub(super) fn walks(connection: &Connection, filter: &Filter) -> rusqlite::Result<Vec<String>> {
    let kinds = kinds(connection)?;
    let walk = |index: &str, condition: &str| {
        format!(
            "SELECT created_at, id, row, kind FROM event INDEXED BY {index}
             WHERE {condition}created_at BETWEEN ?1 AND ?2 ORDER BY created_at DESC"
        )
    };
    if kinds.is_empty() {
        return Ok(vec![walk("event_time", "")]);
    }
    let mut walks = vec![walk("event_time", &format!("kind NOT IN ({}) AND ", listed(&kinds)))];
    if kinds.iter().any(|kind| filter.takes_kind(*kind)) {
        let condition = format!("kind IN ({}) AND ", listed(&kinds));
        walks.push(walk("event_time_private", &condition));
    }
    Ok(walks)
}

/// Makes the indexes anew where other kinds are private than those by which they were made.
pub(super) fn keep_apart(
    connection: &mut Connection,
    private: &PrivateKinds,
) -> rusqlite::Result<()> {
    if kinds(connection)? == private.as_slice() {
        return Ok(());
    }
    let began = Instant::now();
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(&indexes(private.as_slice()))?;
    for kind in private.as_slice() {
        transaction.execute("INSERT INTO private_time (kind) VALUES (?1)", [kind])?;
    }
    transaction.commit()?;
    let (kinds, elapsed_s) = (private.as_slice(), began.elapsed().as_secs_f64());
    tracing::info!(?kinds, elapsed_s, "events of private kinds are indexed apart");
    Ok(())
}

fn indexes(private: &[u16]) -> String {
    let begin = "DELETE FROM private_time;
        DROP INDEX event_time;
        DROP INDEX IF EXISTS event_time_private;";
    let columns = "event (created_at, id, kind)";
    if private.is_empty() {
        return format!("{begin} CREATE INDEX event_time ON {columns};");
    }
    let kinds = listed(private);
    format!(
        "{begin}
         CREATE INDEX event_time ON {columns} WHERE kind NOT IN ({kinds});
         CREATE INDEX event_time_private ON {columns} WHERE kind IN ({kinds});"
    )
}

/// As it stands in the indexes: SQLite takes a partial index only for the same words.
fn listed(kinds: &[u16]) -> String {
    let kinds: Vec<String> = kinds.iter().map(ToString::to_string).collect();
    kinds.join(",")
}
