//! nostr-rs-relay on PostgreSQL, schema 5, used by 0.8.12 and 0.9: one row for each event, in the
//! table `event`, with its whole JSON.
//!
//! Deleted and replaced events are hidden or removed. A row is shown if `hidden` is 0 and
//! `expires_at` is null or in the future.

use super::relay_table::{
    ChangedColumns, RelayTable, TableRow, byte_array, check_columns, key_of, quoted, tag_values,
};
use super::session::{DatabaseError, Outcome, RelaySession};
use negsync_nostr::TagKey;
use negsync_nostr::hex;
use negsync_reconcile::Item;
use negsync_store::DAY_S;
use tokio_postgres::Row;

/// The highest supported number in its table of migrations.
const VERSION: i64 = 5;
/// The latest time that PostgreSQL accepts.
const LAST_SECOND: u64 = 9_000_000_000_000;

pub(crate) const TABLE: RelayTable = RelayTable {
    relay: "nostr-rs-relay",
    table: "event",
    columns: &[
        ("id", "bytea"),
        ("pub_key", "bytea"),
        ("created_at", "timestamp with time zone"),
        ("kind", "integer"),
        ("content", "bytea"),
        ("hidden", "bit"),
        ("expires_at", "timestamp with time zone"),
    ],
    other_tables: &["tag", "migrations"],
    key: "id",
    id: "id",
    author: "pub_key",
    time: "created_at",
    created_at: "floor(extract(epoch FROM created_at))::int8",
    kind: "kind",
    expires_at: "floor(extract(epoch FROM expires_at))::int8",
    shown: "hidden = B'0'",
    event: "content",
    read_json,
    read_change,
    read_key,
    second: |second| format!("to_timestamp({})", second.min(LAST_SECOND)),
    tagged,
    check,
};

fn check(session: &RelaySession) -> Outcome<()> {
    check_columns(session, &TABLE, &format!("with schema {VERSION}"))?;
    let version: Option<i64> =
        session.row("SELECT max(serial_number)::int8 FROM migrations")?.try_get(0)?;
    if version != Some(VERSION) {
        let found = version.map_or("no schema".into(), |version| format!("schema {version}"));
        let reason = format!(
            "unknown schema: it has {found} of nostr-rs-relay, and only {VERSION} is known"
        );
        return Err(DatabaseError::Refused(reason));
    }
    Ok(())
}

/// Values of lower-case hex are stored as bytes in a column of their own.
fn tagged(keys: &[TagKey]) -> String {
    let Some(letter) = keys.first().map(|key| char::from(key.letter()).to_string()) else {
        return "FALSE".into();
    };
    let named = format!("id IN (SELECT event_id FROM tag WHERE name = {}", quoted(&letter));
    let Some(values) = tag_values(keys) else { return format!("{named})") };
    let hex: Vec<Vec<u8>> = values.iter().filter_map(|value| hex::decode(value).ok()).collect();
    let texts = byte_array(values.iter().map(String::as_bytes));
    let hex = byte_array(hex.iter().map(Vec::as_slice));
    format!("{named} AND (value = ANY({texts}) OR value_hex = ANY({hex})))")
}

fn read_json(row: &Row, first: usize) -> Option<String> {
    row.try_get(first).ok().and_then(|bytes: Vec<u8>| String::from_utf8(bytes).ok())
}

fn read_key(columns: &ChangedColumns<'_>) -> Option<u128> {
    key_of(&columns.bytes("id")?)
}

fn read_change(columns: &ChangedColumns<'_>) -> Option<TableRow> {
    let id = columns.bytes("id")?;
    let item = Item::new(seconds(columns.text("created_at")?)?, id.as_slice().try_into().ok()?);
    Some(TableRow {
        key: key_of(&id)?,
        item,
        kind: columns.text("kind")?.parse().ok()?,
        expires_at: columns.text("expires_at").and_then(seconds),
        shown: columns.text("hidden") == Some("0"),
        json: columns.bytes("content").and_then(|bytes| String::from_utf8(bytes).ok()),
    })
}

/// Parses a time as PostgreSQL writes it in UTC, `2026-11-27 06:45:00+00`. Fractions of a second
/// are dropped.
fn seconds(text: &str) -> Option<u64> {
    let (day, time) = text.strip_suffix("+00")?.split_once(' ')?;
    let mut day = day.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (day.next()??, day.next()??, day.next()??);
    let time = time.split_once('.').map_or(time, |(time, _)| time);
    let mut time = time.splitn(3, ':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    let seconds =
        days(year, month, day).checked_mul(DAY_S as i64)? + hour * 3_600 + minute * 60 + second;
    u64::try_from(seconds).ok()
}

/// Days since the Unix epoch. The year begins in March here, so that a leap day is its last day.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month < 3 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let leap_days = year / 4 - year / 100 + year / 400;
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_postgresql_writes_them() {
        for (text, expected) in [
            ("1970-01-01 00:00:00+00", Some(0)),
            ("2024-02-29 12:00:01+00", Some(1_709_208_001)),
            ("2000-03-01 00:00:00.5+00", Some(951_868_800)),
            ("2100-12-31 23:59:59+00", Some(4_133_980_799)),
            ("10000-01-01 00:00:00+00", Some(253_402_300_800)),
            ("1969-12-31 23:59:59+00", None),
            ("infinity", None),
            ("2024-02-29 12:00:01+01", None),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }
}
