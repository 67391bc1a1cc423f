//! Reads from one snapshot: items for a filter, and events by id.

use super::relay_table::{ROW_COLUMNS, RelayTable, byte_array};
use super::session::{Outcome, RelaySession};
use negsync_nostr::{Event, Filter, hex};
use negsync_reconcile::Item;
use negsync_store::{Deadline, PrivateKinds, SourceSnapshot, StoreError};
use std::ops::ControlFlow;
use tokio_postgres::Row;

/// Rows of numbers that are fetched at a time.
const ROWS_AT_ONCE: usize = 10_000;

/// Begins a transaction on one snapshot; returns the transactions it contains.
pub(crate) fn begin_snapshot(session: &RelaySession) -> Outcome<String> {
    session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
    Ok(session.row("SELECT pg_current_snapshot()::text")?.try_get(0)?)
}

/// Calls `visit` with each row of a statement, fetched in portions, until it returns `false`. Needs
/// an open transaction.
pub(crate) fn for_each_row(
    session: &RelaySession,
    sql: &str,
    deadline: &Deadline,
    visit: &mut dyn FnMut(&Row) -> Outcome<bool>,
) -> Outcome<()> {
    session.execute(format!("DECLARE scan NO SCROLL CURSOR FOR {sql}"))?;
    let fetch = format!("FETCH FORWARD {ROWS_AT_ONCE} FROM scan");
    'scan: loop {
        let rows = session.query(fetch.clone(), deadline)?;
        for row in &rows {
            if !visit(row)? {
                break 'scan;
            }
        }
        if rows.len() < ROWS_AT_ONCE {
            break;
        }
    }
    session.execute("CLOSE scan")
}

/// One snapshot of the database, in an open transaction.
pub(crate) struct AttachedMoment<'moment> {
    pub(crate) table: &'static RelayTable,
    pub(crate) session: &'moment RelaySession,
    pub(crate) deadline: &'moment Deadline,
    pub(crate) now: u64,
    pub(crate) database: &'moment str,
}

impl SourceSnapshot for AttachedMoment<'_> {
    fn items(
        &self,
        filter: &Filter,
        visit: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        if filter.is_void() {
            return Ok(());
        }
        let Self { table, session, deadline, now, database } = self;
        let (columns, condition) = (table.row_columns(), condition(table, filter));
        // The SQL condition on tags matches a superset: check the events themselves.
        let is_tagged = !filter.tags.is_empty();
        let event = if is_tagged { format!(", {}", table.event) } else { String::new() };
        let sql = format!("SELECT {columns}{event} FROM {} WHERE {condition}", table.table);
        for_each_row(session, &sql, deadline, &mut |row| {
            let Some(read) = table.read_row(row)?.filter(|row| row.is_visible(*now)) else {
                return Ok(true);
            };
            let event = || Event::parse_stored(&(table.read_json)(row, ROW_COLUMNS)?);
            let matches = !is_tagged || event().is_some_and(|event| filter.matches(&event));
            Ok(!matches || visit(read.item).is_continue())
        })
        .map_err(|error| error.of(database))
    }
}

fn condition(table: &RelayTable, filter: &Filter) -> String {
    let RelayTable { id, author, kind, time, second, tagged, .. } = table;
    let mut conditions = vec!["TRUE".to_owned()];
    for (column, list) in [(id, &filter.ids), (author, &filter.authors)] {
        if let Some(list) = list {
            let list = byte_array(list.iter().map(<[u8; 32]>::as_slice));
            conditions.push(format!("{column} = ANY({list})"));
        }
    }
    let numbers = |kinds: &[u16]| {
        let kinds: Vec<String> = kinds.iter().map(u16::to_string).collect();
        format!("ARRAY[{}]::int4[]", kinds.join(","))
    };
    if let Some(kinds) = &filter.kinds {
        conditions.push(format!("{kind} = ANY({})", numbers(kinds)));
    }
    if !filter.without_kinds.is_empty() {
        conditions.push(format!("{kind} <> ALL({})", numbers(&filter.without_kinds)));
    }
    for (bound, sign) in [(filter.since, ">="), (filter.until, "<=")] {
        if let Some(bound) = bound {
            conditions.push(format!("{time} {sign} {}", second(bound)));
        }
    }
    conditions.extend(filter.tags.iter().map(|keys| tagged(keys)));
    conditions.join(" AND ")
}

/// Calls `visit` with the JSON of each of the events that is public at the second `now`. An event
/// whose JSON and row differ in the id is left out and logged.
pub(crate) fn events(
    session: &RelaySession,
    table: &'static RelayTable,
    private: &PrivateKinds,
    (ids, now): (&[[u8; 32]], u64),
    deadline: &Deadline,
    visit: &mut dyn FnMut(&Item, &str),
) -> Outcome<()> {
    let (columns, ids) = (table.row_columns(), byte_array(ids.iter().map(<[u8; 32]>::as_slice)));
    let RelayTable { event, table: name, id, .. } = table;
    let sql = format!("SELECT {columns}, {event} FROM {name} WHERE {id} = ANY({ids})");
    for row in session.query(sql, deadline)? {
        let Some(read) = table.read_row(&row)? else { continue };
        if !read.is_visible(now) || private.contains(read.kind) {
            continue;
        }
        let json = (table.read_json)(&row, ROW_COLUMNS);
        let is_right = |json: &String| {
            Event::parse_stored(json)
                .is_some_and(|event| event.item() == read.item && event.id_is_hash())
        };
        match json.filter(is_right) {
            Some(json) => visit(&read.item, &json),
            None => {
                let id = hex::encode(&read.item.id);
                tracing::warn!(
                    id,
                    "an event of the relay has another id in its row; it is left out"
                );
            }
        }
    }
    Ok(())
}
