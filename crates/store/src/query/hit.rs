//! Stored events that match a filter, and reading them by row.

use crate::{StoreError, sqlite_error};
use negsync_reconcile::Item;
use rusqlite::Connection;
use rusqlite::types::Value;
use std::ops::ControlFlow;
use std::rc::Rc;

/// Reads events by their rows, in order, in one run of a statement.
pub(super) const FETCH: &str = "SELECT json, expires_at, row, id FROM rarray(?1) AS wanted
    CROSS JOIN event ON row = wanted.value";
/// Rows that one run reads.
pub(super) const FETCHED_ROWS: usize = 512;

/// A stored event that matches a filter: its item and its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// Time and id.
    pub item: Item,
    /// The event's row in the store.
    pub(super) row: i64,
}

impl Hit {
    /// The event with this row number in the engine.
    #[must_use]
    pub fn new(item: Item, row: i64) -> Self {
        Self { item, row }
    }

    /// The row number of the event in the engine.
    #[must_use]
    pub fn row(&self) -> i64 {
        self.row
    }
}

/// Calls `visit` with the JSON of the events in the order of `hits`, until it breaks off. Leaves
/// out events that are gone or that expired by `now`. Returns the number of hits that were
/// processed.
pub(crate) fn fetch(
    connection: &Connection,
    hits: &[Hit],
    now: u64,
    visit: &mut dyn FnMut(&Item, &str) -> ControlFlow<()>,
) -> Result<usize, StoreError> {
    let mut statement = connection.prepare_cached(FETCH).map_err(StoreError::sqlite)?;
    let mut looked_at = 0;
    for some in hits.chunks(FETCHED_ROWS) {
        let wanted = Rc::new(some.iter().map(|hit| Value::Integer(hit.row)).collect::<Vec<_>>());
        let mut rows = statement.query([wanted]).map_err(StoreError::sqlite)?;
        let mut left = some.iter();
        while let Some(row) = rows.next().map_err(StoreError::sqlite)? {
            let found: i64 = row.get(2).map_err(StoreError::sqlite)?;
            // The hits before it are gone.
            let Some(hit) = left.find(|hit| hit.row == found) else { break };
            let expires_at: Option<i64> = row.get(1).map_err(StoreError::sqlite)?;
            // The number of a removed row may be reused for another event.
            if row.get::<_, [u8; 32]>(3).map_err(StoreError::sqlite)? == hit.item.id
                && expires_at.is_none_or(|second| second > now as i64)
                && visit(&hit.item, &sqlite_error::text(row, 0).map_err(StoreError::sqlite)?)
                    .is_break()
            {
                return Ok(looked_at + some.len() - left.len());
            }
        }
        looked_at += some.len();
    }
    Ok(hits.len())
}
