//! What was added and removed since the index wrote its sets to files, so that the next start reads
//! that and not all events.
//!
//! A *mark* is made before the files are written, and they bear its random name. From then on what
//! is removed is logged, by a trigger of the table `event`, and what is added stands in later rows:
//! a mark never lies behind the last row, since its number is given again once that is removed.
//! To what files hold, whenever after the mark they were begun, all of that can be applied: first
//! what was removed, then what is there. Copies of a store and of its files can go separate ways;
//! each store says what came since the mark in itself.

use negsync_reconcile::Item;
use rusqlite::{Connection, OptionalExtension, params};

/// The random name of a mark.
pub type MarkName = [u8; 16];

/// The tables, and what keeps them. An index that is never written again, since nothing but imports
/// touch the store, must not have its removals logged for ever: at 1,000,000, or one for eight
/// events, its mark is dropped.
pub(super) const TABLES: &str = "
CREATE TABLE index_mark (
    name    BLOB NOT NULL PRIMARY KEY,
    row     INTEGER NOT NULL,
    removed INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE removed_item (
    seq        INTEGER PRIMARY KEY,
    created_at INTEGER NOT NULL,
    id         BLOB NOT NULL
) STRICT;
CREATE TRIGGER event_removed AFTER DELETE ON event WHEN EXISTS (SELECT 1 FROM index_mark) BEGIN
    INSERT INTO removed_item (created_at, id) VALUES (old.created_at, old.id);
    UPDATE index_mark SET row = (SELECT ifnull(max(row), 0) FROM event)
        WHERE row > (SELECT ifnull(max(row), 0) FROM event);
    DELETE FROM index_mark
        WHERE (SELECT max(seq) FROM removed_item) - removed > max(1000000, row / 8);
END;
";

/// Makes a mark and returns its name.
pub(super) fn begin(connection: &Connection) -> rusqlite::Result<MarkName> {
    connection
        .prepare_cached(
            "INSERT INTO index_mark VALUES (randomblob(16),
                 (SELECT ifnull(max(row), 0) FROM event),
                 (SELECT ifnull(max(seq), 0) FROM removed_item))
             RETURNING name",
        )?
        .query_row([], |row| row.get(0))
}

/// Drops every mark but this one.
pub(super) fn keep_only(connection: &Connection, name: Option<MarkName>) -> rusqlite::Result<()> {
    connection
        .prepare_cached("DELETE FROM index_mark WHERE name IS NOT ?1")?
        .execute([name])
        .map(|_| ())
}

/// Removes at most `most_rows` of the log that no mark needs. Returns whether there may be more.
/// The last stays: its number is not given again.
pub(super) fn trim(connection: &Connection, most_rows: usize) -> rusqlite::Result<bool> {
    let removed = connection
        .prepare_cached(
            "DELETE FROM removed_item WHERE seq IN (
                 SELECT seq FROM removed_item
                 WHERE seq <= (SELECT ifnull(min(removed), 1 << 62) FROM index_mark)
                   AND seq < (SELECT max(seq) FROM removed_item)
                 ORDER BY seq LIMIT ?1)",
        )?
        .execute([most_rows as i64])?;
    Ok(removed == most_rows)
}

/// The names of all marks, the latest first. There are two while files are being written, or when a
/// process was killed while it wrote them.
pub(super) fn names(connection: &Connection) -> rusqlite::Result<Vec<MarkName>> {
    let mut names =
        connection.prepare_cached("SELECT name FROM index_mark ORDER BY removed DESC, row DESC")?;
    let names = names.query_map([], |row| row.get(0))?;
    names.collect::<Result<_, _>>()
}

/// Calls `removed` with what was removed since the mark, and then `added` with what is there of what
/// was added since, and its kind. Returns whether the mark stands; without it, or where more than
/// `most_added` may have been added, nothing is called.
pub(super) fn since(
    connection: &Connection,
    name: &MarkName,
    most_added: usize,
    removed: &mut dyn FnMut(Item),
    added: &mut dyn FnMut(Item, u16),
) -> rusqlite::Result<bool> {
    let mark: Option<(i64, i64, i64)> = connection
        .prepare_cached(
            "SELECT row, removed, (SELECT ifnull(max(row), 0) FROM event) FROM index_mark
             WHERE name = ?1",
        )?
        .query_row([name], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let Some((row, logged, last)) = mark else { return Ok(false) };
    if last.saturating_sub(row) > i64::try_from(most_added).unwrap_or(i64::MAX) {
        return Ok(false);
    }
    let mut log =
        connection.prepare_cached("SELECT created_at, id FROM removed_item WHERE seq > ?1")?;
    let mut rows = log.query([logged])?;
    while let Some(row) = rows.next()? {
        removed(Item::new(row.get::<_, i64>(0)? as u64, row.get(1)?));
    }
    let mut events =
        connection.prepare_cached("SELECT created_at, id, kind FROM event WHERE row > ?1")?;
    let mut rows = events.query(params![row])?;
    while let Some(row) = rows.next()? {
        added(Item::new(row.get::<_, i64>(0)? as u64, row.get(1)?), row.get(2)?);
    }
    Ok(true)
}
