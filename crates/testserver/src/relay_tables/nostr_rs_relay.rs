//! nostr-rs-relay 0.8.12 and 0.9: one transaction for each event.

use super::{bytes, expires_at, first, is_addressable, is_replaceable, kind_of, quoted, tags};
use serde_json::Value;

const DELETION: u64 = 5;

/// The statements of one transaction. If the first one stores nothing, the others do nothing.
pub(super) fn publish(event: &Value) -> String {
    let (id, author, kind) = (bytes(event, "id"), bytes(event, "pubkey"), kind_of(event));
    if matches!(kind, 20_000..30_000) {
        return "SELECT".into();
    }
    let created_at = format!("to_timestamp({})", event["created_at"]);
    let expires_at =
        expires_at(event).map_or("NULL".into(), |second| format!("to_timestamp({second})"));
    let json = hex(event.to_string().as_bytes());
    // The events that the event replaces, or that replace it.
    let rivals = rivals(event);
    let is_shadowed = rivals.as_ref().map_or("FALSE".into(), |rivals| {
        format!("EXISTS (SELECT FROM event e WHERE {rivals} AND e.created_at >= {created_at})")
    });
    let mut statements = vec![format!(
        "INSERT INTO event (id, pub_key, created_at, expires_at, kind, content, delegated_by)
         SELECT {id}, {author}, {created_at}, {expires_at}, {kind}, '\\x{json}'::bytea, NULL
         WHERE NOT {is_shadowed} ON CONFLICT (id) DO NOTHING"
    )];
    statements.extend(tags(event).filter(|tag| tag.0.len() == 1).map(|(name, value)| {
        let (value, value_hex) = if is_hex(value) {
            ("NULL::bytea".to_owned(), format!("'\\x{value}'::bytea"))
        } else {
            (format!("'\\x{}'::bytea", hex(value.as_bytes())), "NULL::bytea".to_owned())
        };
        format!(
            "INSERT INTO tag (event_id, name, value, value_hex)
             SELECT {id}, {}, {value}, {value_hex} WHERE EXISTS (SELECT FROM event WHERE id = {id})
             ON CONFLICT (event_id, name, value, value_hex) DO NOTHING",
            quoted(name)
        )
    }));
    statements.extend(rivals.map(|rivals| {
        format!(
            "DELETE FROM event WHERE id IN (
                SELECT e.id FROM event e WHERE {rivals} ORDER BY e.created_at DESC OFFSET 1)"
        )
    }));
    let deleted: Vec<String> = tags(event)
        .filter(|tag| tag.0 == "e" && tag.1.len() == 64)
        .map(|tag| format!("'\\x{}'::bytea", tag.1))
        .collect();
    if kind == DELETION && !deleted.is_empty() {
        statements.push(format!(
            "UPDATE event SET hidden = 1::bit(1)
             WHERE kind <> {DELETION} AND pub_key = {author} AND id IN ({})",
            deleted.join(", ")
        ));
    }
    statements.join("; ")
}

fn rivals(event: &Value) -> Option<String> {
    let (author, kind) = (bytes(event, "pubkey"), kind_of(event));
    let same = format!("e.pub_key = {author} AND e.kind = {kind}");
    if is_replaceable(kind) {
        return Some(same);
    }
    let d = is_addressable(kind).then(|| first(event, "d").unwrap_or_default())?;
    let value = if is_hex(d) { "value_hex" } else { "value" };
    let bytes = if is_hex(d) { d.to_owned() } else { hex(d.as_bytes()) };
    Some(format!(
        "{same} AND EXISTS (SELECT FROM tag t
            WHERE t.event_id = e.id AND t.name = 'd' AND t.{value} = '\\x{bytes}'::bytea)"
    ))
}

/// Whether the value is stored as bytes in a column of its own.
fn is_hex(value: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f');
    value.len().is_multiple_of(2) && value.bytes().all(is_digit)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn clean_up(now: u64) -> String {
    format!("DELETE FROM event WHERE expires_at <= to_timestamp({now})")
}

pub(super) fn shown(now: u64) -> String {
    format!(
        "SELECT convert_from(content, 'UTF8') FROM event
         WHERE hidden <> 1::bit(1) AND (expires_at IS NULL OR expires_at > to_timestamp({now}))"
    )
}
