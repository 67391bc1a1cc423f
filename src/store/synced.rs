//! How far each peer was last seen to be equal, by filter: where the next sync expects to find
//! what is new.

use rusqlite::{Connection, OptionalExtension, params};

/// The most pairs of peer and filter that are remembered; the longest unused make room.
const MOST_PAIRS: i64 = 10_000;

/// What a sync has proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Synced {
    /// The peer's URL.
    pub peer: String,
    /// The filter, as JSON in one normal form.
    pub filter: String,
    /// The newest `created_at` of the sets that were found equal, in seconds.
    pub up_to: u64,
}

pub(super) fn remember(connection: &Connection, synced: &Synced, now: u64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO synced (peer, filter, up_to, at) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO UPDATE SET up_to = excluded.up_to, at = excluded.at",
        )?
        .execute(params![synced.peer, synced.filter, synced.up_to as i64, now as i64])?;
    connection.execute(
        "DELETE FROM synced WHERE (peer, filter) IN
         (SELECT peer, filter FROM synced ORDER BY at DESC LIMIT -1 OFFSET ?1)",
        [MOST_PAIRS],
    )?;
    Ok(())
}

pub(super) fn up_to(
    connection: &Connection,
    peer: &str,
    filter: &str,
) -> rusqlite::Result<Option<u64>> {
    connection
        .prepare_cached("SELECT up_to FROM synced WHERE peer = ?1 AND filter = ?2")?
        .query_row([peer, filter], |row| row.get::<_, i64>(0))
        .optional()
        .map(|second| second.map(|second| second as u64))
}
