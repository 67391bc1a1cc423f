//! Additions and removals since the index wrote its sets to files, so that the next start reads
//! these instead of all events.
//!
//! A *mark* with a random name is made before the files are written, and the files bear that name.
//! Until they are complete, the table has the complement of the name: a copy of the store from
//! meanwhile may lack commits that the files have, and must not take them for its own. From then on a trigger of the table `event` logs removals, and additions are in later rows. A
//! mark never lies behind the last row, because the number of a removed last row is reused. All
//! changes since the mark can be applied to files begun at any time after it: first the removals,
//! then the additions that still exist. Copies of a store and of its files can diverge, so each
//! store records its own changes since the mark.

use negsync_reconcile::Item;
use rusqlite::{Connection, OptionalExtension, params};

/// The random name of a mark.
pub type MarkName = [u8; 16];

/// The tables and triggers. If the index is never written again, because only imports use the
/// store, the log of removals must not grow forever: at 1,000,000 rows, or one for eight events,
/// the mark is dropped.
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

/// Creates a mark that is not yet kept, and returns its name.
pub(super) fn begin(connection: &Connection) -> rusqlite::Result<MarkName> {
    let begun = connection
        .prepare_cached(
            "INSERT INTO index_mark VALUES (randomblob(16),
                 (SELECT ifnull(max(row), 0) FROM event),
                 (SELECT ifnull(max(seq), 0) FROM removed_item))
             RETURNING name",
        )?
        .query_row([], |row| row.get(0))?;
    Ok(complement(begun))
}

/// The name under which a mark is until it is kept, and the other way round.
fn complement(name: MarkName) -> MarkName {
    name.map(|byte| !byte)
}

/// Keeps this mark and drops every other one.
pub(super) fn keep(connection: &Connection, name: Option<MarkName>) -> rusqlite::Result<()> {
    if let Some(name) = name {
        connection
            .prepare_cached("UPDATE index_mark SET name = ?1 WHERE name = ?2")?
            .execute([name, complement(name)])?;
    }
    connection
        .prepare_cached("DELETE FROM index_mark WHERE name IS NOT ?1")?
        .execute([name])
        .map(|_| ())
}

/// Removes at most `most_rows` rows of the log that no mark needs. Returns whether more may be
/// left. Keeps the last row, so that its number is not reused.
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

/// The names of all marks, latest first. There are two while files are being written, and after a
/// process was killed while writing them.
pub(super) fn names(connection: &Connection) -> rusqlite::Result<Vec<MarkName>> {
    let mut names =
        connection.prepare_cached("SELECT name FROM index_mark ORDER BY removed DESC, row DESC")?;
    let names = names.query_map([], |row| row.get(0))?;
    names.collect::<Result<_, _>>()
}

/// Calls `removed` with each item removed since the mark, and then `added` with each item added
/// since that is still stored, and its kind. Returns false, without any call, if the mark does not
/// exist or more than `most_added` events may have been added.
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
