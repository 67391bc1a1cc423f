//! Writes a batch of events, as decided by [`crate::batch`].

use super::facts::ask;
use super::removal::remove;
use super::steps::{StepDone, of_a_step, remove_some};
use super::tag_rows::TagRows;
use super::{CommitNote, FeedAdvance, begin_with, commit_with, roll_back};
use crate::batch::{Bytes, Changes, address_hash, address_of, decide};
use crate::columns::slices;
use crate::connection::{Parameter, ServerSession};
use crate::ephemeral;
use futures_util::future::{BoxFuture, FutureExt, try_join_all};
use negsync_nostr::Event;
use negsync_nostr::kinds::DELETION;
use negsync_nostr::relay_url::RelayName;
use negsync_reconcile::Item;
use negsync_store::Step;
use std::sync::Arc;
use tokio_postgres::Error;

/// The parameters of a write.
pub(crate) struct BatchWriter<'node> {
    /// The node's number.
    pub(crate) node: i64,
    /// The URL in requests to vanish.
    pub(crate) us: Option<&'node RelayName>,
    /// The current second.
    pub(crate) now: u64,
}

/// The result of a batch.
pub(crate) enum BatchDone {
    Whole(Changes, FeedAdvance),
    /// Its deletion requests name more events than a step may remove: some of these are removed,
    /// and nothing else is done.
    Part(StepDone),
}

/// Decides the effects of the events and writes them, or a part of the removals that their deletion
/// requests name.
pub(crate) async fn write_batch(
    connection: &ServerSession,
    events: &[Arc<Event>],
    by: &BatchWriter<'_>,
) -> Result<BatchDone, Error> {
    let (before, facts) = begin_with(connection, ask(connection, events)).await?;
    let changes = decide(events, facts, by.us, by.now);
    // A single event never exceeds a step.
    if changes.deleted.len() > 1 {
        let (some, is_all) = of_a_step(connection, &changes.deleted).await?;
        if !is_all {
            return remove_some(connection, by.node, before, &some).await.map(BatchDone::Part);
        }
    }
    let passed: Vec<&Event> = changes.steps.iter().filter_map(passed_on).collect();
    if !passed.is_empty() {
        ephemeral::send(connection, by.node, &passed).await?;
    }
    if changes.is_empty() {
        match passed.is_empty() {
            true => roll_back(connection).await?,
            false => connection.client().batch_execute("COMMIT").await?,
        }
        let feed = FeedAdvance { before: Some(before), own: None };
        return Ok(BatchDone::Whole(changes, feed));
    }
    let removed: Vec<Bytes> = changes.removed.iter().map(|item| item.id).collect();
    remove(connection, before.next(), &removed, &mut Vec::new()).await?;
    let added: Vec<&Event> = changes.added.values().map(Arc::as_ref).collect();
    let requests = added.iter().copied().filter(|event| event.kind() == DELETION);
    note_deletions(connection, requests).await?;
    note_vanished(connection, &changes).await?;
    for statement in [EVENTS, TAGS] {
        connection.prepared(statement).await?;
    }
    let note = CommitNote { node: by.node, added: added.len(), removed: removed.len() };
    let rows = add(connection, before.next(), &added);
    let feed = commit_with(connection, before, note, rows).await?;
    Ok(BatchDone::Whole(changes, feed))
}

fn passed_on(step: &Step) -> Option<&Event> {
    match step {
        Step::Passed(event) => Some(event),
        _ => None,
    }
}

const EVENTS: &str =
    "INSERT INTO event (id, pubkey, created_at, kind, address, expires_at, json, seq)
    SELECT *, $8::bigint FROM unnest($1::bytea[], $2::bytea[], $3::bigint[], $4::integer[],
        $5::bytea[], $6::bigint[], $7::text[])";
const TAGS: &str = "INSERT INTO tag (key, created_at, id, kind)
    SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::bytea[], $4::integer[])";

/// Writes the rows of events and of their tags.
async fn add(connection: &ServerSession, seq: i64, events: &[&Event]) -> Result<(), Error> {
    if events.is_empty() {
        return Ok(());
    }
    let items: Vec<Item> = events.iter().map(|event| event.item()).collect();
    let ids: Vec<&[u8]> = items.iter().map(|item| item.id.as_slice()).collect();
    let authors: Vec<&[u8]> = events.iter().map(|event| event.pubkey().as_slice()).collect();
    let times: Vec<i64> = items.iter().map(|item| item.created_at as i64).collect();
    let kinds: Vec<i32> = events.iter().map(|event| i32::from(event.kind())).collect();
    let addresses: Vec<_> = events.iter().map(|event| address_of(event)).collect();
    let addresses: Vec<_> =
        addresses.iter().map(|hash| hash.as_ref().map(|hash| hash.as_slice())).collect();
    let expiring =
        |event: &&Event| event.expires_at().map(|second| i64::try_from(second).unwrap_or(i64::MAX));
    let expiries: Vec<Option<i64>> = events.iter().map(expiring).collect();
    let json: Vec<&str> = events.iter().map(|event| event.json()).collect();
    let event: [Parameter<'_>; 8] =
        [&ids, &authors, &times, &kinds, &addresses, &expiries, &json, &seq];
    let tags = TagRows::of(events.iter().zip(&items).map(|(event, item)| (*event, item)));
    let tag: [Parameter<'_>; 4] = [&tags.keys, &tags.times, &tags.ids, &tags.kinds];
    let mut writes: Vec<BoxFuture<'_, Result<u64, Error>>> =
        vec![connection.execute(EVENTS, &event).boxed()];
    if !tags.keys.is_empty() {
        writes.push(connection.execute(TAGS, &tag).boxed());
    }
    try_join_all(writes).await.map(|_| ())
}

/// Records the tombstones of deletion requests, and their number for each author.
async fn note_deletions(
    connection: &ServerSession,
    requests: impl Iterator<Item = &Event>,
) -> Result<(), Error> {
    const NOTE: &str = "WITH named AS (
            SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::bigint[], $5::boolean[])
                AS named (key, pubkey, deletion, created_at, is_address)),
        by_id AS (
            INSERT INTO tombstone (id, pubkey, deletion, created_at)
            SELECT key, pubkey, deletion, created_at FROM named WHERE NOT is_address
            ON CONFLICT DO NOTHING RETURNING pubkey),
        by_address AS (
            INSERT INTO address_tombstone (address, pubkey, deletion, created_at)
            SELECT key, pubkey, deletion, created_at FROM named WHERE is_address
            ON CONFLICT DO NOTHING RETURNING pubkey)
        INSERT INTO deleter (pubkey, named) SELECT pubkey, count(*)
            FROM (SELECT pubkey FROM by_id UNION ALL SELECT pubkey FROM by_address) AS rows GROUP BY pubkey
        ON CONFLICT (pubkey) DO UPDATE SET named = deleter.named + excluded.named";
    let (mut keys, mut authors, mut deletions) = (Vec::new(), Vec::new(), Vec::new());
    let (mut times, mut are_addresses) = (Vec::new(), Vec::new());
    for request in requests {
        let (item, author) = (request.item(), request.pubkey());
        let ids = request.deleted_ids().iter().map(|id| (*id, false));
        let addresses = request.deleted_addresses().iter();
        let addresses = addresses.map(|(kind, d)| (address_hash(author, *kind, d), true));
        for (key, is_address) in ids.chain(addresses) {
            keys.push(key);
            authors.push(author.as_slice());
            deletions.push(item.id);
            times.push(item.created_at as i64);
            are_addresses.push(is_address);
        }
    }
    if keys.is_empty() {
        return Ok(());
    }
    let (keys, deletions) = (slices(&keys), slices(&deletions));
    connection
        .execute(NOTE, &[&keys, &authors, &deletions, &times, &are_addresses])
        .await
        .map(|_| ())
}

/// Records vanishing keys; their events are removed in steps.
pub(super) async fn note_vanished(
    connection: &ServerSession,
    changes: &Changes,
) -> Result<(), Error> {
    const VANISHED: &str = "INSERT INTO vanished (pubkey, until, pending) VALUES ($1, $2, TRUE)
        ON CONFLICT (pubkey) DO UPDATE
        SET until = greatest(vanished.until, excluded.until), pending = TRUE";
    for (author, until) in &changes.vanished {
        connection.execute(VANISHED, &[&author.as_slice(), &(*until as i64)]).await?;
    }
    Ok(())
}
