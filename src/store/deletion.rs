//! Deletion requests (NIP-09). Each removes what it names and nothing else, and keeps that out for
//! as long as the request itself is stored.
//!
//! `tombstone` holds one row for each id that a stored request names, `address_tombstone` one for
//! each address; `deletion` is the row of the request. A version that is deleted by its id gives its
//! place back: an older one that still comes, from another relay, is stored.

use super::change::{Stored, Written};
use super::event::{DELETION, Event, GIFT_WRAP, VANISH};
use super::fault;
use rusqlite::{Connection, OptionalExtension, params};

/// What cannot be deleted: requests to delete (NIP-09) and to vanish (NIP-62).
const REQUESTS: [u16; 2] = [DELETION, VANISH];

/// NIP-62: a request of a key that is vanishing is as good as gone. It takes a while until it is.
const IS_IN_FORCE: &str = "NOT EXISTS (
    SELECT 1 FROM vanished JOIN event request ON request.row = deletion
    WHERE vanished.pubkey = request.pubkey AND pending = 1 AND request.created_at <= until)";

/// Whether a stored request keeps the event out.
pub(super) fn is_deleted(connection: &Connection, event: &Event) -> rusqlite::Result<bool> {
    if REQUESTS.contains(&event.kind()) {
        return Ok(false);
    }
    Ok(is_deleted_by_id(connection, event)? || is_deleted_by_address(connection, event)?)
}

fn is_deleted_by_id(connection: &Connection, event: &Event) -> rusqlite::Result<bool> {
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
    // A wrap may have thousands of `p` tags; nearly none is named by any request.
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

/// All versions up to the request's own time are gone; later ones are welcome.
fn is_deleted_by_address(connection: &Connection, event: &Event) -> rusqlite::Result<bool> {
    let Some(address) = event.address() else { return Ok(false) };
    connection
        .prepare_cached(&format!(
            "SELECT 1 FROM address_tombstone
             WHERE pubkey = ?1 AND kind = ?2 AND address = ?3 AND created_at >= ?4
             AND {IS_IN_FORCE}"
        ))?
        .exists(params![event.pubkey(), event.kind(), address, event.item().created_at as i64])
}

/// Removes what `request` may remove of what it names, and notes what it keeps out. `row` is the
/// row of the request.
pub(super) fn follow(
    connection: &Connection,
    request: &Event,
    row: i64,
    change: &mut Written,
) -> rusqlite::Result<()> {
    note(connection, request, row)?;
    let mut named = connection.prepare_cached(
        "SELECT row, id, created_at, json, pubkey, kind FROM event WHERE id = ?1",
    )?;
    for id in request.deleted_ids() {
        let target = named
            .query_row([id], |row| {
                Ok((Stored::read(row)?, row.get::<_, [u8; 32]>(4)?, row.get::<_, u16>(5)?))
            })
            .optional()?;
        if let Some((stored, author, kind)) = target
            && !REQUESTS.contains(&kind)
            && (author == *request.pubkey()
                || kind == GIFT_WRAP && is_recipient(&stored, request.pubkey()))
        {
            stored.remove(connection, change)?;
        }
    }
    let mut version = connection.prepare_cached(
        "SELECT row, id, created_at, json FROM event
         WHERE pubkey = ?1 AND kind = ?2 AND address = ?3 AND address IS NOT NULL
         AND created_at <= ?4",
    )?;
    let until = request.item().created_at as i64;
    for (kind, d) in request.deleted_addresses() {
        let version = version
            .query_row(params![request.pubkey(), kind, d, until], Stored::read)
            .optional()?;
        if let Some(stored) = version {
            stored.remove(connection, change)?;
        }
    }
    Ok(())
}

/// NIP-59: whether a stored gift wrap is addressed to the key.
fn is_recipient(wrap: &Stored, key: &[u8; 32]) -> bool {
    Event::parse(&wrap.json).is_ok_and(|wrap| wrap.recipients().any(|recipient| recipient == *key))
}

fn note(connection: &Connection, request: &Event, row: i64) -> rusqlite::Result<()> {
    let mut by_id = connection.prepare_cached(
        "INSERT OR IGNORE INTO tombstone (id, pubkey, deletion) VALUES (?1, ?2, ?3)",
    )?;
    for id in request.deleted_ids() {
        by_id.execute(params![id, request.pubkey(), row])?;
    }
    let mut by_address = connection.prepare_cached(
        "INSERT OR IGNORE INTO address_tombstone (pubkey, kind, address, created_at, deletion)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    let until = request.item().created_at as i64;
    for (kind, d) in request.deleted_addresses() {
        by_address.execute(params![request.pubkey(), kind, d, until, row])?;
    }
    Ok(())
}

/// Forgets what an event keeps out that is being removed: a request that has expired or vanished.
pub(super) fn forget(connection: &Connection, event: &Event, row: i64) -> rusqlite::Result<()> {
    let mut by_id = connection
        .prepare_cached("DELETE FROM tombstone WHERE id = ?1 AND pubkey = ?2 AND deletion = ?3")?;
    for id in event.deleted_ids() {
        by_id.execute(params![id, event.pubkey(), row])?;
    }
    let mut by_address = connection.prepare_cached(
        "DELETE FROM address_tombstone
         WHERE pubkey = ?1 AND kind = ?2 AND address = ?3 AND created_at = ?4 AND deletion = ?5",
    )?;
    let until = event.item().created_at as i64;
    for (kind, d) in event.deleted_addresses() {
        by_address.execute(params![event.pubkey(), kind, d, until, row])?;
    }
    Ok(())
}

/// As [`forget`], of a request whose JSON can no longer be read.
pub(super) fn forget_row(connection: &Connection, row: i64) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM tombstone WHERE deletion = ?1", [row])?;
    connection.execute("DELETE FROM address_tombstone WHERE deletion = ?1", [row])?;
    Ok(())
}

/// Follows all stored requests anew, into empty tables.
pub(super) fn follow_all(connection: &Connection) -> rusqlite::Result<()> {
    let mut rows = connection.prepare("SELECT row FROM event WHERE kind = ?1")?;
    let rows: Vec<i64> = rows.query_map([DELETION], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut json = connection.prepare("SELECT json FROM event WHERE row = ?1")?;
    for row in rows {
        let request = json.query_row([row], |it| Ok(Event::parse(&fault::text(it, 0)?)))?;
        // One that is no event any more is for `check`.
        if let Ok(request) = request {
            follow(connection, &request, row, &mut Written::default())?;
        }
    }
    Ok(())
}
