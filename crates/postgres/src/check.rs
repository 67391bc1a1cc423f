//! Checks a store: each event, the data derived from it, the rules, and the feed. Only reads, on
//! one snapshot; nodes may run meanwhile.

use crate::address::Address;
use crate::batch::{Bytes, address_hash, address_of, addressed_to};
use crate::columns::{bytes, slices};
use crate::connection::{Engine, ServerSession};
use crate::fault::fault;
use crate::reading::BEGIN;
use crate::schema;
use negsync_nostr::Event;
use negsync_nostr::kinds::{DELETION, GIFT_WRAP, VANISH};
use negsync_store::findings::{self, CheckedRow, Unfollowed, asks_every_relay_to_vanish};
use negsync_store::{CheckReport, Clock, Finding, StoreError};
use std::num::NonZero;
use tokio_postgres::{Error, Row};

/// Events that are read at a time: each may have the maximum length.
const EVENTS_AT_ONCE: i64 = 512;

/// Checks the store at the address. `progress` gets the number of checked events and the total.
///
/// # Errors
/// [`StoreError`] when the server cannot be reached, or the tables are missing or of another
/// version.
pub fn check(
    address: &Address,
    mut progress: impl FnMut(u64, u64),
) -> Result<CheckReport, StoreError> {
    let engine = Engine::start()?;
    engine.wait(async {
        let connection = ServerSession::open(address).await?;
        schema::expect(&connection).await?;
        let mut checked = CheckReport::default();
        look(&connection, &mut checked, &mut progress).await.map_err(fault)?;
        Ok(checked)
    })
}

async fn look(
    connection: &ServerSession,
    checked: &mut CheckReport,
    progress: &mut impl FnMut(u64, u64),
) -> Result<(), Error> {
    connection.client().batch_execute(BEGIN).await?;
    let tags = events(connection, checked, progress).await?;
    stray_tags(connection, tags, checked).await?;
    rules(connection, checked).await?;
    wraps(connection, checked).await?;
    vanished(connection, checked).await?;
    connection.client().batch_execute("COMMIT").await
}

fn read_row(row: &Row) -> Result<CheckedRow<Vec<u8>>, Error> {
    Ok(CheckedRow {
        id: row.try_get(0)?,
        pubkey: row.try_get(1)?,
        created_at: row.try_get(2)?,
        kind: row.try_get::<_, i32>(3)?.into(),
        address: row.try_get(4)?,
        expires_at: row.try_get(5)?,
        json: row.try_get(6)?,
    })
}

/// Checks each event: its JSON, id and signature, its columns, its tags, and whether a request to
/// delete or to vanish was followed. Returns the number of correct tags.
async fn events(
    connection: &ServerSession,
    checked: &mut CheckReport,
    progress: &mut impl FnMut(u64, u64),
) -> Result<u64, Error> {
    const NEXT: &str = "SELECT id, pubkey, created_at, kind, address, expires_at, json FROM event
        WHERE id > $1 ORDER BY id LIMIT $2";
    let total = count(connection, "SELECT count(*) FROM event").await?;
    let (mut last, mut tags) = (Vec::new(), 0);
    loop {
        let rows = connection.query(NEXT, &[&last, &EVENTS_AT_ONCE]).await?;
        let rows = rows.iter().map(read_row).collect::<Result<Vec<_>, _>>()?;
        let Some(read_to) = rows.last() else { return Ok(tags) };
        last.clone_from(&read_to.id);
        checked.events += rows.len() as u64;
        let mut events = Vec::new();
        for (event, findings) in examine_all(&rows) {
            findings.into_iter().for_each(|finding| checked.find(finding));
            events.extend(event);
        }
        tags += missing_tags(connection, &events, checked).await?;
        unfollowed(connection, &events, checked).await?;
        progress(checked.events, total);
    }
}

/// Checks each row by itself, on all cores.
fn examine_all(rows: &[CheckedRow<Vec<u8>>]) -> Vec<(Option<Event>, Vec<Finding>)> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let share = rows.len().div_ceil(threads).max(1);
    let address = |event: &Event| address_of(event).map(Vec::from);
    std::thread::scope(|scope| {
        let examined: Vec<_> = rows
            .chunks(share)
            .map(|rows| {
                scope.spawn(|| rows.iter().map(|row| row.examine(address)).collect::<Vec<_>>())
            })
            .collect();
        examined.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    })
}

/// Finds tags of events that are missing in the table. Returns the number that are not missing.
async fn missing_tags(
    connection: &ServerSession,
    events: &[Event],
    checked: &mut CheckReport,
) -> Result<u64, Error> {
    const MISSING: &str = "SELECT of_event.id, of_event.place
        FROM unnest($1::bytea[], $2::bigint[], $3::bytea[], $4::integer[])
            WITH ORDINALITY AS of_event (key, created_at, id, kind, place)
        WHERE NOT EXISTS (SELECT 1 FROM tag WHERE tag.key = of_event.key
            AND tag.created_at = of_event.created_at AND tag.id = of_event.id AND tag.kind = of_event.kind)";
    let (mut keys, mut times, mut ids, mut kinds) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for event in events {
        for key in event.tag_keys() {
            keys.push(key);
            times.push(event.item().created_at as i64);
            ids.push(event.item().id.to_vec());
            kinds.push(i32::from(event.kind()));
        }
    }
    let bytes_of: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
    let rows = connection.query(MISSING, &[&bytes_of, &times, &ids, &kinds]).await?;
    for row in &rows {
        if let Some(key) = at_place(&keys, row)? {
            checked.find_missing_tag(bytes(row, 0).ok(), **key);
        }
    }
    Ok((keys.len() - rows.len()) as u64)
}

/// The element of a queried list at the index in the second column, which counts from 1.
fn at_place<'list, T>(list: &'list [T], row: &Row) -> Result<Option<&'list T>, Error> {
    let place: i64 = row.try_get(1)?;
    Ok(list.get(place.saturating_sub(1) as usize))
}

/// Finds rows of the tag table that are not among the `indexed` tags of stored events.
async fn stray_tags(
    connection: &ServerSession,
    indexed: u64,
    checked: &mut CheckReport,
) -> Result<(), Error> {
    const NEXT: &str = "SELECT tag.id, tag.key, event.json, tag.created_at FROM tag LEFT JOIN event
        ON event.id = tag.id AND event.created_at = tag.created_at AND event.kind = tag.kind
        WHERE (tag.key, tag.created_at, tag.id) > ($1, $2, $3)
        ORDER BY tag.key, tag.created_at, tag.id LIMIT $4";
    checked.tags = count(connection, "SELECT count(*) FROM tag").await?;
    if checked.tags == indexed {
        return Ok(());
    }
    let mut last: (Vec<u8>, i64, Vec<u8>) = (Vec::new(), i64::MIN, Vec::new());
    loop {
        let rows = connection.query(NEXT, &[&last.0, &last.1, &last.2, &EVENTS_AT_ONCE]).await?;
        let Some(read_to) = rows.last() else { return Ok(()) };
        last = (read_to.try_get(1)?, read_to.try_get(3)?, read_to.try_get(0)?);
        for row in &rows {
            let (key, json): (&[u8], Option<&str>) = (row.try_get(1)?, row.try_get(2)?);
            checked.look_at_indexed_tag(bytes(row, 0).ok(), key, json);
        }
    }
}

/// Checks that the targets of stored requests are kept out; [`rules`] checks that they are gone.
async fn unfollowed(
    connection: &ServerSession,
    events: &[Event],
    checked: &mut CheckReport,
) -> Result<(), Error> {
    const BY_ID: &str = "SELECT named.id FROM unnest($1::bytea[]) AS named (id)
        WHERE NOT EXISTS (SELECT 1 FROM tombstone t
            WHERE t.id = named.id AND t.pubkey = $2 AND t.deletion = $3)";
    const BY_ADDRESS: &str = "SELECT named.address, named.place
        FROM unnest($1::bytea[]) WITH ORDINALITY AS named (address, place)
        WHERE NOT EXISTS (SELECT 1 FROM address_tombstone t
            WHERE t.address = named.address AND t.created_at = $2 AND t.deletion = $3)";
    const VANISHED: &str = "SELECT 1 FROM vanished WHERE pubkey = $1 AND until >= $2";
    for event in events {
        let (item, author) = (event.item(), event.pubkey().as_slice());
        let (id, made) = (item.id.as_slice(), item.created_at as i64);
        let mut find =
            |what: Unfollowed<'_>| checked.find_broken_rule(Some(item.id), what.detail());
        if event.kind() == DELETION {
            let ids = slices(event.deleted_ids());
            for row in connection.query(BY_ID, &[&ids, &author, &id]).await? {
                find(Unfollowed::Id(row.try_get(0)?));
            }
            let named = event.deleted_addresses();
            let hashed = |(kind, d): &(u16, String)| address_hash(event.pubkey(), *kind, d);
            let addresses: Vec<Bytes> = named.iter().map(hashed).collect();
            for row in connection.query(BY_ADDRESS, &[&slices(&addresses), &made, &id]).await? {
                if let Some((kind, d)) = at_place(named, &row)? {
                    find(Unfollowed::Address(*kind, d));
                }
            }
        }
        if asks_every_relay_to_vanish(event)
            && connection.query(VANISHED, &[&author, &made]).await?.is_empty()
        {
            find(Unfollowed::Author);
        }
    }
    Ok(())
}

/// Checks that no deleted event is stored, and that the feed agrees with its commits.
async fn rules(connection: &ServerSession, checked: &mut CheckReport) -> Result<(), Error> {
    const BROKEN: [(&str, &str, &str); 9] = [
        (
            "rule",
            "SELECT event.id FROM operator_tombstone JOIN event USING (id)",
            findings::OPERATOR_REMOVED,
        ),
        (
            "rule",
            "SELECT event.id FROM tombstone JOIN event USING (id, pubkey)
             WHERE event.kind NOT IN (5, 62) AND NOT EXISTS (
                 SELECT 1 FROM vanished WHERE vanished.pubkey = tombstone.pubkey AND pending)",
            findings::DELETED_BY_ID,
        ),
        (
            "rule",
            "SELECT event.id FROM address_tombstone buried JOIN event USING (address)
             WHERE event.created_at <= buried.created_at",
            findings::DELETED_BY_ADDRESS,
        ),
        (
            "rule",
            "SELECT tombstone.id FROM tombstone LEFT JOIN event
             ON event.id = tombstone.deletion AND event.pubkey = tombstone.pubkey
             WHERE event.kind IS DISTINCT FROM 5",
            findings::ID_WITHOUT_REQUEST,
        ),
        (
            "rule",
            "SELECT NULL::bytea FROM address_tombstone buried LEFT JOIN event
             ON event.id = buried.deletion AND event.pubkey = buried.pubkey
             WHERE event.kind IS DISTINCT FROM 5",
            findings::ADDRESS_WITHOUT_REQUEST,
        ),
        (
            "rule",
            "SELECT coalesce(deleter.pubkey, named.pubkey) FROM deleter FULL JOIN (
                 SELECT pubkey, count(*) AS named FROM (SELECT pubkey FROM tombstone
                     UNION ALL SELECT pubkey FROM address_tombstone) AS rows GROUP BY pubkey) AS named
             ON named.pubkey = deleter.pubkey WHERE deleter.named IS DISTINCT FROM named.named",
            "is an author of whom it is not known how much requests to delete name",
        ),
        (
            "feed",
            "SELECT NULL::bytea FROM head LEFT JOIN feed_commit USING (seq)
             WHERE feed_commit.mark IS DISTINCT FROM head.mark
             OR (SELECT max(seq) FROM feed_commit) > head.seq",
            "the last commit is not the one that the feed ends with",
        ),
        (
            "feed",
            "SELECT event.id FROM event, head WHERE event.seq > head.seq",
            "it is of a commit that was not made",
        ),
        (
            "feed",
            "SELECT gone.id FROM gone JOIN event USING (id) WHERE event.seq < gone.seq",
            "it has left, and is stored",
        ),
    ];
    for (what, sql, detail) in BROKEN {
        for row in connection.query(sql, &[]).await? {
            let id = row.try_get::<_, Option<&[u8]>>(0)?.and_then(|id| id.try_into().ok());
            checked.find(Finding { what, id, detail: detail.into() });
        }
    }
    const DUE: &str =
        "SELECT count(*) FROM event WHERE expires_at IS NOT NULL AND expires_at <= $1";
    let due = connection.query(DUE, &[&(Clock::system().now() as i64)]).await?;
    checked.expired = due.first().map_or(Ok(0), |row| row.try_get::<_, i64>(0))?.max(0) as u64;
    Ok(())
}

/// NIP-59: gift wraps that one of their recipients has deleted.
async fn wraps(connection: &ServerSession, checked: &mut CheckReport) -> Result<(), Error> {
    const DELETED: &str = "SELECT event.id, event.json, tombstone.pubkey FROM tombstone
        JOIN event ON event.id = tombstone.id AND event.kind = $1 AND event.pubkey <> tombstone.pubkey";
    for row in connection.query(DELETED, &[&i32::from(GIFT_WRAP)]).await? {
        let key = bytes(&row, 2)?;
        let wrap = Event::parse(row.try_get(1)?);
        if wrap.is_ok_and(|wrap| wrap.recipients().any(|recipient| recipient == key)) {
            checked.find_broken_rule(bytes(&row, 0).ok(), findings::DELETED_BY_RECIPIENT);
        }
    }
    Ok(())
}

/// NIP-62: events of a vanished key, and gift wraps that were sent to it.
async fn vanished(connection: &ServerSession, checked: &mut CheckReport) -> Result<(), Error> {
    const WRITTEN: &str =
        "SELECT id FROM event WHERE pubkey = $1 AND kind <> $2 AND created_at <= $3";
    const WRAPS: &str = "SELECT event.id FROM tag JOIN event USING (id)
        WHERE tag.key = $1 AND tag.kind = $2 AND tag.created_at <= $3 AND event.pubkey <> $4";
    let (vanish, wrap) = (i32::from(VANISH), i32::from(GIFT_WRAP));
    for key in connection.query("SELECT pubkey, until, pending FROM vanished", &[]).await? {
        let (pubkey, until, pending): (Bytes, i64, bool) =
            (bytes(&key, 0)?, key.try_get(1)?, key.try_get(2)?);
        let addressed = addressed_to(&pubkey);
        let author = pubkey.as_slice();
        let written = connection.query(WRITTEN, &[&author, &vanish, &until]).await?;
        let wraps =
            connection.query(WRAPS, &[&addressed.as_bytes(), &wrap, &until, &author]).await?;
        let found = [(written, findings::AUTHOR_VANISHED), (wraps, findings::ADDRESSEE_VANISHED)];
        for (rows, detail) in found {
            for row in rows {
                if pending {
                    checked.vanishing += 1;
                } else {
                    checked.find_broken_rule(bytes(&row, 0).ok(), detail);
                }
            }
        }
    }
    Ok(())
}

async fn count(connection: &ServerSession, sql: &'static str) -> Result<u64, Error> {
    let rows = connection.query(sql, &[]).await?;
    Ok(rows.first().map_or(Ok(0), |row| row.try_get::<_, i64>(0))?.max(0) as u64)
}
