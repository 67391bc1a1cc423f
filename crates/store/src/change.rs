//! The steps of a commit, and the removal of events.

use super::{deletion, sqlite_error};
use negsync_nostr::{Event, TagKey};
use negsync_reconcile::Item;
use rusqlite::{Connection, params};
use std::sync::Arc;

/// One step of a commit.
#[derive(Debug, Clone)]
pub enum Step {
    /// The event was added to the store.
    Added(Arc<Event>),
    /// The item was removed from the store.
    Removed(Item),
    /// An ephemeral event passed through; it is not stored.
    Passed(Arc<Event>),
}

/// The steps of one commit, in order.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// The steps. The last step of an item determines whether it is stored now.
    pub steps: Vec<Step>,
}

/// The effects of a transaction so far.
#[derive(Default)]
pub(super) struct Written {
    pub(super) steps: Vec<Step>,
    /// Tags of the events that it has written.
    pub(super) tags: PendingTags,
    /// Estimated number of rows that it has written to tables and indexes.
    pub(super) rows: usize,
    /// The change in the number of tombstones.
    pub(super) tombstones: i64,
    /// Position in the table `removal`. Everything up to it must be removed before the event that
    /// was applied last is answered.
    pub(super) put_off_to: Option<i64>,
}

impl From<Written> for Change {
    fn from(written: Written) -> Self {
        Self { steps: written.steps }
    }
}

/// Rows of the table `tag` that are still to be written. All rows of a transaction are written in
/// the order of the table, so that each page is searched for once.
#[derive(Default)]
pub(super) struct PendingTags(Vec<TagRow>);

/// Ordered like the table's key.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct TagRow {
    key: TagKey,
    kind: u16,
    created_at: i64,
    id: [u8; 32],
    event: i64,
}

impl PendingTags {
    /// Adds the tags of the event in `row`, which must be higher than all rows before it.
    pub(super) fn add(&mut self, event: &Event, row: i64) {
        let Item { created_at, id } = event.item();
        let kind = event.kind();
        let created_at = created_at as i64;
        let tags = event.tag_keys().iter();
        self.0.extend(tags.map(|key| TagRow { key: *key, kind, created_at, id, event: row }));
    }

    /// Writes all pending rows.
    pub(super) fn write(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        self.0.sort_unstable();
        let mut insert = connection.prepare_cached(
            "INSERT INTO tag (key, created_at, id, kind, event) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        for TagRow { key, kind, created_at, id, event } in self.0.drain(..) {
            insert.execute(params![key.as_bytes(), created_at, id, kind, event])?;
        }
        Ok(())
    }

    /// Like [`PendingTags::write`], if rows of the event in this row may be pending.
    fn write_of(&mut self, connection: &Connection, row: i64) -> rusqlite::Result<()> {
        let may_have = self.0.first().is_some_and(|first| first.event <= row);
        if may_have { self.write(connection) } else { Ok(()) }
    }
}

/// A stored event with the fields needed to remove it.
pub(super) struct StoredEvent {
    pub(super) row: i64,
    pub(super) item: Item,
    pub(super) json: String,
}

impl StoredEvent {
    /// From the columns row, id, created_at and json.
    pub(super) fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            row: row.get(0)?,
            item: Item::new(row.get::<_, i64>(2)? as u64, row.get(1)?),
            json: sqlite_error::text(row, 3)?.into_owned(),
        })
    }

    /// NIP-40: whether the event has expired.
    pub(super) fn has_expired(&self, connection: &Connection, now: u64) -> rusqlite::Result<bool> {
        connection
            .prepare_cached("SELECT 1 FROM event WHERE row = ?1 AND expires_at <= ?2")?
            .exists(params![self.row, now as i64])
    }

    pub(super) fn remove(
        &self,
        connection: &Connection,
        change: &mut Written,
    ) -> rusqlite::Result<()> {
        change.tags.write_of(connection, self.row)?;
        // If the JSON of a row no longer parses, its tag keys are unknown: search for the rows
        // instead.
        match Event::parse(&self.json) {
            Ok(event) => {
                let mut untag = connection.prepare_cached(
                    "DELETE FROM tag WHERE key = ?1 AND kind = ?2 AND created_at = ?3 AND id = ?4",
                )?;
                change.rows += event.weight();
                for key in event.tag_keys() {
                    untag.execute(params![
                        key.as_bytes(),
                        event.kind(),
                        self.item.created_at as i64,
                        self.item.id
                    ])?;
                }
                deletion::forget(connection, &event, self.row, change)?;
            }
            Err(_) => {
                connection.execute("DELETE FROM tag WHERE id = ?1", params![self.item.id])?;
                deletion::forget_row(connection, self.row, change)?;
            }
        }
        connection.prepare_cached("DELETE FROM event WHERE row = ?1")?.execute([self.row])?;
        change.steps.push(Step::Removed(self.item));
        Ok(())
    }
}
