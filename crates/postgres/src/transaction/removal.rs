//! Removes events from the tables, with everything that exists because of them.

use super::tag_rows::TagRows;
use crate::batch::Bytes;
use crate::columns::{bytes, second, slices};
use crate::connection::{Parameter, ServerSession};
use futures_util::future::try_join;
use negsync_nostr::Event;
use negsync_nostr::kinds::DELETION;
use negsync_reconcile::Item;
use negsync_store::Step;
use tokio_postgres::Error;

/// Stored events that are read at a time for removal: each may have the maximum length.
const REMOVED_AT_ONCE: usize = 128;

/// Removes stored events by id, with their tags and tombstones.
pub(super) async fn remove(
    connection: &ServerSession,
    seq: i64,
    ids: &[Bytes],
    steps: &mut Vec<Step>,
) -> Result<usize, Error> {
    const EVENTS: &str = "DELETE FROM event WHERE id = ANY($1) RETURNING id, created_at, json";
    const GONE: &str = "INSERT INTO gone (seq, id, created_at)
        SELECT $1, gone.id, gone.created_at FROM unnest($2::bytea[], $3::bigint[]) AS gone (id, created_at)
        ON CONFLICT DO NOTHING";
    const TAGS: &str = "DELETE FROM tag USING unnest($1::bytea[], $2::bigint[], $3::bytea[]) AS gone (key, created_at, id)
        WHERE tag.key = gone.key AND tag.created_at = gone.created_at AND tag.id = gone.id";
    let mut removed = 0;
    for ids in ids.chunks(REMOVED_AT_ONCE) {
        let rows = connection.query(EVENTS, &[&slices(ids)]).await?;
        if rows.is_empty() {
            continue;
        }
        let (mut events, mut items, mut unreadable) = (Vec::new(), Vec::new(), Vec::new());
        for row in &rows {
            let item = Item::new(second(row, 1)?, bytes(row, 0)?);
            items.push(item);
            match Event::parse(row.try_get(2)?) {
                Ok(event) => events.push((event, item)),
                Err(_) => unreadable.push(item.id),
            }
        }
        let gone: Vec<&[u8]> = items.iter().map(|item| item.id.as_slice()).collect();
        let times: Vec<i64> = items.iter().map(|item| item.created_at as i64).collect();
        let tags = TagRows::of(events.iter().map(|(event, item)| (event, item)));
        let gone: [Parameter<'_>; 3] = [&seq, &gone, &times];
        let tag: [Parameter<'_>; 3] = [&tags.keys, &tags.times, &tags.ids];
        try_join(connection.execute(GONE, &gone), connection.execute(TAGS, &tag)).await?;
        if !unreadable.is_empty() {
            // Its tags are found by a full search.
            let lost = slices(&unreadable);
            connection.execute("DELETE FROM tag WHERE id = ANY($1)", &[&lost]).await?;
        }
        let is_request = |(event, _): &&(Event, Item)| event.kind() == DELETION;
        let mut requests: Vec<Bytes> =
            events.iter().filter(is_request).map(|(_, item)| item.id).collect();
        requests.extend(unreadable);
        forget(connection, &requests).await?;
        removed += items.len();
        steps.extend(items.into_iter().map(Step::Removed));
    }
    Ok(removed)
}

/// Removes the tombstones of removed requests.
async fn forget(connection: &ServerSession, requests: &[Bytes]) -> Result<(), Error> {
    const FORGET: &str = "WITH by_id AS (DELETE FROM tombstone WHERE deletion = ANY($1) RETURNING pubkey),
        by_address AS (DELETE FROM address_tombstone WHERE deletion = ANY($1) RETURNING pubkey),
        forgotten AS (SELECT pubkey, count(*) AS named
            FROM (SELECT pubkey FROM by_id UNION ALL SELECT pubkey FROM by_address) AS rows GROUP BY pubkey)
        UPDATE deleter SET named = deleter.named - forgotten.named FROM forgotten
        WHERE deleter.pubkey = forgotten.pubkey RETURNING deleter.pubkey";
    if requests.is_empty() {
        return Ok(());
    }
    let rows = connection.query(FORGET, &[&slices(requests)]).await?;
    let authors: Vec<&[u8]> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    let none = "DELETE FROM deleter WHERE pubkey = ANY($1) AND named <= 0";
    connection.execute(none, &[&authors]).await.map(|_| ())
}
