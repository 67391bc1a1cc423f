//! Finds the next events to remove, one step at a time, and the events to refuse.

use super::{Retention, floors, is_removed_by_size};
use crate::change::{StoredEvent, Written};
use negsync_nostr::Event;
use negsync_reconcile::Item;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::BTreeSet;

/// Maximum number of events that a step removes.
const STEP_EVENTS: usize = 128;
/// Maximum number of authors, or pairs of author and kind, that a step checks without a result.
const STEP_LOOKS: usize = 256;
/// Interval between checks of age and size while nothing is due, in seconds.
const LOOK_AGAIN_S: u64 = 10;
/// Extra share by which the store is made smaller than its maximum, as one part in this many.
const SLACK_PARTS: u64 = 20;

/// The writer's state of retention.
pub(crate) struct Retaining {
    rules: Retention,
    // The rule of size has removed all events up to this second.
    floor: u64,
    // Authors and kinds that may have more events than are kept.
    crowded: BTreeSet<([u8; 32], u16)>,
    // Author and kind up to which all have been checked since the rules were put in force; `None`
    // once all have.
    walked_to: Option<(Vec<u8>, i64)>,
    // The second of the next check of age and size.
    look_at: u64,
    // The store was found too large and is not small enough yet.
    is_shrinking: bool,
}

/// The events that a step removes.
#[derive(Default)]
pub(crate) struct Doomed {
    ids: Vec<[u8; 32]>,
    floor: Option<u64>,
    floor_of_author: Option<([u8; 32], u16, Item)>,
}

impl Doomed {
    pub(crate) fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.floor.is_none()
    }
}

impl Retaining {
    /// Loads the configured rules, or those recorded in the store.
    pub(crate) fn load(
        connection: &Connection,
        wanted: Option<Retention>,
    ) -> rusqlite::Result<Self> {
        let (rules, floor) = floors::load(connection)?;
        let mut retaining = Self {
            walked_to: rules.counts().then(|| (Vec::new(), -1)),
            rules,
            floor,
            crowded: BTreeSet::new(),
            look_at: 0,
            is_shrinking: false,
        };
        if let Some(wanted) = wanted {
            retaining.change(connection, wanted)?;
        }
        Ok(retaining)
    }

    /// Puts rules in force.
    pub(crate) fn change(
        &mut self,
        connection: &Connection,
        wanted: Retention,
    ) -> rusqlite::Result<()> {
        self.look_at = 0;
        if wanted == self.rules {
            return Ok(());
        }
        floors::change(connection, &wanted)?;
        self.walked_to = wanted.counts().then(|| (Vec::new(), -1));
        self.crowded.clear();
        (self.rules, self.floor, self.is_shrinking) = (wanted, 0, false);
        Ok(())
    }

    /// Whether the rules keep an event out.
    pub(crate) fn refuses(
        &self,
        connection: &Connection,
        event: &Event,
        now: u64,
    ) -> rusqlite::Result<bool> {
        let (item, kind) = (event.item(), event.kind());
        let is_too_old =
            self.rules.oldest(kind, now).is_some_and(|oldest| item.created_at < oldest);
        let has_floor = self.floor > 0 && is_removed_by_size(kind);
        if is_too_old || (has_floor && item.created_at <= self.floor) {
            return Ok(true);
        }
        Ok(self.rules.per_author(kind).is_some()
            && floors::is_below(connection, event.pubkey(), kind, &item)?)
    }

    /// Records that an event was stored.
    pub(crate) fn stored(&mut self, event: &Event) {
        if self.rules.per_author(event.kind()).is_some() {
            self.suspect((*event.pubkey(), event.kind()));
        }
    }

    fn suspect(&mut self, suspect: ([u8; 32], u16)) {
        if self.crowded.len() >= Retention::MOST_SUSPECTS && !self.crowded.contains(&suspect) {
            // Strangers can bring new keys faster than they are checked: all authors are checked instead.
            self.crowded.clear();
            self.walked_to = Some((Vec::new(), -1));
        }
        self.crowded.insert(suspect);
    }

    /// Makes the next step check age and size.
    pub(crate) fn look_now(&mut self) {
        self.look_at = 0;
    }

    /// Schedules a retry.
    pub(crate) fn failed(&mut self, now: u64) {
        self.look_at = now + LOOK_AGAIN_S;
    }

    /// Whether a step has something to check.
    pub(crate) fn is_due(&self, now: u64) -> bool {
        !self.rules.is_empty()
            && (self.look_at <= now || !self.crowded.is_empty() || self.walked_to.is_some())
    }

    /// The next events to remove. Empty if nothing is due, or if the search takes another step: see
    /// [`Retaining::is_due`].
    pub(crate) fn find(&mut self, connection: &Connection, now: u64) -> rusqlite::Result<Doomed> {
        self.walk(connection)?;
        for _ in 0..STEP_LOOKS {
            let Some((pubkey, kind)) = self.crowded.first().copied() else { break };
            let doomed = self.surplus(connection, pubkey, kind)?;
            if !doomed.is_empty() {
                return Ok(doomed);
            }
            self.crowded.remove(&(pubkey, kind));
        }
        if self.look_at > now {
            return Ok(Doomed::default());
        }
        let ids = self.too_old(connection, now)?;
        if !ids.is_empty() {
            return Ok(Doomed { ids, ..Doomed::default() });
        }
        let floor = self.next_floor(connection)?;
        if floor.is_none() {
            self.look_at = now + LOOK_AGAIN_S;
        }
        Ok(Doomed { floor, ..Doomed::default() })
    }

    /// Records the result of a step.
    pub(crate) fn removed(&mut self, doomed: &Doomed) {
        self.floor = self.floor.max(doomed.floor.unwrap_or(0));
    }

    /// Checks the next authors, which may have had too many events before the rules were in force.
    fn walk(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if self.crowded.len() + STEP_LOOKS > Retention::MOST_SUSPECTS {
            return Ok(());
        }
        let Some((mut author, mut kind)) = self.walked_to.take() else { return Ok(()) };
        let mut next = connection.prepare_cached(
            "SELECT pubkey, kind FROM event INDEXED BY event_author
             WHERE (pubkey, kind) > (?1, ?2) ORDER BY pubkey, kind LIMIT 1",
        )?;
        for _ in 0..STEP_LOOKS {
            let found = next.query_row(params![author, kind], |row| {
                Ok((row.get::<_, [u8; 32]>(0)?, row.get::<_, u16>(1)?))
            });
            let Some((pubkey, found)) = found.optional()? else { return Ok(()) };
            if self.rules.per_author(found).is_some() {
                self.crowded.insert((pubkey, found));
            }
            (author, kind) = (pubkey.to_vec(), found.into());
        }
        self.walked_to = Some((author, kind));
        Ok(())
    }

    /// The events of an author beyond the newest that are kept.
    fn surplus(
        &self,
        connection: &Connection,
        pubkey: [u8; 32],
        kind: u16,
    ) -> rusqlite::Result<Doomed> {
        let Some(kept) = self.rules.per_author(kind) else { return Ok(Doomed::default()) };
        let mut select = connection.prepare_cached(
            "SELECT created_at, id FROM event INDEXED BY event_author
             WHERE pubkey = ?1 AND kind = ?2 ORDER BY created_at DESC, id DESC LIMIT ?3 OFFSET ?4",
        )?;
        let items = select.query_map(params![pubkey, kind, STEP_EVENTS as i64, kept], |row| {
            Ok(Item::new(row.get::<_, i64>(0)?.unsigned_abs(), row.get(1)?))
        })?;
        let items: Vec<Item> = items.collect::<Result<_, _>>()?;
        Ok(Doomed {
            ids: items.iter().map(|item| item.id).collect(),
            floor: None,
            floor_of_author: items.first().map(|newest| (pubkey, kind, *newest)),
        })
    }

    /// Some events that are too old, by age or by the floor.
    fn too_old(&self, connection: &Connection, now: u64) -> rusqlite::Result<Vec<[u8; 32]>> {
        let mut select = connection.prepare_cached(
            "SELECT id FROM event INDEXED BY event_kind
             WHERE kind = ?1 AND created_at < ?2 ORDER BY created_at LIMIT ?3",
        )?;
        let mut ids = Vec::new();
        for kind in kinds(connection)? {
            let by_size = (self.floor > 0 && is_removed_by_size(kind)).then(|| self.floor + 1);
            let Some(oldest) = self.rules.oldest(kind, now).max(by_size) else { continue };
            let most = STEP_EVENTS - ids.len();
            let found =
                select.query_map(params![kind, oldest as i64, most as i64], |row| row.get(0))?;
            for id in found {
                ids.push(id?);
            }
            if ids.len() == STEP_EVENTS {
                break;
            }
        }
        Ok(ids)
    }

    /// The second up to which events are removed next, while the store is too large.
    fn next_floor(&mut self, connection: &Connection) -> rusqlite::Result<Option<u64>> {
        let Some(most) = self.rules.store_bytes else { return Ok(None) };
        let most = if self.is_shrinking { most - most / SLACK_PARTS } else { most };
        self.is_shrinking = used_bytes(connection)? > most;
        if !self.is_shrinking {
            return Ok(None);
        }
        // The kind of the oldest event determines the length of a step.
        let mut oldest = connection.prepare_cached(
            "SELECT created_at FROM event INDEXED BY event_kind WHERE kind = ?1
             ORDER BY created_at LIMIT 1 OFFSET ?2",
        )?;
        let mut first: Option<(u64, u16)> = None;
        for kind in kinds(connection)?.into_iter().filter(|kind| is_removed_by_size(*kind)) {
            let second =
                oldest.query_row(params![kind, 0], |row| row.get::<_, i64>(0)).optional()?;
            let second = second.map(|second| (second.unsigned_abs(), kind));
            first = [first, second].into_iter().flatten().min();
        }
        let Some((second, kind)) = first else { return Ok(None) };
        let offset = params![kind, STEP_EVENTS as i64];
        let last = oldest.query_row(offset, |row| row.get::<_, i64>(0)).optional()?;
        Ok(Some(last.map_or(second, i64::unsigned_abs)))
    }
}

/// Removes the found events until `most_rows` are written; the rest will be found again.
pub(crate) fn retire(
    connection: &Connection,
    doomed: &Doomed,
    most_rows: usize,
    change: &mut Written,
) -> rusqlite::Result<()> {
    if let Some(floor) = doomed.floor {
        floors::raise(connection, floor)?;
    }
    if let Some((pubkey, kind, item)) = &doomed.floor_of_author {
        floors::raise_of_author(connection, (pubkey, *kind), item)?;
    }
    let mut select =
        connection.prepare_cached("SELECT row, id, created_at, json FROM event WHERE id = ?1")?;
    for id in &doomed.ids {
        if change.rows >= most_rows {
            break;
        }
        if let Some(stored) = select.query_row([id], StoredEvent::read).optional()? {
            stored.remove(connection, change)?;
            floors::remember(connection, id)?;
        }
    }
    Ok(())
}

/// The kinds of stored events.
pub(super) fn kinds(connection: &Connection) -> rusqlite::Result<Vec<u16>> {
    let mut next = connection.prepare_cached(
        "SELECT kind FROM event INDEXED BY event_kind WHERE kind > ?1 ORDER BY kind LIMIT 1",
    )?;
    let (mut kinds, mut last) = (Vec::new(), -1_i64);
    while let Some(kind) = next.query_row([last], |row| row.get::<_, u16>(0)).optional()? {
        kinds.push(kind);
        last = kind.into();
    }
    Ok(kinds)
}

/// The bytes in use in the file. Removed events leave room that is reused.
pub(super) fn used_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    let pages = |pragma: &str| -> rusqlite::Result<i64> {
        connection.pragma_query_value(None, pragma, |row| row.get(0))
    };
    let used = pages("page_count")?.saturating_sub(pages("freelist_count")?);
    Ok(used.unsigned_abs() * crate::schema::PAGE_BYTES as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspects_are_bounded_and_all_authors_are_checked_where_some_were_dropped() {
        let mut retaining = Retaining {
            rules: Retention::default(),
            floor: 0,
            crowded: BTreeSet::new(),
            walked_to: None,
            look_at: 0,
            is_shrinking: false,
        };
        let suspect = |number: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&number.to_be_bytes());
            (key, 1)
        };
        for number in 0..Retention::MOST_SUSPECTS {
            retaining.suspect(suspect(number));
        }
        retaining.suspect(suspect(0));
        assert_eq!(retaining.crowded.len(), Retention::MOST_SUSPECTS);
        assert_eq!(retaining.walked_to, None);
        retaining.suspect(suspect(Retention::MOST_SUSPECTS));
        assert_eq!(retaining.crowded.len(), 1);
        assert_eq!(retaining.walked_to, Some((Vec::new(), -1)));
    }
}
