//! The transactions that change what is stored. Each takes the row of `head` first, so that they come one
//! after the other, and ends with the row of its commit in the feed.

use crate::batch::{
    BatchFacts, Bytes, Changes, Questions, Stored, address_hash, address_of, addressed_to, decide,
    named_wraps,
};
use crate::connection::{Parameter, ServerSession};
use crate::ephemeral;
use futures_util::future::{BoxFuture, FutureExt, try_join, try_join_all};
use negsync_nostr::Event;
use negsync_nostr::kinds::{DELETION, GIFT_WRAP, VANISH};
use negsync_nostr::relay_url::RelayName;
use negsync_reconcile::Item;
use negsync_store::Step;
use std::collections::HashSet;
use std::sync::Arc;
use tokio_postgres::{Error, Row};

/// The most events that one step of an expiration, a vanishing or a removal takes out.
pub(crate) const STEP_EVENTS: i64 = 1_000;
/// How many stored events are read at a time in order to be removed: each may be as long as an event can
/// be.
const REMOVED_AT_ONCE: usize = 128;
/// So many commits of the feed are kept; a node that was away for longer reads everything anew.
const FEED_COMMITS: i64 = 100_000;
/// How often what is older is looked for, in commits.
const PRUNE_EVERY: i64 = 1_000;

/// A commit of the feed. Two commits may have the same number, one before a fail-over that lost it and
/// one after, and then have different marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FeedPlace {
    pub(crate) seq: i64,
    pub(crate) mark: i64,
}

impl FeedPlace {
    /// From the columns `seq` and `mark`.
    pub(crate) fn read(row: &Row) -> Result<Self, Error> {
        Ok(Self { seq: row.try_get(0)?, mark: row.try_get(1)? })
    }

    /// The number of the commit after this one.
    fn next(self) -> i64 {
        self.seq.saturating_add(1)
    }
}

/// Where a transaction stands in the feed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FeedAdvance {
    /// The last commit before it.
    pub(crate) before: Option<FeedPlace>,
    /// Its own commit; `None` where nothing was to be written.
    pub(crate) own: Option<FeedPlace>,
}

impl FeedAdvance {
    /// The number of the last commit that it may rest on.
    pub(crate) fn last(self) -> i64 {
        self.own.or(self.before).map_or(0, |place| place.seq)
    }
}

/// What a transaction has done.
#[derive(Debug, Default)]
pub(crate) struct StepDone {
    pub(crate) feed: FeedAdvance,
    pub(crate) steps: Vec<Step>,
    /// Whether there may be more of the same kind to do.
    pub(crate) there_is_more: bool,
}

/// The last commit before the one that is being made, from the row that is held until then.
async fn begin(connection: &ServerSession) -> Result<FeedPlace, Error> {
    let begin = connection.client().batch_execute("BEGIN");
    let head = connection.query("SELECT seq, mark FROM head FOR UPDATE", &[]);
    let ((), head) = try_join(begin, head).await?;
    head.first().map_or(Ok(FeedPlace { seq: 0, mark: 0 }), FeedPlace::read)
}

/// Ends a transaction that has nothing to write.
async fn leave(connection: &ServerSession) -> Result<(), Error> {
    connection.client().batch_execute("ROLLBACK").await
}

/// Ends whatever a failure has left open.
pub(crate) async fn reset(connection: &ServerSession) -> Result<(), Error> {
    connection.client().batch_execute("ROLLBACK").await
}

/// Notes the commit, makes it, and wakes the other nodes.
async fn commit(
    connection: &ServerSession,
    before: FeedPlace,
    added: usize,
    removed: usize,
) -> Result<FeedAdvance, Error> {
    const NOTE: &str = "WITH noted AS (
            INSERT INTO feed_commit (seq, mark, added, removed) VALUES ($1, $2, $3, $4)),
        moved AS (UPDATE head SET seq = $1, mark = $2)
        SELECT pg_notify('negsync', $1::bigint::text)";
    let own = FeedPlace { seq: before.next(), mark: rand::random() };
    let (added, removed) = (added as i32, removed as i32);
    let note: [Parameter<'_>; 4] = [&own.seq, &own.mark, &added, &removed];
    connection.query(NOTE, &note).await?;
    if own.seq % PRUNE_EVERY == 0 {
        let oldest = own.seq.saturating_sub(FEED_COMMITS);
        connection.execute("DELETE FROM gone WHERE seq <= $1", &[&oldest]).await?;
        connection.execute("DELETE FROM feed_commit WHERE seq <= $1", &[&oldest]).await?;
    }
    connection.client().batch_execute("COMMIT").await?;
    Ok(FeedAdvance { before: Some(before), own: Some(own) })
}

/// Who writes, and when.
pub(crate) struct BatchWriter<'node> {
    /// The node's number.
    pub(crate) node: i64,
    /// The URL that requests to vanish name.
    pub(crate) us: Option<&'node RelayName>,
    /// The second.
    pub(crate) now: u64,
}

/// Decides what the events do and writes it.
pub(crate) async fn write_batch(
    connection: &ServerSession,
    events: &[Arc<Event>],
    by: &BatchWriter<'_>,
) -> Result<(Changes, FeedAdvance), Error> {
    let before = begin(connection).await?;
    let facts = ask(connection, events).await?;
    let changes = decide(events, facts, by.us, by.now);
    let passed: Vec<&Event> = changes.steps.iter().filter_map(passed_on).collect();
    if !passed.is_empty() {
        ephemeral::send(connection, by.node, &passed).await?;
    }
    if changes.is_empty() {
        match passed.is_empty() {
            true => leave(connection).await?,
            false => connection.client().batch_execute("COMMIT").await?,
        }
        return Ok((changes, FeedAdvance { before: Some(before), own: None }));
    }
    let removed: Vec<Bytes> = changes.removed.iter().map(|item| item.id).collect();
    remove(connection, before.next(), &removed, &mut Vec::new()).await?;
    let added: Vec<&Event> = changes.added.values().map(Arc::as_ref).collect();
    add(connection, before.next(), &added).await?;
    note_vanished(connection, &changes).await?;
    let feed = commit(connection, before, added.len(), removed.len()).await?;
    Ok((changes, feed))
}

fn passed_on(step: &Step) -> Option<&Event> {
    match step {
        Step::Passed(event) => Some(event),
        _ => None,
    }
}

/// Reads what bears on the events, in one round trip or two.
async fn ask(connection: &ServerSession, events: &[Arc<Event>]) -> Result<BatchFacts, Error> {
    const STORED: &str = "SELECT id, pubkey, created_at, kind, address, expires_at FROM event WHERE id = ANY($1)
        UNION ALL
        SELECT id, pubkey, created_at, kind, address, expires_at FROM event WHERE address = ANY($2)";
    // NIP-62: a request of a key that is vanishing is as good as gone. It takes a while until it is.
    const TOMBSTONES: &str = "SELECT t.id, t.pubkey, max(t.created_at) FROM unnest($1::bytea[], $2::bytea[]) AS asked (id, pubkey)
        JOIN tombstone t ON t.id = asked.id AND t.pubkey = asked.pubkey
        WHERE NOT EXISTS (SELECT 1 FROM vanished v
            WHERE v.pubkey = t.pubkey AND v.pending AND t.created_at <= v.until)
        GROUP BY t.id, t.pubkey";
    const ADDRESSES: &str = "SELECT t.address, t.pubkey, max(t.created_at) FROM address_tombstone t
        WHERE t.address = ANY($1) AND NOT EXISTS (SELECT 1 FROM vanished v
            WHERE v.pubkey = t.pubkey AND v.pending AND t.created_at <= v.until)
        GROUP BY t.address, t.pubkey";
    let questions = Questions::of(events);
    let (ids, addresses) = (slices(&questions.ids), slices(&questions.addresses));
    let came = slices(&questions.came);
    let (named, by) = (slices(&questions.deletable.0), slices(&questions.deletable.1));
    let (deleters, people) = (slices(&questions.deleters), slices(&questions.people));
    let stored: [Parameter<'_>; 2] = [&ids, &addresses];
    let tombstones: [Parameter<'_>; 2] = [&named, &by];
    let addresses: [Parameter<'_>; 1] = [&addresses];
    let deleters: [Parameter<'_>; 1] = [&deleters];
    let people: [Parameter<'_>; 1] = [&people];
    let came: [Parameter<'_>; 1] = [&came];
    let rows = try_join_all([
        connection.query(STORED, &stored),
        connection.query(TOMBSTONES, &tombstones),
        connection.query(ADDRESSES, &addresses),
        connection.query("SELECT pubkey, named FROM deleter WHERE pubkey = ANY($1)", &deleters),
        connection.query("SELECT pubkey, until FROM vanished WHERE pubkey = ANY($1)", &people),
        connection.query("SELECT id FROM operator_tombstone WHERE id = ANY($1)", &came),
    ])
    .await?;
    let mut facts = read_facts(&rows)?;
    let wraps = named_wraps(events, &facts);
    if !wraps.is_empty() {
        ask_recipients(connection, &wraps, &mut facts).await?;
    }
    Ok(facts)
}

fn read_facts(rows: &[Vec<Row>]) -> Result<BatchFacts, Error> {
    let [stored, tombstones, addresses, named, vanished, removed] = rows else {
        return Ok(BatchFacts::default());
    };
    let mut facts = BatchFacts::default();
    for row in stored {
        facts.add(Stored {
            item: Item::new(second(row, 2)?, bytes(row, 0)?),
            author: bytes(row, 1)?,
            kind: row.try_get::<_, i32>(3)? as u16,
            address: row.try_get::<_, Option<&[u8]>>(4)?.map(to_bytes),
            expires_at: row.try_get::<_, Option<i64>>(5)?.map(|second| second.max(0) as u64),
        });
    }
    for row in tombstones {
        facts.tombstones.insert((bytes(row, 0)?, bytes(row, 1)?), second(row, 2)?);
    }
    for row in addresses {
        facts.address_tombstones.insert(bytes(row, 0)?, (second(row, 2)?, bytes(row, 1)?));
    }
    for row in named {
        facts.named.insert(bytes(row, 0)?, second(row, 1)?);
    }
    for row in vanished {
        facts.vanished.insert(bytes(row, 0)?, second(row, 1)?);
    }
    for row in removed {
        facts.removed_by_operator.insert(bytes(row, 0)?);
    }
    Ok(facts)
}

/// NIP-59: which of the gift wraps are addressed to those who ask to delete them.
async fn ask_recipients(
    connection: &ServerSession,
    wraps: &[(Item, Bytes)],
    facts: &mut BatchFacts,
) -> Result<(), Error> {
    const ADDRESSED: &str = "SELECT asked.id, asked.requester
        FROM unnest($1::bytea[], $2::bigint[], $3::bytea[], $4::bytea[]) AS asked (key, created_at, id, requester)
        JOIN tag ON tag.key = asked.key AND tag.created_at = asked.created_at AND tag.id = asked.id";
    let keys: Vec<_> = wraps.iter().map(|(_, requester)| addressed_to(requester)).collect();
    let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
    let times: Vec<i64> = wraps.iter().map(|(item, _)| item.created_at as i64).collect();
    let ids: Vec<&[u8]> = wraps.iter().map(|(item, _)| item.id.as_slice()).collect();
    let requesters: Vec<&[u8]> = wraps.iter().map(|(_, key)| key.as_slice()).collect();
    for row in connection.query(ADDRESSED, &[&keys, &times, &ids, &requesters]).await? {
        facts.addressed.insert((bytes(&row, 0)?, bytes(&row, 1)?));
    }
    Ok(())
}

/// Writes events, and what their requests keep out.
async fn add(connection: &ServerSession, seq: i64, events: &[&Event]) -> Result<(), Error> {
    if events.is_empty() {
        return Ok(());
    }
    const EVENTS: &str =
        "INSERT INTO event (id, pubkey, created_at, kind, address, expires_at, json, seq)
        SELECT *, $8::bigint FROM unnest($1::bytea[], $2::bytea[], $3::bigint[], $4::integer[],
            $5::bytea[], $6::bigint[], $7::text[])";
    const TAGS: &str = "INSERT INTO tag (key, created_at, id, kind)
        SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::bytea[], $4::integer[])";
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
    try_join_all(writes).await?;
    for request in events.iter().filter(|event| event.kind() == DELETION) {
        note_deletion(connection, request).await?;
    }
    Ok(())
}

/// The rows of the table `tag` of some events, column by column.
#[derive(Default)]
struct TagRows<'event> {
    keys: Vec<&'event [u8]>,
    times: Vec<i64>,
    ids: Vec<&'event [u8]>,
    kinds: Vec<i32>,
}

impl<'event> TagRows<'event> {
    fn of(events: impl Iterator<Item = (&'event Event, &'event Item)>) -> Self {
        let mut rows = Self::default();
        for (event, item) in events {
            for key in event.tag_keys() {
                rows.keys.push(key.as_bytes());
                rows.times.push(item.created_at as i64);
                rows.ids.push(&item.id);
                rows.kinds.push(i32::from(event.kind()));
            }
        }
        rows
    }
}

/// Notes what a deletion request keeps out, and how much that is.
async fn note_deletion(connection: &ServerSession, request: &Event) -> Result<(), Error> {
    const BY_ID: &str = "WITH noted AS (
            INSERT INTO tombstone (id, pubkey, deletion, created_at)
            SELECT named.id, $2, $3, $4 FROM unnest($1::bytea[]) AS named (id)
            ON CONFLICT DO NOTHING RETURNING 1)
        INSERT INTO deleter (pubkey, named) SELECT $2, count(*) FROM noted
        ON CONFLICT (pubkey) DO UPDATE SET named = deleter.named + excluded.named";
    const BY_ADDRESS: &str = "WITH noted AS (
            INSERT INTO address_tombstone (address, pubkey, deletion, created_at)
            SELECT named.address, $2, $3, $4 FROM unnest($1::bytea[]) AS named (address)
            ON CONFLICT DO NOTHING RETURNING 1)
        INSERT INTO deleter (pubkey, named) SELECT $2, count(*) FROM noted
        ON CONFLICT (pubkey) DO UPDATE SET named = deleter.named + excluded.named";
    let (item, author) = (request.item(), request.pubkey().as_slice());
    let (id, made) = (item.id.as_slice(), item.created_at as i64);
    let ids = slices(request.deleted_ids());
    if !ids.is_empty() {
        connection.execute(BY_ID, &[&ids, &author, &id, &made]).await?;
    }
    let addresses = request.deleted_addresses().iter();
    let addresses: Vec<Bytes> =
        addresses.map(|(kind, d)| address_hash(request.pubkey(), *kind, d)).collect();
    if !addresses.is_empty() {
        connection.execute(BY_ADDRESS, &[&slices(&addresses), &author, &id, &made]).await?;
    }
    Ok(())
}

async fn note_vanished(connection: &ServerSession, changes: &Changes) -> Result<(), Error> {
    const VANISHED: &str = "INSERT INTO vanished (pubkey, until, pending) VALUES ($1, $2, TRUE)
        ON CONFLICT (pubkey) DO UPDATE
        SET until = greatest(vanished.until, excluded.until), pending = TRUE";
    for (author, until) in &changes.vanished {
        connection.execute(VANISHED, &[&author.as_slice(), &(*until as i64)]).await?;
    }
    Ok(())
}

/// Takes events out by id, those that are there, with their tags and what they kept out.
async fn remove(
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
        let gone = slices_of(&items);
        let times: Vec<i64> = items.iter().map(|item| item.created_at as i64).collect();
        connection.execute(GONE, &[&seq, &gone, &times]).await?;
        let tags = TagRows::of(events.iter().map(|(event, item)| (event, item)));
        if !tags.keys.is_empty() {
            connection.execute(TAGS, &[&tags.keys, &tags.times, &tags.ids]).await?;
        }
        if !unreadable.is_empty() {
            // Its tags are looked for the slow way.
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

/// Forgets what requests kept out that are gone.
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

/// Removes what `ids` names, in a transaction that has begun, and commits it.
async fn remove_found(
    connection: &ServerSession,
    before: FeedPlace,
    ids: &[Bytes],
    there_is_more: bool,
) -> Result<StepDone, Error> {
    let mut steps = Vec::new();
    let removed = remove(connection, before.next(), ids, &mut steps).await?;
    let feed = commit(connection, before, 0, removed).await?;
    Ok(StepDone { feed, steps, there_is_more })
}

/// NIP-40: removes some of what expired by `now`.
pub(crate) async fn expire(connection: &ServerSession, now: u64) -> Result<StepDone, Error> {
    const DUE: &str = "SELECT id FROM event WHERE expires_at IS NOT NULL AND expires_at <= $1
        ORDER BY expires_at LIMIT $2";
    let before = begin(connection).await?;
    let due = ids_of(&connection.query(DUE, &[&(now as i64), &STEP_EVENTS]).await?)?;
    if due.is_empty() {
        leave(connection).await?;
        return Ok(StepDone::default());
    }
    let there_is_more = due.len() as i64 == STEP_EVENTS;
    remove_found(connection, before, &due, there_is_more).await
}

/// NIP-62: removes some of the events of somebody who has vanished, and of the gift wraps to them.
pub(crate) async fn vanish(connection: &ServerSession) -> Result<StepDone, Error> {
    const WRITTEN: &str = "SELECT id FROM event
        WHERE pubkey = $1 AND kind <> $2 AND created_at <= $3 LIMIT $4";
    const WRAPS: &str =
        "SELECT id FROM tag WHERE key = $1 AND kind = $2 AND created_at <= $3 LIMIT $4";
    let before = begin(connection).await?;
    let pending =
        connection.query("SELECT pubkey, until FROM vanished WHERE pending LIMIT 1", &[]).await?;
    let Some(row) = pending.first() else {
        leave(connection).await?;
        return Ok(StepDone::default());
    };
    let (author, until): (Bytes, i64) = (bytes(row, 0)?, row.try_get(1)?);
    let (vanish, wrap) = (i32::from(VANISH), i32::from(GIFT_WRAP));
    let written =
        connection.query(WRITTEN, &[&author.as_slice(), &vanish, &until, &STEP_EVENTS]).await?;
    let mut ids = ids_of(&written)?;
    if ids.is_empty() {
        let key = addressed_to(&author);
        let wraps =
            connection.query(WRAPS, &[&key.as_bytes(), &wrap, &until, &STEP_EVENTS]).await?;
        ids = ids_of(&wraps)?;
    }
    if ids.is_empty() {
        let done = "UPDATE vanished SET pending = FALSE WHERE pubkey = $1";
        connection.execute(done, &[&author.as_slice()]).await?;
        connection.client().batch_execute("COMMIT").await?;
        return Ok(StepDone { there_is_more: true, ..StepDone::default() });
    }
    remove_found(connection, before, &ids, true).await
}

/// Removes events by id; where `bury` holds a second, each keeps out what it names from then on.
pub(crate) async fn remove_by_id(
    connection: &ServerSession,
    ids: &[Bytes],
    bury: Option<u64>,
) -> Result<StepDone, Error> {
    const BURY: &str = "INSERT INTO operator_tombstone (id, pubkey, kind, created_at, at)
        SELECT named.id, event.pubkey, event.kind, event.created_at, $2
        FROM unnest($1::bytea[]) AS named (id) LEFT JOIN event ON event.id = named.id
        ON CONFLICT DO NOTHING";
    let before = begin(connection).await?;
    if let Some(now) = bury {
        connection.execute(BURY, &[&slices(ids), &(now as i64)]).await?;
    }
    remove_found(connection, before, ids, false).await
}

/// NIP-62: follows stored requests to vanish that name a URL which is ours only now.
pub(crate) async fn follow_stored(connection: &ServerSession, us: &RelayName) -> Result<(), Error> {
    const UNFOLLOWED: &str =
        "SELECT json FROM event WHERE kind = $1 AND NOT EXISTS (SELECT 1 FROM vanished
        WHERE vanished.pubkey = event.pubkey AND vanished.until >= event.created_at)";
    begin(connection).await?;
    let mut changes = Changes::default();
    for row in connection.query(UNFOLLOWED, &[&i32::from(VANISH)]).await? {
        let Ok(request) = Event::parse(row.try_get(0)?) else { continue };
        if negsync_store::rules::vanishes_from(&request, Some(us)) {
            let until = changes.vanished.entry(*request.pubkey()).or_default();
            *until = request.item().created_at.max(*until);
        }
    }
    note_vanished(connection, &changes).await?;
    connection.client().batch_execute("COMMIT").await
}

pub(crate) fn slices(list: &[Bytes]) -> Vec<&[u8]> {
    list.iter().map(Bytes::as_slice).collect()
}

fn slices_of(items: &[Item]) -> Vec<&[u8]> {
    items.iter().map(|item| item.id.as_slice()).collect()
}

fn ids_of(rows: &[Row]) -> Result<Vec<Bytes>, Error> {
    let mut seen = HashSet::new();
    let ids = rows.iter().map(|row| bytes(row, 0)).collect::<Result<Vec<_>, _>>()?;
    Ok(ids.into_iter().filter(|id| seen.insert(*id)).collect())
}

/// A column of 32 bytes; one of another length, which nobody writes, is met by no id.
pub(crate) fn bytes(row: &Row, column: usize) -> Result<Bytes, Error> {
    row.try_get::<_, &[u8]>(column).map(to_bytes)
}

fn to_bytes(bytes: &[u8]) -> Bytes {
    bytes.try_into().unwrap_or_default()
}

/// A column of seconds, or of a count.
pub(crate) fn second(row: &Row, column: usize) -> Result<u64, Error> {
    row.try_get::<_, i64>(column).map(|second| second as u64)
}
