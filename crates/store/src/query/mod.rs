//! Queries: from a filter to the index that answers it. Every scan walks a covering index in order
//! of time; the events themselves are read only to be sent.
//!
//! `choice` picks the index. `walks` lists the walks along the index that answer the filter, and
//! `kind_spans` the kinds of these walks. `walk` performs one of them. `hit` reads events by row.

mod choice;
mod expired;
mod hit;
mod kind_spans;
#[cfg(test)]
mod tests;
mod walk;
mod walks;

pub use hit::Hit;

pub(crate) use choice::{Extent, choose};
pub(crate) use expired::Expired;
pub(crate) use hit::fetch;
pub(crate) use walk::{JSON_COLUMN, ScanIndex};
pub(crate) use walks::{each_walk, each_walk_newest_first, is_one_walk};

use crate::StoreError;
use crate::read_pool::ReadTransaction;
use negsync_nostr::Filter;
use negsync_reconcile::Item;
use rusqlite::{Connection, OptionalExtension};
use std::ops::ControlFlow;

/// Fixes the snapshot of the open transaction.
pub(crate) fn begin(connection: &Connection) -> rusqlite::Result<()> {
    connection.prepare_cached("SELECT 1 FROM event LIMIT 1")?.exists([]).map(|_| ())
}

/// Calls `visit` with every item that matches, in no order. Ignores the filter's limit. An item may
/// come twice if the filter lists several values of a tag.
pub(crate) fn items(
    read: &ReadTransaction<'_>,
    filter: &Filter,
    visit: &mut dyn FnMut(Item) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    if filter.is_void() {
        return Ok(());
    }
    let source = choose(read, filter, Extent::Whole)?;
    each_walk(read, filter, source, |walk| {
        walk.run(filter.since.unwrap_or(0), &mut |hit, _| Ok(visit(hit.item)))
    })
}

/// The time of the event in the middle of the table.
pub(crate) fn middle_second(connection: &Connection) -> rusqlite::Result<Option<u64>> {
    let second: Option<i64> = connection
        .query_row(
            "SELECT created_at FROM event WHERE row >= (SELECT max(row) / 2 FROM event)
             ORDER BY row LIMIT 1",
            [],
            |row| row.get(0),
        )
        .optional()?;
    Ok(second.map(|second| second as u64))
}

/// The number of events of each kind.
pub(crate) fn kinds(connection: &Connection) -> rusqlite::Result<Vec<(u16, u64)>> {
    let mut select = connection
        .prepare_cached("SELECT kind, count(*) FROM event INDEXED BY event_kind GROUP BY kind")?;
    let rows =
        select.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())))?;
    rows.collect::<Result<_, _>>()
}
