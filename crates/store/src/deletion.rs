//! Deletion requests (NIP-09). Each removes only its targets, and keeps them out as long as the
//! request is stored.
//!
//! `tombstone` has a row for each id that a stored request names, `address_tombstone` one for each
//! address; `deletion` is the row of the request. A version that is deleted by its id frees its
//! address: an older version that arrives later, from another relay, is stored.

use super::change::{StoredEvent, Written};
use super::rules;
use super::sqlite_error;
use super::writer::STEP_ROWS;
use negsync_nostr::Event;
use negsync_nostr::kinds::{DELETION, GIFT_WRAP};
use rusqlite::{Connection, OptionalExtension, params};

/// Rows written to record and later clear a postponed removal.
const ROWS_OF_A_REMOVAL: usize = 2;

/// NIP-62: a request of a vanishing key counts as removed, although the removal takes a while.
const IS_IN_FORCE: &str = "NOT EXISTS (
    SELECT 1 FROM vanished JOIN event request ON request.row = deletion
    WHERE vanished.pubkey = request.pubkey AND pending = 1 AND request.created_at <= until)";

/// Whether a stored request of the event's author names its id; for a gift wrap, a request of a
/// recipient counts too.
pub(super) fn is_deleted_by_id(connection: &Connection, event: &Event) -> rusqlite::Result<bool> {
    let id = event.item().id;
    let mut by = connection.prepare_cached(&format!(
        "SELECT 1 FROM tombstone WHERE id = ?1 AND pubkey = ?2 AND {IS_IN_FORCE}"
    ))?;
    if by.exists(params![id, event.pubkey()])? {
        return Ok(true);
    }
    if event.kind() != GIFT_WRAP {
        return Ok(false);
    }
    // A gift wrap may have thousands of `p` tags, but hardly any id is named by a request.
    if !connection.prepare_cached("SELECT 1 FROM tombstone WHERE id = ?1")?.exists([id])? {
        return Ok(false);
    }
    for recipient in event.recipients() {
        if by.exists(params![id, recipient])? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The second up to which versions of the event's address are kept out; later versions are
/// accepted.
pub(super) fn deleted_until(
    connection: &Connection,
    event: &Event,
) -> rusqlite::Result<Option<u64>> {
    let Some(address) = event.address() else { return Ok(None) };
    connection
        .prepare_cached(&format!(
            "SELECT created_at FROM address_tombstone
             WHERE pubkey = ?1 AND kind = ?2 AND address = ?3 AND {IS_IN_FORCE}
             ORDER BY created_at DESC LIMIT 1"
        ))?
        .query_row(params![event.pubkey(), event.kind(), address], |row| row.get::<_, i64>(0))
        .optional()
        .map(|second| second.map(|second| second.max(0) as u64))
}

/// The number of ids and addresses that an author's stored requests name.
pub(super) fn named_by(connection: &Connection, author: &[u8; 32]) -> rusqlite::Result<u64> {
    let named = connection
        .prepare_cached("SELECT named FROM deleter WHERE pubkey = ?1")?
        .query_row([author], |row| row.get::<_, i64>(0))
        .optional()?;
    Ok(named.unwrap_or(0).max(0) as u64)
}

/// The number of tombstones.
pub(super) fn tombstones(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT coalesce(sum(named), 0) FROM deleter", [], |row| row.get(0))
}

/// Records what `request` keeps out, and removes the targets that it may remove. Removals that
/// exceed one step are postponed to [`remove_some`]. `row` is the row of the request.
pub(super) fn follow(
    connection: &Connection,
    request: &Event,
    row: i64,
    change: &mut Written,
) -> rusqlite::Result<()> {
    note(connection, request, row, change)?;
    let targets = targets(connection, request)?;
    let most_rows = change.rows.saturating_add(STEP_ROWS);
    let mut later = connection.prepare_cached("INSERT OR IGNORE INTO removal (id) VALUES (?1)")?;
    for id in targets {
        if change.rows < most_rows {
            remove(connection, &id, change)?;
        } else {
            later.execute([id])?;
            change.put_off_to = last_postponed(connection)?;
        }
    }
    Ok(())
}

/// The ids of stored events that the request may remove.
fn targets(connection: &Connection, request: &Event) -> rusqlite::Result<Vec<[u8; 32]>> {
    let mut targets = Vec::new();
    let mut named =
        connection.prepare_cached("SELECT pubkey, kind, json FROM event WHERE id = ?1")?;
    for id in request.deleted_ids() {
        let is_target = named
            .query_row([id], |row| {
                let (author, kind): ([u8; 32], u16) = (row.get(0)?, row.get(1)?);
                let json = sqlite_error::text(row, 2)?;
                let is_recipient = || is_recipient(&json, request.pubkey());
                Ok(rules::may_delete(request.pubkey(), &author, kind, is_recipient))
            })
            .optional()?;
        targets.extend((is_target == Some(true)).then_some(*id));
    }
    let mut version = connection.prepare_cached(
        "SELECT id FROM event
         WHERE pubkey = ?1 AND kind = ?2 AND address = ?3 AND address IS NOT NULL
         AND created_at <= ?4",
    )?;
    let until = request.item().created_at as i64;
    for (kind, d) in request.deleted_addresses() {
        let of_address = params![request.pubkey(), kind, d, until];
        targets.extend(version.query_row(of_address, |row| row.get::<_, [u8; 32]>(0)).optional()?);
    }
    Ok(targets)
}

fn remove(connection: &Connection, id: &[u8; 32], change: &mut Written) -> rusqlite::Result<()> {
    let stored = connection
        .prepare_cached("SELECT row, id, created_at, json FROM event WHERE id = ?1")?
        .query_row([id], StoredEvent::read)
        .optional()?;
    stored.map_or(Ok(()), |stored| stored.remove(connection, change))
}

fn last_postponed(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT max(seq) FROM removal")?
        .query_row([], |row| row.get::<_, Option<i64>>(0))
}

/// The first position in the table `removal` that is still pending.
pub(super) fn first_postponed(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT min(seq) FROM removal")?
        .query_row([], |row| row.get::<_, Option<i64>>(0))
}

/// Whether the removal of the event is pending: the event then counts as removed.
pub(super) fn is_postponed(connection: &Connection, id: &[u8; 32]) -> rusqlite::Result<bool> {
    connection.prepare_cached("SELECT 1 FROM removal WHERE id = ?1")?.exists([id])
}

/// Cancels the pending removal of an event: its request is gone, and the event arrived again.
pub(super) fn keep(connection: &Connection, id: &[u8; 32]) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM removal WHERE id = ?1")?.execute([id]).map(|_| ())
}

/// Performs pending removals in order until `most_rows` are written. Returns the first position
/// that is left.
pub(super) fn remove_some(
    connection: &Connection,
    most_rows: usize,
    change: &mut Written,
) -> rusqlite::Result<Option<i64>> {
    let mut first =
        connection.prepare_cached("SELECT seq, id FROM removal ORDER BY seq LIMIT 1")?;
    let mut done = connection.prepare_cached("DELETE FROM removal WHERE seq = ?1")?;
    while change.rows < most_rows {
        let next = first
            .query_row([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, [u8; 32]>(1)?)))
            .optional()?;
        let Some((seq, id)) = next else { return Ok(None) };
        remove(connection, &id, change)?;
        done.execute([seq])?;
        change.rows += ROWS_OF_A_REMOVAL;
    }
    first_postponed(connection)
}

/// NIP-59: whether a stored gift wrap is addressed to the key.
fn is_recipient(wrap: &str, key: &[u8; 32]) -> bool {
    Event::parse(wrap).is_ok_and(|wrap| wrap.recipients().any(|recipient| recipient == *key))
}

fn note(
    connection: &Connection,
    request: &Event,
    row: i64,
    change: &mut Written,
) -> rusqlite::Result<()> {
    let mut noted = 0;
    let mut by_id = connection.prepare_cached(
        "INSERT OR IGNORE INTO tombstone (id, pubkey, deletion) VALUES (?1, ?2, ?3)",
    )?;
    for id in request.deleted_ids() {
        noted += by_id.execute(params![id, request.pubkey(), row])?;
    }
    let mut by_address = connection.prepare_cached(
        "INSERT OR IGNORE INTO address_tombstone (pubkey, kind, address, created_at, deletion)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    let until = request.item().created_at as i64;
    for (kind, d) in request.deleted_addresses() {
        noted += by_address.execute(params![request.pubkey(), kind, d, until, row])?;
    }
    count(connection, request.pubkey(), noted as i64, change)
}

/// Adjusts the number of targets that an author's requests name.
fn count(
    connection: &Connection,
    pubkey: &[u8; 32],
    more: i64,
    change: &mut Written,
) -> rusqlite::Result<()> {
    if more == 0 {
        return Ok(());
    }
    change.tombstones += more;
    connection
        .prepare_cached(
            "INSERT INTO deleter (pubkey, named) VALUES (?1, ?2)
             ON CONFLICT DO UPDATE SET named = named + excluded.named",
        )?
        .execute(params![pubkey, more])?;
    connection
        .prepare_cached("DELETE FROM deleter WHERE pubkey = ?1 AND named <= 0")?
        .execute([pubkey])?;
    Ok(())
}

/// Removes the tombstones of an event that is being removed: a request that has expired or
/// vanished.
pub(super) fn forget(
    connection: &Connection,
    event: &Event,
    row: i64,
    change: &mut Written,
) -> rusqlite::Result<()> {
    let mut forgotten = 0;
    let mut by_id = connection
        .prepare_cached("DELETE FROM tombstone WHERE id = ?1 AND pubkey = ?2 AND deletion = ?3")?;
    for id in event.deleted_ids() {
        forgotten += by_id.execute(params![id, event.pubkey(), row])?;
    }
    let mut by_address = connection.prepare_cached(
        "DELETE FROM address_tombstone
         WHERE pubkey = ?1 AND kind = ?2 AND address = ?3 AND created_at = ?4 AND deletion = ?5",
    )?;
    let until = event.item().created_at as i64;
    for (kind, d) in event.deleted_addresses() {
        forgotten += by_address.execute(params![event.pubkey(), kind, d, until, row])?;
    }
    count(connection, event.pubkey(), -(forgotten as i64), change)
}

/// Like [`forget`], for a request whose JSON can no longer be parsed.
pub(super) fn forget_row(
    connection: &Connection,
    row: i64,
    change: &mut Written,
) -> rusqlite::Result<()> {
    let author: Option<[u8; 32]> = connection
        .query_row("SELECT pubkey FROM event WHERE row = ?1", [row], |row| row.get(0))
        .optional()?;
    let by_id = connection.execute("DELETE FROM tombstone WHERE deletion = ?1", [row])?;
    let by_address =
        connection.execute("DELETE FROM address_tombstone WHERE deletion = ?1", [row])?;
    let forgotten = (by_id + by_address) as i64;
    author.map_or(Ok(()), |author| count(connection, &author, -forgotten, change))
}

/// Follows all stored requests again, into empty tables.
pub(super) fn follow_all(connection: &Connection) -> rusqlite::Result<()> {
    let mut rows = connection.prepare("SELECT row FROM event WHERE kind = ?1")?;
    let rows: Vec<i64> = rows.query_map([DELETION], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut json = connection.prepare("SELECT json FROM event WHERE row = ?1")?;
    for row in rows {
        let request = json.query_row([row], |it| Ok(Event::parse(&sqlite_error::text(it, 0)?)))?;
        // Rows that are not valid events are reported by `check`.
        if let Ok(request) = request {
            follow(connection, &request, row, &mut Written::default())?;
        }
    }
    Ok(())
}
