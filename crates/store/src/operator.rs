//! Removals by the relay's operator. Each removed id gets a tombstone, which keeps the event out
//! for all senders until [`undelete`] removes the tombstone.

use super::change::{StoredEvent, Written};
use super::{Filter, FilterError, ReadSnapshot, StoreError};
use negsync_nostr::kinds::{DELETION, VANISH};
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::HashMap;

/// The reason by which a sync reports that such an event is not moved.
pub const REMOVED_BY_OPERATOR: &str = "removed by the operator";

/// Rows written for one tombstone.
const TOMBSTONE_ROWS: usize = 1;

/// The events that an operator selects.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Selection {
    /// Ids, stored or not.
    pub ids: Vec<[u8; 32]>,
    /// A filter. Unless it has `kinds` or `ids`, it does not select requests to delete (NIP-09) and
    /// to vanish (NIP-62), because the events they keep out would come back.
    pub filter: Option<Filter>,
}

/// The stored events of a selection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Selected {
    /// The ids to keep out.
    pub ids: Vec<[u8; 32]>,
    /// The number of these ids that are stored.
    pub stored: u64,
    /// The number of stored requests to delete or to vanish that match the filter but are not
    /// selected.
    pub requests_left: u64,
}

/// Why bans cannot be lifted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UndeleteError {
    /// The filter uses a field that tombstones do not hold.
    #[error(
        "a removed event is known by its id, author, kind and time alone; leave tags out of the filter"
    )]
    Tags,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Finds the ids of the stored events that match a filter.
pub type FindIds<'find> = dyn Fn(&Filter) -> Result<Vec<[u8; 32]>, StoreError> + 'find;

/// The tombstones to remove.
#[derive(Debug, Clone, PartialEq)]
pub enum Undelete {
    /// Those with a selected id, and those that match the filter.
    Selection(Selection),
    /// All tombstones.
    All,
}

impl Selection {
    /// A selection by ids and by a filter, given as JSON.
    ///
    /// # Errors
    /// [`FilterError`] when the filter is invalid.
    pub fn parse(ids: Vec<[u8; 32]>, filter: Option<&str>) -> Result<Self, FilterError> {
        Ok(Self { ids, filter: filter.map(Filter::parse).transpose()? })
    }

    /// The selected stored events, in one snapshot.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn among(&self, moment: &ReadSnapshot<'_>) -> Result<Selected, StoreError> {
        self.among_found(&|filter| hits(moment, filter))
    }

    /// Like [`Selection::among`], for any engine. `stored` finds the ids of the stored events that
    /// match a filter; all its calls must use one snapshot.
    ///
    /// # Errors
    /// Those of `stored`.
    pub fn among_found(&self, stored: &FindIds<'_>) -> Result<Selected, StoreError> {
        let find = stored;
        let mut selected = Selected::default();
        let mut ids = self.ids.clone();
        let mut stored: Vec<[u8; 32]> = find(&Filter::of_ids(&self.ids))?;
        if let Some(filter) = &self.filter {
            let mut filter = filter.clone();
            if filter.kinds.is_none() && filter.ids.is_none() {
                let requests = Filter { kinds: Some(vec![DELETION, VANISH]), ..filter.clone() };
                selected.requests_left = find(&requests)?.len() as u64;
                filter.without_kinds = vec![DELETION, VANISH];
            }
            let found = find(&filter)?;
            ids.extend(&found);
            stored.extend(found);
        }
        (selected.ids, selected.stored) = (sorted(&ids), sorted(&stored).len() as u64);
        Ok(selected)
    }

    /// Whether the selection covers a removed event.
    fn covers(&self, id: &[u8; 32], facts: Option<&BuriedFacts>) -> bool {
        let by_filter = || {
            let (Some(filter), Some(facts)) = (&self.filter, facts) else { return false };
            let holds = |list: &Option<Vec<[u8; 32]>>, value| {
                list.as_ref().is_none_or(|list| list.contains(value))
            };
            holds(&filter.ids, id)
                && holds(&filter.authors, &facts.pubkey)
                && filter.takes_kind(facts.kind)
                && filter.since.is_none_or(|since| facts.created_at >= since)
                && filter.until.is_none_or(|until| facts.created_at <= until)
        };
        self.ids.contains(id) || by_filter()
    }
}

fn sorted(ids: &[[u8; 32]]) -> Vec<[u8; 32]> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn hits(moment: &ReadSnapshot<'_>, filter: &Filter) -> Result<Vec<[u8; 32]>, StoreError> {
    let hits = moment.newest(std::slice::from_ref(filter), usize::MAX)?;
    Ok(hits.into_iter().map(|hit| hit.item.id).collect())
}

/// The facts that a tombstone holds about an event that was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuriedFacts {
    /// The author's public key.
    pub pubkey: [u8; 32],
    /// Its kind.
    pub kind: u16,
    /// The `created_at`, in seconds.
    pub created_at: u64,
}

impl Undelete {
    /// Whether the tombstone of this id is selected. `facts` are present if the event was stored.
    #[must_use]
    pub fn means(&self, id: &[u8; 32], facts: Option<&BuriedFacts>) -> bool {
        match self {
            Self::All => true,
            Self::Selection(selection) => selection.covers(id, facts),
        }
    }

    /// Checks that the filter uses only fields that a tombstone holds.
    ///
    /// # Errors
    /// [`UndeleteError::Tags`] when it uses tags.
    pub fn check(&self) -> Result<(), UndeleteError> {
        match self {
            Self::Selection(Selection { filter: Some(filter), .. }) if !filter.tags.is_empty() => {
                Err(UndeleteError::Tags)
            }
            _ => Ok(()),
        }
    }
}

/// Removes events by id and keeps them out, from the end of `ids`, until `most_rows` are written.
/// `ids` keeps those that are still to be removed.
pub(super) fn delete(
    connection: &Connection,
    ids: &mut Vec<[u8; 32]>,
    most_rows: usize,
    now: u64,
    change: &mut Written,
) -> rusqlite::Result<()> {
    let mut select = connection.prepare_cached(
        "SELECT row, id, created_at, json, pubkey, kind FROM event WHERE id = ?1",
    )?;
    let mut bury = connection.prepare_cached(
        "INSERT INTO operator_tombstone (id, pubkey, kind, created_at, at)
         VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
    )?;
    while change.rows < most_rows
        && let Some(id) = ids.pop()
    {
        let found = select
            .query_row([id], |row| {
                let (pubkey, kind): ([u8; 32], u16) = (row.get(4)?, row.get(5)?);
                Ok((StoredEvent::read(row)?, pubkey, kind))
            })
            .optional()?;
        let created_at = found.as_ref().map(|(stored, ..)| stored.item.created_at as i64);
        let pubkey = found.as_ref().map(|(_, pubkey, _)| pubkey);
        let kind = found.as_ref().map(|(.., kind)| kind);
        bury.execute(params![id, pubkey, kind, created_at, now as i64])?;
        change.rows += TOMBSTONE_ROWS;
        if let Some((stored, ..)) = found {
            stored.remove(connection, change)?;
        }
    }
    Ok(())
}

/// Whether the operator has removed the event.
pub(super) fn is_deleted(connection: &Connection, id: &[u8; 32]) -> rusqlite::Result<bool> {
    connection.prepare_cached("SELECT 1 FROM operator_tombstone WHERE id = ?1")?.exists([id])
}

/// The ids of `ids` that the operator has removed, each with the reason.
pub(super) fn find(
    connection: &Connection,
    ids: &[[u8; 32]],
    found: &mut HashMap<[u8; 32], String>,
) -> rusqlite::Result<()> {
    for id in ids {
        if is_deleted(connection, id)? {
            found.insert(*id, REMOVED_BY_OPERATOR.to_owned());
        }
    }
    Ok(())
}

/// The number of events that the operator keeps out.
pub(super) fn tombstones(connection: &Connection) -> rusqlite::Result<u64> {
    connection
        .query_row("SELECT count(*) FROM operator_tombstone", [], |row| row.get::<_, i64>(0))
        .map(i64::unsigned_abs)
}

/// The ids of the selected tombstones.
///
/// # Errors
/// SQLite's errors, or when the filter uses tags.
pub(super) fn undeleted(
    connection: &Connection,
    undelete: &Undelete,
) -> Result<Vec<[u8; 32]>, UndeleteError> {
    let sqlite = |error: rusqlite::Error| UndeleteError::Store(StoreError::sqlite(error));
    undelete.check()?;
    let mut select = connection
        .prepare(
            "SELECT id, pubkey, kind, created_at FROM operator_tombstone ORDER BY created_at DESC",
        )
        .map_err(sqlite)?;
    let mut rows = select.query([]).map_err(sqlite)?;
    let mut ids = Vec::new();
    while let Some(row) = rows.next().map_err(sqlite)? {
        let (id, facts) = read_tombstone(row).map_err(sqlite)?;
        ids.extend(undelete.means(&id, facts.as_ref()).then_some(id));
    }
    Ok(ids)
}

fn read_tombstone(row: &rusqlite::Row<'_>) -> rusqlite::Result<([u8; 32], Option<BuriedFacts>)> {
    let (pubkey, kind, created_at): (Option<[u8; 32]>, Option<u16>, Option<i64>) =
        (row.get(1)?, row.get(2)?, row.get(3)?);
    let facts = pubkey.zip(kind).zip(created_at).map(|((pubkey, kind), created_at)| BuriedFacts {
        pubkey,
        kind,
        created_at: created_at as u64,
    });
    Ok((row.get(0)?, facts))
}

/// Removes tombstones, and what syncs have recorded about their ids.
pub(super) fn undelete(connection: &Connection, ids: &[[u8; 32]]) -> rusqlite::Result<()> {
    let mut exhume = connection.prepare_cached("DELETE FROM operator_tombstone WHERE id = ?1")?;
    for id in ids {
        exhume.execute([id])?;
    }
    Ok(())
}
