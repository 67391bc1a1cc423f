//! The migration that adds the kind to the rows of the tag table. A store of a million events has a
//! few million tags, so they are moved in chunks that commit one by one: an interrupted migration
//! continues at the next start.

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use std::time::Instant;

/// Rows that one transaction moves.
const CHUNK_ROWS: i64 = if cfg!(test) { 7 } else { 20_000 };
/// Length at which the write-ahead log is moved into the file, in pages.
const LOG_PAGES: u32 = 10_000;

/// The last row of a chunk, in the order of the old table.
type Last = (Vec<u8>, i64, Vec<u8>);

/// Moves every row of `tag_before_kinds` to `tag` and drops the emptied table.
pub(super) fn move_tags(connection: &mut Connection) -> rusqlite::Result<()> {
    let began = Instant::now();
    let is_empty = !connection.prepare("SELECT 1 FROM tag_before_kinds")?.exists([])?;
    if !is_empty {
        tracing::info!("upgrading the store: sorting its tags by kind; this can be interrupted");
    }
    connection.execute_batch(&format!("PRAGMA wal_autocheckpoint = {LOG_PAGES}"))?;
    while !is_done(connection)? {
        move_chunk(connection)?;
    }
    connection.execute_batch("PRAGMA wal_autocheckpoint = 0")?;
    if !is_empty {
        let elapsed_s = began.elapsed().as_secs_f64();
        tracing::info!(elapsed_s, "upgraded the store: its tags are sorted by kind");
    }
    Ok(())
}

/// Whether the old table is gone.
fn is_done(connection: &Connection) -> rusqlite::Result<bool> {
    let mut table =
        connection.prepare("SELECT 1 FROM sqlite_schema WHERE name = 'tag_before_kinds'")?;
    Ok(!table.exists([])?)
}

fn move_chunk(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let last: Option<Last> = transaction
        .query_row(
            "SELECT key, created_at, id FROM tag_before_kinds
             ORDER BY key, created_at, id LIMIT 1 OFFSET ?1",
            [CHUNK_ROWS - 1],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .optional()?;
    let copy = "INSERT INTO tag (key, created_at, id, kind, event)
        SELECT key, created_at, id, kind, event FROM tag_before_kinds";
    match last {
        Some((key, created_at, id)) => {
            let up_to = "WHERE (key, created_at, id) <= (?1, ?2, ?3)";
            transaction.execute(&format!("{copy} {up_to}"), params![key, created_at, id])?;
            let delete = format!("DELETE FROM tag_before_kinds {up_to}");
            transaction.execute(&delete, params![key, created_at, id])?;
        }
        None => {
            transaction.execute(copy, [])?;
            transaction.execute_batch("DROP TABLE tag_before_kinds")?;
        }
    }
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "CREATE TABLE tag_before_kinds (key BLOB, created_at INTEGER, id BLOB,
            kind INTEGER, event INTEGER, PRIMARY KEY (key, created_at, id)) WITHOUT ROWID;
        CREATE TABLE tag (key BLOB, created_at INTEGER, id BLOB, kind INTEGER, event INTEGER,
            PRIMARY KEY (key, kind, created_at, id)) WITHOUT ROWID;";

    /// A row's columns in order.
    type Row = (Vec<u8>, i64, Vec<u8>, i64, i64);

    fn rows(connection: &Connection, table: &str) -> Vec<Row> {
        let sql = format!("SELECT * FROM {table} ORDER BY key, created_at, id");
        let mut select = connection.prepare(&sql).unwrap();
        let rows = select.query_map([], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
        });
        rows.unwrap().collect::<Result<_, _>>().unwrap()
    }

    /// For any number of rows, interrupted after any number of chunks or not.
    #[test]
    fn every_tag_is_moved_once_however_often_that_is_interrupted() {
        for tags in 0..=2 * CHUNK_ROWS + 1 {
            let mut connection = Connection::open_in_memory().unwrap();
            connection.execute_batch(OLD).unwrap();
            for number in 0..tags {
                let insert = "INSERT INTO tag_before_kinds VALUES (?1, ?2, randomblob(32), ?3, ?4)";
                let key = [b'p', 0, (number % 3) as u8];
                connection.execute(insert, params![key, number / 5, number % 4, number]).unwrap();
            }
            let expected = rows(&connection, "tag_before_kinds");
            for _ in 0..tags % 3 {
                if !is_done(&connection).unwrap() {
                    move_chunk(&mut connection).unwrap();
                }
            }
            if !is_done(&connection).unwrap() {
                move_tags(&mut connection).unwrap();
            }
            assert_eq!(rows(&connection, "tag"), expected, "{tags} tags");
        }
    }
}
