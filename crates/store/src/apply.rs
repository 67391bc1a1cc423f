//! Applies events to the SQLite store: fetches what [`rules`](super::rules) need, and writes what
//! they decide. Also removes stored events.

use super::change::{Step, StoredEvent, Written};
use super::deletion;
use super::retention::Retaining;
use super::rules::{Decision, Known, Outcome, Predecessor, decide, decide_unseen};
use super::vanish::Vanishing;
use negsync_nostr::kinds::{DELETION, VANISH};
use negsync_nostr::{Event, VerifiedEvent};
use negsync_reconcile::Item;
use rusqlite::{Connection, OptionalExtension, params};
use std::sync::Arc;

/// State of the rules that the writer keeps beside the tables.
pub(super) struct RuleMemory {
    pub(super) vanishing: Vanishing,
    pub(super) retaining: Retaining,
}

/// Applies one event inside the open transaction and records the effect in `change`.
pub(super) fn apply(
    connection: &Connection,
    event: VerifiedEvent,
    now: u64,
    state: &mut RuleMemory,
    change: &mut Written,
) -> rusqlite::Result<Outcome> {
    let event = event.into_inner();
    let mut predecessor = None;
    let decision = match decide_unseen(&event, now) {
        Some(decision) => decision,
        None => {
            predecessor = stored_at_address(connection, &event)?;
            let known = known(connection, &event, now, state, predecessor.as_ref())?;
            decide(&event, &known, now)
        }
    };
    match decision {
        Decision::Refuse(outcome) => Ok(outcome),
        Decision::PassOn => {
            change.steps.push(Step::Passed(Arc::new(event)));
            Ok(Outcome::PassedOn)
        }
        Decision::Keep => {
            deletion::keep(connection, &event.item().id)?;
            Ok(Outcome::Duplicate)
        }
        Decision::Store => {
            if let Some(predecessor) = predecessor {
                predecessor.remove(connection, change)?;
            }
            store(connection, event, state, change)?;
            Ok(Outcome::Stored)
        }
    }
}

/// The stored facts that affect the event.
fn known(
    connection: &Connection,
    event: &Event,
    now: u64,
    state: &RuleMemory,
    predecessor: Option<&StoredEvent>,
) -> rusqlite::Result<Known> {
    let named = NamedId::find(connection, &event.item().id)?;
    let named_by_author = match event.kind() {
        DELETION => deletion::named_by(connection, event.pubkey())?,
        _ => 0,
    };
    let as_predecessor = |stored: &StoredEvent| {
        let is_gone = stored.has_expired(connection, now)?
            || deletion::is_postponed(connection, &stored.item.id)?;
        Ok::<_, rusqlite::Error>(Predecessor { item: stored.item, is_gone })
    };
    Ok(Known {
        removed_by_operator: named.by_operator,
        is_retired: state.retaining.refuses(connection, event, now)?,
        vanished_until: state.vanishing.until(connection, event)?,
        deleted_by_id: named.by_request && deletion::is_deleted_by_id(connection, event)?,
        deleted_until: deletion::deleted_until(connection, event)?,
        named_by_author,
        is_stored: named.is_stored,
        predecessor: predecessor.map(as_predecessor).transpose()?,
    })
}

/// The rows stored under an event's id. One statement reads them; for nearly every event nothing
/// else is needed.
struct NamedId {
    by_operator: bool,
    // By a deletion request of any author.
    by_request: bool,
    is_stored: bool,
}

impl NamedId {
    fn find(connection: &Connection, id: &[u8; 32]) -> rusqlite::Result<Self> {
        let mut select = connection.prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM operator_tombstone WHERE id = ?1),
                EXISTS (SELECT 1 FROM tombstone WHERE id = ?1),
                EXISTS (SELECT 1 FROM event WHERE id = ?1)",
        )?;
        select.query_row([id], |row| {
            Ok(Self { by_operator: row.get(0)?, by_request: row.get(1)?, is_stored: row.get(2)? })
        })
    }
}

/// The stored event of the same author, kind and address.
fn stored_at_address(
    connection: &Connection,
    event: &Event,
) -> rusqlite::Result<Option<StoredEvent>> {
    let Some(address) = event.address() else { return Ok(None) };
    connection
        .prepare_cached(
            "SELECT row, id, created_at, json FROM event
             WHERE pubkey = ?1 AND kind = ?2 AND address = ?3 AND address IS NOT NULL",
        )?
        .query_row(params![event.pubkey(), event.kind(), address], StoredEvent::read)
        .optional()
}

/// Writes a new event, and follows it if it is a request.
fn store(
    connection: &Connection,
    event: Event,
    state: &mut RuleMemory,
    change: &mut Written,
) -> rusqlite::Result<()> {
    let row = insert(connection, &event, change)?;
    if event.kind() == DELETION {
        deletion::follow(connection, &event, row, change)?;
    }
    if event.kind() == VANISH {
        state.vanishing.follow(connection, &event)?;
    }
    state.retaining.stored(&event);
    change.steps.push(Step::Added(Arc::new(event)));
    Ok(())
}

/// Stored events that are read at a time for removal: each may have the maximum length.
pub(super) const REMOVED_AT_ONCE: usize = 32;

/// Removes events that expired by `now`, until `most_rows` are written. Returns whether more may be
/// left.
pub(super) fn expire(
    connection: &Connection,
    now: u64,
    most_rows: usize,
    change: &mut Written,
) -> rusqlite::Result<bool> {
    let mut due = connection.prepare_cached(
        "SELECT row, id, created_at, json FROM event
         WHERE expires_at IS NOT NULL AND expires_at <= ?1 ORDER BY expires_at LIMIT ?2",
    )?;
    remove_in_turn(connection, most_rows, change, |limit| {
        due.query_map(params![now as i64, limit as i64], StoredEvent::read)?.collect()
    })
}

/// Removes the events that `next` reads, a bounded number at a time, until it reads none or
/// `most_rows` are written. Returns whether more may be left.
pub(super) fn remove_in_turn(
    connection: &Connection,
    most_rows: usize,
    change: &mut Written,
    mut next: impl FnMut(usize) -> rusqlite::Result<Vec<StoredEvent>>,
) -> rusqlite::Result<bool> {
    loop {
        let some = next(REMOVED_AT_ONCE)?;
        let was_full = some.len() == REMOVED_AT_ONCE;
        for stored in some {
            if change.rows >= most_rows {
                return Ok(true);
            }
            stored.remove(connection, change)?;
        }
        if !was_full {
            return Ok(false);
        }
    }
}

/// Removes stored events by id, from the end of `ids`, until `most_rows` are written. `ids` keeps
/// those that are still to be removed.
pub(super) fn remove(
    connection: &Connection,
    ids: &mut Vec<[u8; 32]>,
    most_rows: usize,
    change: &mut Written,
) -> rusqlite::Result<()> {
    let mut select =
        connection.prepare_cached("SELECT row, id, created_at, json FROM event WHERE id = ?1")?;
    while change.rows < most_rows
        && let Some(id) = ids.pop()
    {
        if let Some(stored) = select.query_row([id], StoredEvent::read).optional()? {
            stored.remove(connection, change)?;
        }
    }
    Ok(())
}

/// NIP-40: the earliest second after `after` at which a stored event expires; `u64::MAX` if none
/// does.
pub(super) fn next_expiry(connection: &Connection, after: u64) -> rusqlite::Result<u64> {
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    connection
        .prepare_cached("SELECT min(expires_at) FROM event WHERE expires_at > ?1")?
        .query_row([after], |row| row.get::<_, Option<i64>>(0))
        .map(|second| second.map_or(u64::MAX, |second| second.max(0) as u64))
}

/// NIP-40: the events that expire after the second `after` and up to the second `until`.
pub(super) fn due(connection: &Connection, after: u64, until: u64) -> rusqlite::Result<Vec<Item>> {
    let mut due = connection.prepare_cached(
        "SELECT created_at, id FROM event WHERE expires_at > ?1 AND expires_at <= ?2",
    )?;
    let due = due.query_map(params![after as i64, until as i64], |row| {
        Ok(Item::new(row.get::<_, i64>(0)? as u64, row.get(1)?))
    })?;
    due.collect()
}

/// Writes the event and returns its row. Its tags are written later, together with those of other
/// events.
fn insert(connection: &Connection, event: &Event, change: &mut Written) -> rusqlite::Result<i64> {
    let item = event.item();
    connection
        .prepare_cached(
            "INSERT INTO event (id, pubkey, created_at, kind, address, expires_at, json)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
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
    let row = connection.last_insert_rowid();
    change.tags.add(event, row);
    Ok(row)
}
