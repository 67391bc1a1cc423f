//! Marks up to which a store was exported.

use super::query::Hit;
use super::{ReadSnapshot, StoreError};
use negsync_nostr::hex;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

/// Number of rows in a mark.
const MARK_ROWS: i64 = 100;

/// The last rows of a store, newest first, each with the id of its event. SQLite may reuse the
/// number of a removed last row, so the last row of the mark that still has its event determines
/// where new rows begin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportMark {
    rows: Vec<(i64, String)>,
}

impl ReadSnapshot<'_> {
    /// The mark of the store in its current state.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn export_mark(&self) -> Result<ExportMark, StoreError> {
        read(self.connection()).map_err(StoreError::sqlite)
    }

    /// Keeps the hits that were stored after the mark; all hits, if no row of the mark has its
    /// event any more.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn keep_stored_after(
        &self,
        mark: &ExportMark,
        hits: &mut Vec<Hit>,
    ) -> Result<(), StoreError> {
        if let Some(last) = last_left(self.connection(), mark).map_err(StoreError::sqlite)? {
            hits.retain(|hit| hit.row() > last);
        }
        Ok(())
    }
}

fn read(connection: &Connection) -> rusqlite::Result<ExportMark> {
    let mut select = connection.prepare("SELECT row, id FROM event ORDER BY row DESC LIMIT ?1")?;
    let rows = select.query_map([MARK_ROWS], |row| {
        Ok((row.get(0)?, hex::encode(&row.get::<_, [u8; 32]>(1)?)))
    })?;
    Ok(ExportMark { rows: rows.collect::<Result<_, _>>()? })
}

/// The last row of the mark that still holds the same event.
fn last_left(connection: &Connection, mark: &ExportMark) -> rusqlite::Result<Option<i64>> {
    let mut select =
        connection.prepare("SELECT 1 FROM event WHERE row = ?1 AND hex(id) = upper(?2)")?;
    let mut last = None;
    for (row, id) in &mark.rows {
        if select.exists(rusqlite::params![row, id])? {
            last = last.max(Some(*row));
        }
    }
    Ok(last)
}
