//! nostream 3: one row for each event, in the table `events`.
//!
//! A deletion sets `deleted_at`. A replaceable event takes over the row and the key of its
//! predecessor. Expired events are hidden at once and removed some time later.

use super::relay_table::{ChangedColumns, RelayTable, TableRow, check_columns, quoted, tag_values};
use negsync_nostr::TagKey;
use negsync_nostr::hex;
use negsync_reconcile::Item;
use tokio_postgres::Row;

/// For more values than this, one condition for all of them is cheaper than one for each.
const VALUES_BY_INDEX: usize = 200;

pub(crate) const TABLE: RelayTable = RelayTable {
    relay: "nostream",
    table: "events",
    columns: &[
        ("id", "uuid"),
        ("event_id", "bytea"),
        ("event_pubkey", "bytea"),
        ("event_kind", "integer"),
        ("event_created_at", "integer"),
        ("event_content", "text"),
        ("event_tags", "jsonb"),
        ("event_signature", "bytea"),
        ("expires_at", "integer"),
        ("deleted_at", "timestamp without time zone"),
    ],
    other_tables: &[],
    key: "uuid_send(id)",
    id: "event_id",
    author: "event_pubkey",
    time: "event_created_at",
    created_at: "event_created_at::int8",
    kind: "event_kind",
    expires_at: "expires_at::int8",
    shown: "deleted_at IS NULL",
    event: "event_id, event_pubkey, event_created_at::int8, event_kind::int4, event_tags::text, \
            event_content, event_signature",
    read_json,
    read_change,
    read_key,
    second: |second| second.min(i64::MAX as u64).to_string(),
    tagged,
    check: |session| check_columns(session, &TABLE, "3"),
};

/// Matches a superset: tags that contain both texts in any order.
fn tagged(keys: &[TagKey]) -> String {
    let Some(letter) = keys.first().map(|key| char::from(key.letter()).to_string()) else {
        return "FALSE".into();
    };
    let holds = |tag: &[&str]| quoted(&serde_json::json!([tag]).to_string());
    match tag_values(keys) {
        None => format!("event_tags @> {}::jsonb", holds(&[&letter])),
        Some(values) if values.len() <= VALUES_BY_INDEX => {
            let each = values
                .iter()
                .map(|value| format!("event_tags @> {}::jsonb", holds(&[&letter, value])));
            format!("({})", each.collect::<Vec<_>>().join(" OR "))
        }
        Some(values) => {
            let each = values.iter().map(|value| holds(&[&letter, value]));
            let list = each.collect::<Vec<_>>().join(",");
            format!("event_tags @> ANY(ARRAY[{list}]::jsonb[])")
        }
    }
}

fn json(
    id: &[u8],
    author: &[u8],
    (created_at, kind): (u64, u16),
    tags: Option<&str>,
    content: &str,
    signature: &[u8],
) -> Option<String> {
    let tags: serde_json::Value = serde_json::from_str(tags.unwrap_or("[]")).ok()?;
    let event = serde_json::json!({
        "id": hex::encode(id),
        "pubkey": hex::encode(author),
        "created_at": created_at,
        "kind": kind,
        "tags": tags,
        "content": content,
        "sig": hex::encode(signature),
    });
    Some(event.to_string())
}

fn read_json(row: &Row, first: usize) -> Option<String> {
    let bytes = |place: usize| row.try_get::<_, &[u8]>(first + place).ok();
    let created_at = u64::try_from(row.try_get::<_, i64>(first + 2).ok()?).ok()?;
    let kind = u16::try_from(row.try_get::<_, i32>(first + 3).ok()?).ok()?;
    let tags: Option<&str> = row.try_get(first + 4).ok()?;
    let content: &str = row.try_get(first + 5).ok()?;
    json(bytes(0)?, bytes(1)?, (created_at, kind), tags, content, bytes(6)?)
}

fn read_key(columns: &ChangedColumns<'_>) -> Option<u128> {
    u128::from_str_radix(&columns.text("id")?.replace('-', ""), 16).ok()
}

fn read_change(columns: &ChangedColumns<'_>) -> Option<TableRow> {
    let id = columns.bytes("event_id")?;
    let created_at: u64 = columns.text("event_created_at")?.parse().ok()?;
    let kind: u16 = columns.text("event_kind")?.parse().ok()?;
    let whole = || {
        let tags = match columns.is_null("event_tags") {
            true => None,
            false => Some(columns.text("event_tags")?),
        };
        let (author, signature) =
            (columns.bytes("event_pubkey")?, columns.bytes("event_signature")?);
        json(&id, &author, (created_at, kind), tags, columns.text("event_content")?, &signature)
    };
    Some(TableRow {
        key: read_key(columns)?,
        item: Item::new(created_at, id.as_slice().try_into().ok()?),
        kind,
        expires_at: columns.text("expires_at").map(|second| second.parse().unwrap_or(0)),
        shown: columns.is_null("deleted_at"),
        json: whole(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::pgoutput::Value;
    use super::super::relay_table::key_of;
    use super::*;

    #[test]
    fn a_key_of_the_feed_is_that_of_a_row() {
        let names = ["id".to_owned()];
        let values = vec![Value::Text("00112233-4455-6677-8899-aabbccddeeff")];
        let key = read_key(&ChangedColumns { names: &names, values: &values });
        let bytes = 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff_u128.to_be_bytes();
        assert_eq!(key, key_of(&bytes));
    }
}
