//! The indexes of events by time. Private kinds have an index of their own, so a public scan by
//! time meets no private events, and its duration does not reveal how many there are.
//!
//! The private kinds are recorded in the store, because the indexes outlive the configuration.
//! Every scan uses the recorded kinds, so it is correct under any configuration. When a relay
//! starts with other kinds, the two indexes are rebuilt.

use super::viewer::PrivateKinds;
use negsync_nostr::Filter;
use rusqlite::{Connection, TransactionBehavior};
use std::time::Instant;

/// The recorded private kinds, in order.
pub(super) fn kinds(connection: &Connection) -> rusqlite::Result<Vec<u16>> {
    let mut select = connection.prepare_cached("SELECT kind FROM private_time ORDER BY kind")?;
    select.query_map([], |row| row.get(0))?.collect()
}

/// The statements that walk the events of a time range, newest first: one for each index that may
/// hold matching events. Their parameters are the first and the last second.
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

/// Rebuilds the indexes if the private kinds differ from the recorded ones.
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

/// The list as written in the indexes: SQLite uses a partial index only for an identical
/// expression.
fn listed(kinds: &[u16]) -> String {
    let kinds: Vec<String> = kinds.iter().map(ToString::to_string).collect();
    kinds.join(",")
}
