//! The recorded state of retention: the rules, the floors below which events are refused, and the
//! ids that were removed last, which syncs need not request.

use super::{RETIRED, Retention};
use negsync_reconcile::Item;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::HashMap;

/// Maximum number of recorded ids.
const MOST_IDS: i64 = 1_000_000;

/// The rules in force, and the second up to which the rule of size has removed everything.
pub(super) fn load(connection: &Connection) -> rusqlite::Result<(Retention, u64)> {
    let found = connection
        .query_row("SELECT rules, floor FROM retention", [], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))
        })
        .optional()?;
    let Some((rules, floor)) = found else { return Ok(Default::default()) };
    Ok((Retention::from_text(&rules), floor.unsigned_abs()))
}

/// Puts other rules in force: events that the old rules kept out may come again.
pub(super) fn change(connection: &Connection, rules: &Retention) -> rusqlite::Result<()> {
    let rules = rules.to_text();
    let transaction = connection.unchecked_transaction()?;
    transaction.execute_batch(
        "DELETE FROM retention; DELETE FROM retention_floor; DELETE FROM retired;",
    )?;
    transaction.execute("DELETE FROM refused WHERE reason = ?1", [RETIRED])?;
    // A complete reading of a peer was complete only under the old rules.
    transaction
        .execute("UPDATE sync_mark SET read_from = NULL, read_to = NULL, whole_at = NULL", [])?;
    transaction.execute("INSERT INTO retention (rules, floor) VALUES (?1, 0)", [rules])?;
    transaction.commit()
}

/// Raises the second up to which the rule of size keeps events out.
pub(super) fn raise(connection: &Connection, floor: u64) -> rusqlite::Result<()> {
    connection.execute("UPDATE retention SET floor = max(floor, ?1)", [floor as i64]).map(|_| ())
}

/// Raises the floor of an author and kind to an item that is removed.
pub(super) fn raise_of_author(
    connection: &Connection,
    (pubkey, kind): (&[u8; 32], u16),
    floor: &Item,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO retention_floor (pubkey, kind, created_at, id) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO UPDATE SET created_at = excluded.created_at, id = excluded.id
             WHERE (excluded.created_at, excluded.id) > (created_at, id)",
        )?
        .execute(params![pubkey, kind, floor.created_at as i64, floor.id])
        .map(|_| ())
}

/// Whether an item is not above the floor of its author and kind.
pub(super) fn is_below(
    connection: &Connection,
    pubkey: &[u8; 32],
    kind: u16,
    item: &Item,
) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(
            "SELECT 1 FROM retention_floor
             WHERE pubkey = ?1 AND kind = ?2 AND (created_at, id) >= (?3, ?4)",
        )?
        .exists(params![pubkey, kind, item.created_at as i64, item.id])
}

/// Records the id of a removed event.
pub(super) fn remember(connection: &Connection, id: &[u8; 32]) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO retired (id) VALUES (?1) ON CONFLICT DO NOTHING RETURNING seq",
    )?;
    let newest = insert.query_row([id], |row| row.get::<_, i64>(0)).optional()?;
    let Some(newest) = newest else { return Ok(()) };
    connection
        .prepare_cached("DELETE FROM retired WHERE seq <= ?1")?
        .execute([newest - MOST_IDS])
        .map(|_| ())
}

/// The ids of `ids` that were removed, each with the reason.
pub(crate) fn find(
    connection: &Connection,
    ids: &[[u8; 32]],
    found: &mut HashMap<[u8; 32], String>,
) -> rusqlite::Result<()> {
    let mut select = connection.prepare_cached("SELECT 1 FROM retired WHERE id = ?1")?;
    for id in ids {
        if select.exists([id])? {
            found.insert(*id, RETIRED.to_owned());
        }
    }
    Ok(())
}
