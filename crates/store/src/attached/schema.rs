//! The common part of both relays' databases, parameterized by tables and columns: rows of events,
//! shown or not, found by row, by second, by id and by filter.

use crate::viewer::PrivateKinds;
use negsync_nostr::Event;
use negsync_nostr::Filter;
use negsync_nostr::TagKey;
use negsync_nostr::kinds::Lifetime;
use negsync_reconcile::Item;
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, params_from_iter};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;

/// Ids that one statement looks up.
const IDS_A_STATEMENT: usize = 500;

/// How a relay stores its events.
pub(super) struct Schema {
    /// Returns the reason if the database is not of a supported version.
    pub(super) check: fn(&Connection) -> rusqlite::Result<Result<(), String>>,
    /// The table of events.
    pub(super) table: &'static str,
    /// The column of row numbers, which grow with each new row.
    pub(super) row: &'static str,
    /// The column of ids, 32 bytes.
    pub(super) id: &'static str,
    /// The column of public keys, 32 bytes.
    pub(super) author: &'static str,
    /// The condition that the relay shows the row, apart from expiration.
    pub(super) shown: &'static str,
    /// NIP-40: the expiration time, as a number or text.
    pub(super) expires_at: &'static str,
    /// JSON that contains the tags: the event, or only the array.
    pub(super) tags: &'static str,
    /// The condition that an event has a tag of this name, the first bound value, with any value of
    /// the list that follows.
    pub(super) tagged: &'static str,
    /// The column of kinds in a filter that has tags. It has a plus where SQLite would otherwise
    /// read all events of a kind instead of those with the tag.
    pub(super) kind_beside_tags: &'static str,
    /// Rows and values of all tags with the bound name.
    pub(super) tags_named: &'static str,
    /// The columns from which [`Schema::read_json`] builds an event's JSON.
    pub(super) event: &'static str,
    /// The event's JSON from those columns.
    pub(super) read_json: fn(&rusqlite::Row<'_>) -> rusqlite::Result<Option<String>>,
    /// Whether deleted events leave the table. Their rows then carry no information.
    pub(super) removes_deleted: bool,
    /// The private kinds.
    pub(super) private: PrivateKinds,
}

/// A row of the table of events.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) row: i64,
    pub(super) item: Item,
    pub(super) kind: u16,
    pub(super) expires_at: Option<u64>,
    shown: bool,
    is_private: bool,
}

impl Row {
    /// Whether sets contain the event at the second `now`.
    pub(super) fn is_visible(&self, now: u64) -> bool {
        self.shown
            && self.expires_at.is_none_or(|second| second > now)
            && Lifetime::of(self.kind) != Lifetime::Ephemeral
    }

    /// Whether the event is public at the second `now`.
    pub(super) fn is_public(&self, now: u64) -> bool {
        self.is_visible(now) && !self.is_private
    }
}

/// A selection of rows.
pub(super) enum Wanted<'ids> {
    /// Rows by number, both ends included, in order.
    Rows(i64, i64),
    /// Rows by the second of `created_at`, both ends included.
    Seconds(u64, u64),
    /// Rows with these ids.
    Ids(&'ids [[u8; 32]]),
}

impl Schema {
    fn columns(&self) -> String {
        let Self { row, id, shown, expires_at, .. } = self;
        format!("{row}, {id}, created_at, kind, {shown}, {expires_at}")
    }

    /// Calls `visit` with each selected row that is a valid event.
    pub(super) fn rows(
        &self,
        connection: &Connection,
        wanted: &Wanted<'_>,
        visit: &mut dyn FnMut(Row),
    ) -> rusqlite::Result<()> {
        let (columns, table, row) = (self.columns(), self.table, self.row);
        let mut run = |condition: &str, values: Vec<Value>| {
            let sql = format!("SELECT {columns} FROM {table} WHERE {condition}");
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query(params_from_iter(values))?;
            while let Some(row) = rows.next()? {
                if let Some(row) = self.read_row(row)? {
                    visit(row);
                }
            }
            Ok(())
        };
        match wanted {
            Wanted::Rows(from, to) => run(
                &format!("{row} BETWEEN ? AND ? ORDER BY {row}"),
                vec![Value::Integer(*from), Value::Integer(*to)],
            ),
            Wanted::Seconds(from, to) => {
                let second =
                    |second: &u64| Value::Integer(i64::try_from(*second).unwrap_or(i64::MAX));
                run("created_at BETWEEN ? AND ?", vec![second(from), second(to)])
            }
            Wanted::Ids(ids) => ids.chunks(IDS_A_STATEMENT).try_for_each(|ids| {
                let condition = format!("{} IN {}", self.id, places(ids.len()));
                run(&condition, ids.iter().map(|id| Value::Blob(id.to_vec())).collect())
            }),
        }
    }

    /// Like [`Schema::rows`] for a range of rows, with the hashes of the addresses that each may
    /// have replaced.
    pub(super) fn rows_and_addresses(
        &self,
        connection: &Connection,
        from: i64,
        to: i64,
        visit: &mut dyn FnMut(Row, &[u32]),
    ) -> rusqlite::Result<()> {
        let (columns, Self { table, row, author, tags, .. }) = (self.columns(), self);
        let mut statement = connection.prepare_cached(&format!(
            "SELECT {columns}, {author}, CASE WHEN kind BETWEEN 30000 AND 39999 THEN {tags} END
             FROM {table} WHERE {row} BETWEEN ? AND ? ORDER BY {row}"
        ))?;
        let mut rows = statement.query([from, to])?;
        while let Some(row) = rows.next()? {
            let Some(read) = self.read_row(row)? else { continue };
            let addresses = match (read.kind, Lifetime::of(read.kind)) {
                (_, Lifetime::Addressable) => {
                    addresses(read.kind, row.get_ref(6)?, row.get_ref(7)?)
                }
                // nostr-rs-relay also replaces channel metadata.
                (41, _) | (_, Lifetime::Replaceable) => {
                    vec![address(read.kind, bytes(row.get_ref(6)?), "")]
                }
                _ => Vec::new(),
            };
            visit(read, &addresses);
        }
        Ok(())
    }

    /// The first and the last row number; `None` if the table is empty.
    pub(super) fn ends(&self, connection: &Connection) -> rusqlite::Result<Option<(i64, i64)>> {
        let Self { table, row, .. } = self;
        // Two statements: one statement for both ends reads the whole table.
        let end = |end: &str| {
            connection
                .prepare_cached(&format!("SELECT {end}({row}) FROM {table}"))?
                .query_row([], |row| row.get::<_, Option<i64>>(0))
        };
        Ok(end("min")?.zip(end("max")?))
    }

    /// The number of rows, shown or not.
    pub(super) fn count(&self, connection: &Connection) -> rusqlite::Result<i64> {
        let sql = format!("SELECT count(*) FROM {}", self.table);
        connection.prepare_cached(&sql)?.query_row([], |row| row.get(0))
    }

    /// The event of a row, as it is sent; `None` if the row is gone or is not a valid event.
    pub(super) fn json(
        &self,
        connection: &Connection,
        row: i64,
    ) -> rusqlite::Result<Option<String>> {
        let Self { event, table, row: column, .. } = self;
        let sql = format!("SELECT {event} FROM {table} WHERE {column} = ?");
        let mut statement = connection.prepare_cached(&sql)?;
        let mut rows = statement.query([row])?;
        rows.next()?.map_or(Ok(None), self.read_json)
    }

    /// The event of a row, parsed.
    pub(super) fn event(
        &self,
        connection: &Connection,
        row: i64,
    ) -> rusqlite::Result<Option<Event>> {
        Ok(self.json(connection, row)?.and_then(|json| Event::parse_stored(&json)))
    }

    /// Calls `visit` with every item that matches the filter and is visible at the second `now`.
    /// Ignores `limit`.
    pub(super) fn items(
        &self,
        connection: &Connection,
        filter: &Filter,
        now: u64,
        visit: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> rusqlite::Result<()> {
        if filter.is_void() {
            return Ok(());
        }
        // Values that no statement can search for: of a long value the filter holds only a hash,
        // and a missing value is stored as an empty one.
        let hidden_keys =
            filter.tags.iter().find(|keys| keys.iter().any(|key| text_of(key).is_none()));
        if let Some(keys) = hidden_keys {
            return self.items_tagged(connection, filter, keys, now, visit);
        }
        let (columns, table) = (self.columns(), self.table);
        let (condition, values) = self.condition(filter);
        let sql = format!("SELECT {columns} FROM {table} WHERE {condition}");
        let mut statement = connection.prepare(&sql)?;
        let mut rows = statement.query(params_from_iter(values))?;
        while let Some(row) = rows.next()? {
            let Some(row) = self.read_row(row)?.filter(|row| row.is_visible(now)) else { continue };
            if visit(row.item).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Like [`Schema::items`], through the rows that have one of the tags.
    fn items_tagged(
        &self,
        connection: &Connection,
        filter: &Filter,
        keys: &[TagKey],
        now: u64,
        visit: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> rusqlite::Result<()> {
        let mut tagged = BTreeSet::new();
        let Some(letter) = keys.first().map(TagKey::letter) else { return Ok(()) };
        let mut statement = connection.prepare_cached(self.tags_named)?;
        let mut rows = statement.query([char::from(letter).to_string()])?;
        while let Some(row) = rows.next()? {
            let key = row.get_ref(1)?.as_str().map(|value| TagKey::new(letter, value));
            if key.is_ok_and(|key| keys.binary_search(&key).is_ok()) {
                tagged.insert(row.get::<_, i64>(0)?);
            }
        }
        for row in tagged {
            let mut item = None;
            self.rows(connection, &Wanted::Rows(row, row), &mut |row| {
                item = row.is_visible(now).then_some(row.item);
            })?;
            let Some(item) = item else { continue };
            let event = self.event(connection, row)?;
            if event.is_some_and(|event| filter.matches(&event)) && visit(item).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Reads the first columns; `None` if they hold no event (NIP-01) of a known form.
    fn read_row(&self, row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<Row>> {
        let (id, created_at, kind) = (bytes(row.get_ref(1)?), row.get_ref(2)?, row.get_ref(3)?);
        let number = |value: ValueRef<'_>| value.as_i64().ok();
        let (Ok(id), Some(Ok(created_at)), Some(Ok(kind))) = (
            <[u8; 32]>::try_from(id),
            number(created_at).map(u64::try_from),
            number(kind).map(u16::try_from),
        ) else {
            return Ok(None);
        };
        let expires_at = match row.get_ref(5)? {
            ValueRef::Integer(second) => u64::try_from(second).ok(),
            ValueRef::Text(text) => {
                std::str::from_utf8(text).ok().and_then(|text| text.parse().ok())
            }
            _ => None,
        };
        let item = Item::new(created_at, id);
        let (row, shown, is_private) = (row.get(0)?, row.get(4)?, self.private.contains(kind));
        Ok(Some(Row { row, item, kind, expires_at, shown, is_private }))
    }

    /// The filter as an SQL condition, and the values to bind.
    fn condition(&self, filter: &Filter) -> (String, Vec<Value>) {
        let mut conditions = vec!["TRUE".to_owned()];
        let mut values = Vec::new();
        let blobs = |list: &[[u8; 32]]| -> Vec<Value> {
            list.iter().map(|bytes| Value::Blob(bytes.to_vec())).collect()
        };
        let mut list = |column: &str, list: Vec<Value>| {
            conditions.push(format!("{column} {}", places(list.len())));
            values.extend(list);
        };
        if let Some(ids) = &filter.ids {
            list(&format!("{} IN", self.id), blobs(ids));
        }
        if let Some(authors) = &filter.authors {
            list(&format!("{} IN", self.author), blobs(authors));
        }
        let numbers = |kinds: &[u16]| -> Vec<Value> {
            kinds.iter().map(|kind| Value::Integer(i64::from(*kind))).collect()
        };
        if let Some(kinds) = &filter.kinds {
            let column = if filter.tags.is_empty() { "kind" } else { self.kind_beside_tags };
            list(&format!("{column} IN"), numbers(kinds));
        }
        if !filter.without_kinds.is_empty() {
            list("kind NOT IN", numbers(&filter.without_kinds));
        }
        for keys in &filter.tags {
            let texts = keys.iter().filter_map(|key| text_of(key).map(Value::Text));
            let letter = keys.first().map_or(String::new(), |key| char::from(key.letter()).into());
            conditions.push(format!("{} {})", self.tagged, places(keys.len())));
            values.push(Value::Text(letter));
            values.extend(texts);
        }
        for (bound, sign) in [(filter.since, ">="), (filter.until, "<=")] {
            if let Some(second) = bound {
                conditions.push(format!("created_at {sign} ?"));
                values.push(Value::Integer(i64::try_from(second).unwrap_or(i64::MAX)));
            }
        }
        (conditions.join(" AND "), values)
    }
}

/// `(?, ?, ...)`
fn places(count: usize) -> String {
    let mut text = "(".to_owned();
    for place in 0..count {
        text.push_str(if place == 0 { "?" } else { ", ?" });
    }
    text.push(')');
    text
}

/// The value of a key, if the key contains it and the relay stores it unchanged.
fn text_of(key: &TagKey) -> Option<String> {
    key.value().filter(|value| !value.is_empty())
}

fn bytes(value: ValueRef<'_>) -> &[u8] {
    value.as_blob().unwrap_or_default()
}

/// The fields of an event that determine its address.
#[derive(Deserialize)]
struct ReplacesTags {
    tags: Vec<Vec<String>>,
}

/// The addresses under which an event replaces others: author, kind and `d` tag. Relays differ on
/// whether the first `d` tag counts, or any, or a missing one as an empty one; all candidates are
/// returned.
fn addresses(kind: u16, author: ValueRef<'_>, tags: ValueRef<'_>) -> Vec<u32> {
    let author = bytes(author);
    let json = tags.as_str().unwrap_or_default();
    let tags: serde_json::Result<Vec<Vec<String>>> = if json.trim_start().starts_with('[') {
        serde_json::from_str(json)
    } else {
        serde_json::from_str(json).map(|ReplacesTags { tags }| tags)
    };
    let tags = tags.unwrap_or_default();
    let values = tags.iter().filter_map(|tag| match tag.as_slice() {
        [name, value, ..] if name == "d" => Some(value.as_str()),
        [name] if name == "d" => Some(""),
        _ => None,
    });
    let mut addresses: Vec<u32> = values.map(|value| address(kind, author, value)).collect();
    if addresses.is_empty() {
        addresses.push(address(kind, author, ""));
    }
    addresses
}

fn address(kind: u16, author: &[u8], value: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    (kind, author, value).hash(&mut hasher);
    // A collision of two addresses only causes an extra comparison.
    hasher.finish() as u32
}
