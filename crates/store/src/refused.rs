//! Ids that a sync need not move again, each with a reason and a term: events that this store
//! cannot keep, that a peer lists but does not send, or that a peer rejects.

use crate::clock::DAY_S;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::HashMap;

/// One id to record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedId {
    /// The peer's URL; empty if the reason is this store's own.
    pub peer: String,
    /// The event's id.
    pub id: [u8; 32],
    /// Why the event is not moved.
    pub reason: String,
    /// The term in seconds, at most 31 days.
    pub term_s: u64,
}

impl RefusedId {
    /// Maximum number of recorded ids; those whose term ends first are dropped.
    pub const MOST: i64 = 1_000_000;
    /// The longest term, in seconds. A recorded term that seems longer was set by a clock that ran
    /// ahead.
    pub const MOST_TERM_S: u64 = 31 * DAY_S;
}

/// Records ids; updates those that are recorded already.
pub(super) fn remember(
    connection: &Connection,
    refused: &[RefusedId],
    now: u64,
) -> rusqlite::Result<()> {
    connection.execute(
        "DELETE FROM refused WHERE until <= ?1 OR until > ?2",
        params![now as i64, now.saturating_add(RefusedId::MOST_TERM_S) as i64],
    )?;
    let mut insert = connection.prepare_cached(
        "INSERT INTO refused (peer, id, reason, until) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT DO UPDATE SET reason = excluded.reason, until = excluded.until",
    )?;
    for it in refused {
        let until = now.saturating_add(it.term_s.min(RefusedId::MOST_TERM_S));
        insert.execute(params![it.peer, it.id, it.reason, until as i64])?;
    }
    let count: i64 = connection.query_row("SELECT count(*) FROM refused", [], |row| row.get(0))?;
    if count > RefusedId::MOST {
        connection.execute(
            "DELETE FROM refused WHERE (peer, id) IN
             (SELECT peer, id FROM refused ORDER BY until LIMIT ?1)",
            [count - RefusedId::MOST],
        )?;
    }
    Ok(())
}

/// The ids of `ids` that are recorded for `peer`, or for all peers.
pub(super) fn find(
    connection: &Connection,
    peer: &str,
    ids: &[[u8; 32]],
    now: u64,
) -> rusqlite::Result<HashMap<[u8; 32], String>> {
    let mut found = HashMap::new();
    if connection.query_row("SELECT NOT EXISTS (SELECT 1 FROM refused)", [], |row| row.get(0))? {
        return Ok(found);
    }
    let mut select = connection.prepare_cached(
        "SELECT reason FROM refused WHERE peer IN ('', ?1) AND id = ?2
         AND until > ?3 AND until <= ?4",
    )?;
    let latest = now.saturating_add(RefusedId::MOST_TERM_S) as i64;
    for id in ids {
        let reason: Option<String> =
            select.query_row(params![peer, id, now as i64, latest], |row| row.get(0)).optional()?;
        if let Some(reason) = reason {
            found.insert(*id, reason);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;

    #[test]
    fn an_id_is_remembered_for_its_peer_and_its_term() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.sqlite");
        let connection = schema::open_writer(&path).unwrap();
        let refused = |peer: &str, id: u8, term_s| RefusedId {
            peer: peer.into(),
            id: [id; 32],
            reason: "deleted".into(),
            term_s,
        };
        let ids = [[1; 32], [2; 32], [3; 32], [4; 32]];
        assert!(find(&connection, "ws://a", &ids, 100).unwrap().is_empty());
        let all = [refused("", 1, 10), refused("ws://a", 2, 10), refused("ws://b", 3, 20)];
        remember(&connection, &all, 100).unwrap();
        let found = |peer, now| {
            let mut ids: Vec<u8> =
                find(&connection, peer, &ids, now).unwrap().keys().map(|id| id[0]).collect();
            ids.sort_unstable();
            ids
        };
        assert_eq!(found("ws://a", 109), [1, 2]);
        assert_eq!(found("ws://b", 109), [1, 3]);
        assert_eq!(found("ws://b", 110), [3]);
        remember(&connection, &[refused("ws://a", 2, 90)], 110).unwrap();
        assert_eq!(found("ws://a", 150), [2]);
        // Recorded while the clock was years ahead.
        remember(&connection, &[refused("", 4, 90)], 1_000_000_000).unwrap();
        assert_eq!(found("ws://a", 1_000_000_010), [4]);
        assert_eq!(found("ws://a", 150), [0; 0]);
        remember(&connection, &[refused("ws://a", 2, u64::MAX)], 110).unwrap();
        assert_eq!(found("ws://a", 110 + RefusedId::MOST_TERM_S - 1), [2]);
    }
}
