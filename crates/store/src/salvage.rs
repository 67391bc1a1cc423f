//! Reads a damaged store: its table without indexes, around the pages that cannot be read.

use super::StoreError;
use super::reader::ReadSnapshot;
use super::sqlite_error;
use negsync_nostr::{Event, Filter};
use rusqlite::{Connection, OptionalExtension};
use std::ops::ControlFlow;

impl ReadSnapshot<'_> {
    /// Calls `visit` with every event that can still be read and matches the filter, until it breaks
    /// off. Ignores `limit`. The order is undefined. Returns the number of places in the file that
    /// cannot be read; each may have held many events.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`] for a reason other than damage.
    pub fn salvage(
        &self,
        filter: &Filter,
        mut visit: impl FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<u64, StoreError> {
        let now = self.now();
        let mut unreadable = 0;
        let mut see = |json: &str| match Event::parse(json) {
            Ok(event) => {
                let is_wanted = event.expires_at().is_none_or(|second| second > now);
                if is_wanted && filter.matches(&event) {
                    visit(&event)
                } else {
                    ControlFlow::Continue(())
                }
            }
            Err(_) => {
                unreadable += 1;
                ControlFlow::Continue(())
            }
        };
        let gaps = walk(self.connection(), &mut see).map_err(StoreError::sqlite)?;
        Ok(gaps + unreadable)
    }
}

/// Calls `see` with the JSON of each row that can be read. Returns the number of gaps between them.
fn walk(
    connection: &Connection,
    see: &mut impl FnMut(&str) -> ControlFlow<()>,
) -> rusqlite::Result<u64> {
    // SQLite numbers rows from 1.
    let (mut next, mut gaps) = (1, 0);
    loop {
        match read_on(connection, &mut next, see) {
            Ok(()) => return Ok(gaps),
            Err(error) if sqlite_error::is_damage(&error) => gaps += 1,
            Err(error) => return Err(error),
        }
        match after_gap(connection, next)? {
            Some(row) => next = row,
            None => return Ok(gaps),
        }
    }
}

/// Reads rows from `next` on, and moves it behind each that was read.
fn read_on(
    connection: &Connection,
    next: &mut i64,
    see: &mut impl FnMut(&str) -> ControlFlow<()>,
) -> rusqlite::Result<()> {
    let mut select = connection
        .prepare_cached("SELECT row, json FROM event NOT INDEXED WHERE row >= ?1 ORDER BY row")?;
    let mut rows = select.query([*next])?;
    while let Some(row) = rows.next()? {
        // A column of another type is no event, as the caller finds.
        let json = sqlite_error::text(row, 1).unwrap_or_default();
        if see(&json).is_break() {
            return Ok(());
        }
        let Some(following) = row.get::<_, i64>(0)?.checked_add(1) else { return Ok(()) };
        *next = following;
    }
    Ok(())
}

/// The first row after the gap that begins at `from`. A page has a range of rows, so the steps are
/// doubled until one is behind the gap, and then halved.
fn after_gap(connection: &Connection, from: i64) -> rusqlite::Result<Option<i64>> {
    let mut step = 1_i64;
    let mut behind = loop {
        let Some(row) = from.checked_add(step) else { return Ok(None) };
        if can_read_from(connection, row)? {
            break row;
        }
        let Some(doubled) = step.checked_mul(2) else { return Ok(None) };
        step = doubled;
    };
    let mut in_gap = behind - step + step / 2;
    while behind - in_gap > 1 {
        let middle = in_gap + (behind - in_gap) / 2;
        match can_read_from(connection, middle)? {
            true => behind = middle,
            false => in_gap = middle,
        }
    }
    Ok(Some(behind))
}

/// Whether the first row from this one on can be read, or none follows.
fn can_read_from(connection: &Connection, row: i64) -> rusqlite::Result<bool> {
    let mut select = connection.prepare_cached(
        "SELECT length(json) FROM event NOT INDEXED WHERE row >= ?1 ORDER BY row LIMIT 1",
    )?;
    match select.query_row([row], |_| Ok(())).optional() {
        Ok(_) => Ok(true),
        Err(error) if sqlite_error::is_damage(&error) => Ok(false),
        Err(error) => Err(error),
    }
}
