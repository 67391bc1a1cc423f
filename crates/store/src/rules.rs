//! What an accepted event does to the store (NIP-01 replaceable and addressable events, NIP-09
//! deletion, NIP-40 expiration, NIP-62 vanishing).
//!
//! Every rule is of one form: a stored event keeps another one out. A newer version keeps out older
//! ones, a deletion request what it names, a request to vanish what its author wrote before. Whether
//! it does depends on these two events and on nothing that the store has seen before. So two stores
//! that give each other all they have end equal, whatever the history of each; but for what an
//! operator has removed.

use super::change::{Step, StoredEvent, Written};
use super::deletion;
use super::operator;
use super::retention::Retaining;
use super::vanish::Vanishing;
use negsync_nostr::kinds::{AUTHENTICATION, DELETION, Lifetime, VANISH};
use negsync_nostr::{Event, VerifiedEvent};
use negsync_reconcile::Item;
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
    /// Its author has deleted it, or the recipient of the gift wrap that it is (NIP-09, NIP-59).
    Deleted,
    /// The relay's operator has removed it.
    RemovedByOperator,
    /// It is past what the operator keeps (see [`Retention`](crate::Retention)).
    Retired,
    /// Its author has vanished, or the addressee of the gift wrap that it is (NIP-62).
    Vanished,
    /// It asks to delete more than one request, or all requests of its author, may name.
    DeletesTooMuch,
    /// It expired before it came (NIP-40).
    Expired,
    /// It is ephemeral: passed on to subscriptions, never stored. One that authenticates (NIP-42)
    /// is not passed on either.
    PassedOn,
    /// The database refused the batch; nothing of it is stored.
    Failed(String),
}

/// What the writer knows beside the tables.
pub(super) struct RuleState {
    pub(super) vanishing: Vanishing,
    pub(super) retaining: Retaining,
}

/// Applies one event inside the open transaction and notes in `change` what it did.
pub(super) fn apply(
    connection: &Connection,
    event: VerifiedEvent,
    now: u64,
    RuleState { vanishing, retaining }: &mut RuleState,
    change: &mut Written,
) -> rusqlite::Result<Outcome> {
    let event = event.into_inner();
    if event.expires_at().is_some_and(|second| second <= now) {
        return Ok(Outcome::Expired);
    }
    if event.lifetime() == Lifetime::Ephemeral {
        if event.kind() != AUTHENTICATION {
            change.steps.push(Step::Passed(Arc::new(event)));
        }
        return Ok(Outcome::PassedOn);
    }
    if operator::is_deleted(connection, &event.item().id)? {
        return Ok(Outcome::RemovedByOperator);
    }
    if retaining.refuses(connection, &event, now)? {
        return Ok(Outcome::Retired);
    }
    if vanishing.covers(connection, &event)? {
        return Ok(Outcome::Vanished);
    }
    if deletion::is_deleted(connection, &event)? {
        return Ok(Outcome::Deleted);
    }
    if event.kind() == DELETION && deletion::names_too_much(connection, &event)? {
        return Ok(Outcome::DeletesTooMuch);
    }
    if event.address().is_some()
        && let Some(outcome) = replace(connection, &event, now, change)?
    {
        return Ok(outcome);
    }
    let Some(row) = insert(connection, &event)? else {
        deletion::keep(connection, &event.item().id)?;
        return Ok(Outcome::Duplicate);
    };
    if event.kind() == DELETION {
        deletion::follow(connection, &event, row, change)?;
    }
    if event.kind() == VANISH {
        vanishing.follow(connection, &event)?;
    }
    retaining.stored(&event);
    change.steps.push(Step::Added(Arc::new(event)));
    Ok(Outcome::Stored)
}

/// How many stored events are read at a time in order to be removed: each may be as long as an event
/// can be.
pub(super) const REMOVED_AT_ONCE: usize = 32;

/// Removes what expired by `now`, until `most_rows` are written. Returns whether there may be more.
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

/// Removes what `next` reads, at most so many at a time, until that is nothing more or `most_rows` are
/// written. Returns whether there may be more.
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

/// Removes events by id, those that are there, from the end of `ids` until `most_rows` are written.
/// Leaves those in `ids` that are still to be removed.
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

/// NIP-40: the earliest second behind `after` at which a stored event expires; `u64::MAX` when
/// none does.
pub(super) fn next_expiry(connection: &Connection, after: u64) -> rusqlite::Result<u64> {
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    connection
        .prepare_cached("SELECT min(expires_at) FROM event WHERE expires_at > ?1")?
        .query_row([after], |row| row.get::<_, Option<i64>>(0))
        .map(|second| second.map_or(u64::MAX, |second| second.max(0) as u64))
}

/// NIP-40: what expires behind the second `after` and by the second `until`.
pub(super) fn due(connection: &Connection, after: u64, until: u64) -> rusqlite::Result<Vec<Item>> {
    let mut due = connection.prepare_cached(
        "SELECT created_at, id FROM event WHERE expires_at > ?1 AND expires_at <= ?2",
    )?;
    let due = due.query_map(params![after as i64, until as i64], |row| {
        Ok(Item::new(row.get::<_, i64>(0)? as u64, row.get(1)?))
    })?;
    due.collect()
}

/// NIP-01: the newest version stays, and of two of the same second the one with the lower id.
/// Returns what becomes of the event when it is not the one to keep; else its predecessor is gone.
fn replace(
    connection: &Connection,
    event: &Event,
    now: u64,
    change: &mut Written,
) -> rusqlite::Result<Option<Outcome>> {
    let predecessor = connection
        .prepare_cached(
            "SELECT row, id, created_at, json FROM event
             WHERE pubkey = ?1 AND kind = ?2 AND address = ?3 AND address IS NOT NULL",
        )?
        .query_row(params![event.pubkey(), event.kind(), event.address()], StoredEvent::read)
        .optional()?;
    let Some(predecessor) = predecessor else { return Ok(None) };
    let (old, new) = (predecessor.item, event.item());
    if new.id == old.id {
        return Ok(Some(Outcome::Duplicate));
    }
    let is_older =
        new.created_at < old.created_at || (new.created_at == old.created_at && new.id > old.id);
    // One that has expired or was deleted and is still to be removed stands in nobody's way.
    let stands = || {
        Ok::<_, rusqlite::Error>(
            !predecessor.has_expired(connection, now)?
                && !deletion::is_postponed(connection, &old.id)?,
        )
    };
    if is_older && stands()? {
        return Ok(Some(Outcome::Superseded));
    }
    predecessor.remove(connection, change)?;
    Ok(None)
}

/// Stores the event and returns its row; `None` when it was there before.
fn insert(connection: &Connection, event: &Event) -> rusqlite::Result<Option<i64>> {
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
        return Ok(None);
    }
    let row = connection.last_insert_rowid();
    let mut tag = connection.prepare_cached(
        "INSERT INTO tag (key, created_at, id, kind, event) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for key in event.tag_keys() {
        tag.execute(params![key.as_bytes(), item.created_at as i64, item.id, event.kind(), row])?;
    }
    Ok(Some(row))
}
