//! What an accepted event does to the store (NIP-01 replaceable and addressable events, NIP-09
//! deletion, NIP-40 expiration). The rules give the same store whatever order events come in.

use super::event::{DELETION, Event, Lifetime, VerifiedEvent};
use crate::item::Item;
use rusqlite::{Connection, OptionalExtension, params};
use std::sync::Arc;

/// What became of an event that was handed to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is stored, durably.
    Stored,
    /// It was there already.
    Duplicate,
    /// A newer version of the same replaceable or addressable event is stored.
    Superseded,
    /// Its author has deleted it (NIP-09).
    Deleted,
    /// It expired before it came (NIP-40).
    Expired,
    /// It is ephemeral: passed on to subscriptions, never stored.
    PassedOn,
    /// The database refused the batch; nothing of it is stored.
    Failed(String),
}

/// One thing that a commit did.
#[derive(Debug, Clone)]
pub enum Step {
    /// The event is new in the store.
    Added(Arc<Event>),
    /// The item is no longer in the store.
    Removed(Item),
    /// An ephemeral event went by; it is not in the store.
    Passed(Arc<Event>),
}

/// What one commit did, in order.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// The steps; an item's last one says whether it is stored now.
    pub steps: Vec<Step>,
}

/// Applies one event inside the open transaction and notes in `change` what it did.
pub(super) fn apply(
    connection: &Connection,
    event: VerifiedEvent,
    now: u64,
    change: &mut Change,
) -> rusqlite::Result<Outcome> {
    let event = event.into_inner();
    if event.expires_at().is_some_and(|second| second <= now) {
        return Ok(Outcome::Expired);
    }
    if event.lifetime() == Lifetime::Ephemeral {
        change.steps.push(Step::Passed(Arc::new(event)));
        return Ok(Outcome::PassedOn);
    }
    if is_deleted(connection, &event)? {
        return Ok(Outcome::Deleted);
    }
    if event.address().is_some()
        && let Some(outcome) = replace(connection, &event, change)?
    {
        return Ok(outcome);
    }
    if !insert(connection, &event)? {
        return Ok(Outcome::Duplicate);
    }
    if event.kind() == DELETION {
        delete(connection, &event, change)?;
    }
    change.steps.push(Step::Added(Arc::new(event)));
    Ok(Outcome::Stored)
}

/// Removes what expired by `now`, at most `limit` events, and returns how many that were.
pub(super) fn expire(
    connection: &Connection,
    now: u64,
    limit: usize,
    change: &mut Change,
) -> rusqlite::Result<usize> {
    let mut due = connection.prepare_cached(
        "SELECT row, id, created_at, json FROM event
         WHERE expires_at IS NOT NULL AND expires_at <= ?1 ORDER BY expires_at LIMIT ?2",
    )?;
    let due: Vec<Stored> = due
        .query_map(params![now as i64, limit as i64], Stored::read)?
        .collect::<Result<_, _>>()?;
    for stored in &due {
        stored.remove(connection, change)?;
    }
    Ok(due.len())
}

/// Removes events by id, those that are there.
pub(super) fn remove(
    connection: &Connection,
    ids: &[[u8; 32]],
    change: &mut Change,
) -> rusqlite::Result<()> {
    let mut select =
        connection.prepare_cached("SELECT row, id, created_at, json FROM event WHERE id = ?1")?;
    for id in ids {
        if let Some(stored) = select.query_row([id], Stored::read).optional()? {
            stored.remove(connection, change)?;
        }
    }
    Ok(())
}

/// NIP-40: the earliest second at which a stored event expires; `u64::MAX` when none does.
pub(super) fn next_expiry(connection: &Connection) -> rusqlite::Result<u64> {
    connection
        .prepare_cached("SELECT min(expires_at) FROM event WHERE expires_at IS NOT NULL")?
        .query_row([], |row| row.get::<_, Option<i64>>(0))
        .map(|second| second.map_or(u64::MAX, |second| second.max(0) as u64))
}

/// A stored event with what it takes to remove it.
struct Stored {
    row: i64,
    item: Item,
    json: String,
}

impl Stored {
    /// From the columns row, id, created_at, json.
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            row: row.get(0)?,
            item: Item::new(row.get::<_, i64>(2)? as u64, row.get(1)?),
            json: row.get(3)?,
        })
    }

    fn remove(&self, connection: &Connection, change: &mut Change) -> rusqlite::Result<()> {
        // A row whose JSON no longer parses has lost its tag keys: look the rows up the slow way.
        match Event::parse(&self.json) {
            Ok(event) => {
                let mut untag = connection.prepare_cached(
                    "DELETE FROM tag WHERE key = ?1 AND created_at = ?2 AND id = ?3",
                )?;
                for key in event.tag_keys() {
                    untag.execute(params![
                        key.as_bytes(),
                        self.item.created_at as i64,
                        self.item.id
                    ])?;
                }
            }
            Err(_) => {
                connection.execute("DELETE FROM tag WHERE id = ?1", params![self.item.id])?;
            }
        }
        connection.prepare_cached("DELETE FROM event WHERE row = ?1")?.execute([self.row])?;
        change.steps.push(Step::Removed(self.item));
        Ok(())
    }
}

fn is_deleted(connection: &Connection, event: &Event) -> rusqlite::Result<bool> {
    // A deletion request cannot be deleted, whichever of the two came first.
    if event.kind() == DELETION {
        return Ok(false);
    }
    let by_id = connection
        .prepare_cached("SELECT 1 FROM tombstone WHERE id = ?1 AND pubkey = ?2")?
        .exists(params![event.item().id, event.pubkey()])?;
    if by_id {
        return Ok(true);
    }
    let Some(address) = event.address() else { return Ok(false) };
    connection
        .prepare_cached(
            "SELECT 1 FROM address_tombstone
             WHERE pubkey = ?1 AND kind = ?2 AND address = ?3 AND created_at >= ?4",
        )?
        .exists(params![event.pubkey(), event.kind(), address, event.item().created_at as i64])
}

/// NIP-01: the newest version stays, and of two of the same second the one with the lower id.
/// Returns what becomes of the event when it is not the one to keep; else its predecessor is gone.
fn replace(
    connection: &Connection,
    event: &Event,
    change: &mut Change,
) -> rusqlite::Result<Option<Outcome>> {
    let predecessor = connection
        .prepare_cached(
            "SELECT row, id, created_at, json FROM event
             WHERE pubkey = ?1 AND kind = ?2 AND address = ?3 AND address IS NOT NULL",
        )?
        .query_row(params![event.pubkey(), event.kind(), event.address()], Stored::read)
        .optional()?;
    let Some(predecessor) = predecessor else { return Ok(None) };
    let (old, new) = (predecessor.item, event.item());
    if new.id == old.id {
        return Ok(Some(Outcome::Duplicate));
    }
    if new.created_at < old.created_at || (new.created_at == old.created_at && new.id > old.id) {
        return Ok(Some(Outcome::Superseded));
    }
    predecessor.remove(connection, change)?;
    Ok(None)
}

/// Stores the event; returns whether it was not there before.
fn insert(connection: &Connection, event: &Event) -> rusqlite::Result<bool> {
    let item = event.item();
    let inserted = connection
        .prepare_cached(
            "INSERT INTO event (id, pubkey, created_at, kind, address, expires_at, json)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (id) DO NOTHING",
        )?
        .execute(params![
            item.id,
            event.pubkey(),
            item.created_at as i64,
            event.kind(),
            event.address(),
            event.expires_at().map(|second| i64::try_from(second).unwrap_or(i64::MAX)),
            event.json(),
        ])?;
    if inserted == 0 {
        return Ok(false);
    }
    let row = connection.last_insert_rowid();
    let mut tag = connection.prepare_cached(
        "INSERT INTO tag (key, created_at, id, kind, event) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for key in event.tag_keys() {
        tag.execute(params![key.as_bytes(), item.created_at as i64, item.id, event.kind(), row])?;
    }
    Ok(true)
}

/// NIP-09: removes the author's own events that `deletion` names, and keeps out those that come
/// later. A deletion request cannot be deleted.
fn delete(connection: &Connection, deletion: &Event, change: &mut Change) -> rusqlite::Result<()> {
    for id in deletion.deleted_ids() {
        let target = connection
            .prepare_cached(
                "SELECT row, id, created_at, json, pubkey, kind FROM event WHERE id = ?1",
            )?
            .query_row([id], |row| {
                Ok((Stored::read(row)?, row.get::<_, [u8; 32]>(4)?, row.get::<_, u16>(5)?))
            })
            .optional()?;
        match target {
            Some((_, pubkey, kind)) if kind == DELETION || pubkey != *deletion.pubkey() => {}
            Some((stored, ..)) => {
                stored.remove(connection, change)?;
                bury(connection, id, deletion.pubkey())?;
            }
            None => bury(connection, id, deletion.pubkey())?,
        }
    }
    for (kind, address) in deletion.deleted_addresses() {
        delete_address(connection, deletion, *kind, address, change)?;
    }
    Ok(())
}

fn bury(connection: &Connection, id: &[u8; 32], pubkey: &[u8; 32]) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR IGNORE INTO tombstone (id, pubkey) VALUES (?1, ?2)")?
        .execute(params![id, pubkey])?;
    Ok(())
}

/// NIP-09: all versions up to the deletion's own time are gone; later ones are welcome.
fn delete_address(
    connection: &Connection,
    deletion: &Event,
    kind: u16,
    address: &str,
    change: &mut Change,
) -> rusqlite::Result<()> {
    let until = deletion.item().created_at as i64;
    connection
        .prepare_cached(
            "INSERT INTO address_tombstone (pubkey, kind, address, created_at)
             VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO UPDATE SET created_at = max(created_at, excluded.created_at)",
        )?
        .execute(params![deletion.pubkey(), kind, address, until])?;
    let version = connection
        .prepare_cached(
            "SELECT row, id, created_at, json FROM event
             WHERE pubkey = ?1 AND kind = ?2 AND address = ?3 AND address IS NOT NULL
             AND created_at <= ?4",
        )?
        .query_row(params![deletion.pubkey(), kind, address, until], Stored::read)
        .optional()?;
    version.map_or(Ok(()), |stored| stored.remove(connection, change))
}
