//! The differences between the databases of two relays: the table of events, the visibility of
//! rows, and the construction of an event's JSON.

use super::pgoutput::{Tuple, Value};
use super::session::{DatabaseError, Outcome, RelaySession};
use negsync_nostr::kinds::Lifetime;
use negsync_nostr::{TagKey, hex};
use negsync_reconcile::Item;
use std::collections::HashMap;
use std::fmt::Write;
use tokio_postgres::Row;

/// Number of columns of [`RelayTable::row_columns`].
pub(crate) const ROW_COLUMNS: usize = 6;

/// How a relay stores its events. Each `&str` is a piece of SQL.
pub(crate) struct RelayTable {
    /// The relay's name, as its users write it.
    pub(crate) relay: &'static str,
    /// The table of events.
    pub(crate) table: &'static str,
    /// The columns that are read, each with its type.
    pub(crate) columns: &'static [(&'static str, &'static str)],
    /// The other tables that are read.
    pub(crate) other_tables: &'static [&'static str],
    /// The primary key, as bytes.
    pub(crate) key: &'static str,
    pub(crate) id: &'static str,
    pub(crate) author: &'static str,
    /// The column of times, in the form in which it is indexed.
    pub(crate) time: &'static str,
    /// The same column as a number of seconds.
    pub(crate) created_at: &'static str,
    pub(crate) kind: &'static str,
    /// NIP-40, in seconds.
    pub(crate) expires_at: &'static str,
    /// The condition that the relay shows the row, apart from expiration.
    pub(crate) shown: &'static str,
    /// The columns from which [`RelayTable::read_json`] builds an event's JSON.
    pub(crate) event: &'static str,
    /// Builds the event's JSON from those columns; the argument is the position of the first one.
    pub(crate) read_json: fn(&Row, usize) -> Option<String>,
    /// The row of a change; without JSON, if a part of it was not sent.
    pub(crate) read_change: fn(&ChangedColumns<'_>) -> Option<TableRow>,
    /// The primary key of a change.
    pub(crate) read_key: fn(&ChangedColumns<'_>) -> Option<u128>,
    /// A second in the form of the column of times.
    pub(crate) second: fn(u64) -> String,
    /// A condition that every event with one of the keys meets; others may meet it too.
    pub(crate) tagged: fn(&[TagKey]) -> String,
    /// Returns an error if the database is not of a supported version.
    pub(crate) check: fn(&RelaySession) -> Outcome<()>,
}

/// A row of the table.
#[derive(Debug, Clone)]
pub(crate) struct TableRow {
    pub(crate) key: u128,
    pub(crate) item: Item,
    pub(crate) kind: u16,
    pub(crate) expires_at: Option<u64>,
    pub(crate) shown: bool,
    /// Present if it was read.
    pub(crate) json: Option<String>,
}

impl TableRow {
    /// Whether sets contain the event at the second `now`.
    pub(crate) fn is_visible(&self, now: u64) -> bool {
        self.shown
            && self.expires_at.is_none_or(|second| second > now)
            && Lifetime::of(self.kind) != Lifetime::Ephemeral
    }
}

impl RelayTable {
    /// The columns that [`RelayTable::read_row`] reads.
    pub(crate) fn row_columns(&self) -> String {
        let Self { key, id, created_at, kind, expires_at, shown, .. } = self;
        format!("{key}, {id}, {created_at}, {kind}::int4, {expires_at}, {shown}")
    }

    /// `None` if the row does not hold a valid event (NIP-01).
    pub(crate) fn read_row(&self, row: &Row) -> Outcome<Option<TableRow>> {
        let (key, id): (&[u8], &[u8]) = (row.try_get(0)?, row.try_get(1)?);
        let (created_at, kind): (Option<i64>, i32) = (row.try_get(2)?, row.try_get(3)?);
        let expires_at: Option<i64> = row.try_get(4)?;
        let shown: Option<bool> = row.try_get(5)?;
        let row = (|| {
            Some(TableRow {
                key: key_of(key)?,
                item: Item::new(u64::try_from(created_at?).ok()?, id.try_into().ok()?),
                kind: u16::try_from(kind).ok()?,
                expires_at: expires_at.map(|second| u64::try_from(second).unwrap_or(0)),
                shown: shown.unwrap_or(false),
                json: None,
            })
        })();
        Ok(row)
    }
}

/// A key, or the part of an id that distinguishes it from all others.
pub(crate) fn key_of(bytes: &[u8]) -> Option<u128> {
    bytes.first_chunk().map(|bytes| u128::from_be_bytes(*bytes))
}

/// A row in the feed: values by column name.
pub(crate) struct ChangedColumns<'change> {
    pub(crate) names: &'change [String],
    pub(crate) values: &'change Tuple<'change>,
}

impl<'change> ChangedColumns<'change> {
    /// `None` if the table has no such column.
    pub(crate) fn value(&self, name: &str) -> Option<Value<'change>> {
        let place = self.names.iter().position(|it| it == name)?;
        self.values.get(place).copied()
    }

    /// The value, if it is not null and was sent.
    pub(crate) fn text(&self, name: &str) -> Option<&'change str> {
        match self.value(name)? {
            Value::Text(text) => Some(text),
            Value::Null | Value::Unchanged => None,
        }
    }

    pub(crate) fn is_null(&self, name: &str) -> bool {
        self.value(name) == Some(Value::Null)
    }

    pub(crate) fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        hex::decode(self.text(name)?.strip_prefix("\\x")?).ok()
    }
}

/// Fails if the table lacks one of the columns, or has it with another type.
pub(crate) fn check_columns(
    session: &RelaySession,
    table: &RelayTable,
    version: &str,
) -> Outcome<()> {
    let RelayTable { relay, table, columns, other_tables, .. } = table;
    let sql = format!(
        "SELECT attname::text, format_type(atttypid, NULL) FROM pg_attribute
         WHERE attrelid = to_regclass('{table}') AND attnum > 0 AND NOT attisdropped"
    );
    let rows = session.query(sql, &negsync_store::Deadline::default())?;
    if rows.is_empty() {
        let reason = format!(
            "it has no table {table}: it is not a database of {relay}, or the user may not see it"
        );
        return Err(DatabaseError::Refused(reason));
    }
    check_rights(session, [table].into_iter().chain(other_tables.iter()))?;
    let found = rows
        .iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect::<Outcome<HashMap<String, String>>>()?;
    let wrong = columns.iter().find_map(|(column, form)| match found.get(*column) {
        None => Some(format!("the table {table} has no column {column}")),
        Some(found) if found != form => Some(format!("the column {table}.{column} is {found}")),
        Some(_) => None,
    });
    wrong.map_or(Ok(()), |wrong| {
        let reason = format!("unknown schema: {wrong}; only {relay} {version} is known");
        Err(DatabaseError::Refused(reason))
    })
}

/// Fails if the user lacks the right to read one of the tables.
fn check_rights<'table>(
    session: &RelaySession,
    tables: impl Iterator<Item = &'table &'static str>,
) -> Outcome<()> {
    for table in tables {
        let row = session.row(format!(
            "SELECT has_table_privilege(to_regclass('{table}'), 'SELECT'), current_user::text"
        ))?;
        // A missing table is reported when it is read.
        if row.try_get::<_, Option<bool>>(0)? == Some(false) {
            let user: &str = row.try_get(1)?;
            let reason = format!(
                "the user may not read the table {table}; as its owner run \
                 GRANT SELECT ON {table} TO \"{user}\""
            );
            return Err(DatabaseError::Refused(reason));
        }
    }
    Ok(())
}

/// Text as an SQL literal. Requires `standard_conforming_strings`.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A list of byte strings as an SQL array.
pub(crate) fn byte_array<'list>(list: impl IntoIterator<Item = &'list [u8]>) -> String {
    let mut sql = "ARRAY[".to_owned();
    for (place, bytes) in list.into_iter().enumerate() {
        let comma = if place == 0 { "" } else { "," };
        let _ = write!(sql, "{comma}'\\x{}'", hex::encode(bytes));
    }
    sql.push_str("]::bytea[]");
    sql
}

/// The tag values that a condition can search for; `None` if one is known only by its hash, or may
/// be stored in more than one form.
pub(crate) fn tag_values(keys: &[TagKey]) -> Option<Vec<String>> {
    let value =
        |key: &TagKey| key.value().filter(|value| !value.is_empty() && !value.contains('\0'));
    keys.iter().map(value).collect()
}
