//! nostream 3: each statement is a transaction of its own.

use super::{bytes, expires_at, first, is_addressable, is_replaceable, kind_of, quoted, tags};
use serde_json::{Value, json};

const DELETION: u64 = 5;
const VANISH: u64 = 62;

pub(super) fn publish(event: &Value) -> Vec<String> {
    let author = bytes(event, "pubkey");
    let delete = |condition: &str| {
        format!(
            "UPDATE events SET deleted_at = now()
             WHERE event_pubkey = {author} AND {condition} AND event_kind <> {VANISH}
                AND deleted_at IS NULL"
        )
    };
    let insert = format!("{} ON CONFLICT DO NOTHING", insert(event, None));
    match kind_of(event) {
        DELETION => {
            let ids: Vec<String> = tags(event)
                .filter(|tag| tag.0 == "e" && tag.1.len() == 64)
                .map(|tag| format!("'\\x{}'::bytea", tag.1))
                .collect();
            let condition = format!("event_id IN ({})", ids.join(", "));
            let deletion = (!ids.is_empty()).then(|| delete(&condition));
            deletion.into_iter().chain([insert]).collect()
        }
        VANISH => vec![delete("TRUE"), insert],
        20_000..30_000 => Vec::new(),
        kind if is_replaceable(kind) => {
            vec![upsert(event, &json!([event["pubkey"], kind]))]
        }
        kind if is_addressable(kind) => {
            vec![upsert(event, &json!([first(event, "d").unwrap_or_default()]))]
        }
        _ => vec![insert],
    }
}

fn insert(event: &Value, deduplication: Option<&Value>) -> String {
    let (created_at, kind) = (&event["created_at"], kind_of(event));
    let [id, author, signature] = ["id", "pubkey", "sig"].map(|field| bytes(event, field));
    let (tags, content) =
        (quoted(&event["tags"].to_string()), quoted(event["content"].as_str().unwrap()));
    let expires_at = expires_at(event).map_or("NULL".into(), |second| second.to_string());
    let deduplication = deduplication.map_or("NULL".into(), |it| quoted(&it.to_string()));
    format!(
        "INSERT INTO events (event_id, event_pubkey, event_created_at, event_kind, event_tags,
            event_content, event_signature, event_deduplication, remote_address, expires_at, deleted_at)
         VALUES ({id}, {author}, {created_at}, {kind}, {tags}, {content}, {signature}, {deduplication},
            '127.0.0.1', {expires_at}, NULL)"
    )
}

/// The row of the older event becomes that of the newer one; its `id` and `first_seen` stay.
fn upsert(event: &Value, deduplication: &Value) -> String {
    let insert = insert(event, Some(deduplication));
    let merged = [
        "event_id",
        "event_created_at",
        "event_tags",
        "event_content",
        "event_signature",
        "remote_address",
        "expires_at",
        "deleted_at",
    ]
    .map(|column| format!("{column} = excluded.{column}"))
    .join(", ");
    format!(
        "{insert} ON CONFLICT (event_pubkey, event_kind, event_deduplication)
            WHERE event_kind = 0 OR event_kind = 3 OR event_kind = 41
                OR event_kind >= 10000 AND event_kind < 20000
                OR event_kind >= 30000 AND event_kind < 40000
         DO UPDATE SET {merged}
         WHERE events.event_created_at < excluded.event_created_at
            OR events.event_created_at = excluded.event_created_at
                AND events.event_id > excluded.event_id"
    )
}

/// The retention sweep, with a request to vanish kept.
pub(super) fn clean_up(now: u64, before: u64) -> String {
    format!(
        "DELETE FROM events WHERE event_id IN (
            SELECT event_id FROM events
            WHERE (expires_at < {now} OR deleted_at IS NOT NULL OR event_created_at < {before})
                AND NOT event_kind = {VANISH}
            LIMIT 1000)"
    )
}

pub(super) fn shown(now: u64) -> String {
    format!(
        "SELECT json_build_object('id', encode(event_id, 'hex'), 'pubkey', encode(event_pubkey, 'hex'),
            'created_at', event_created_at, 'kind', event_kind, 'tags', event_tags,
            'content', event_content, 'sig', encode(event_signature, 'hex')) FROM events
         WHERE deleted_at IS NULL AND (expires_at IS NULL OR expires_at > {now})"
    )
}
