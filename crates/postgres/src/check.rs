//! Whether a store is what it should be: each event, what is derived from it, the rules, and the feed. Reads only,
//! all of it at one moment, also beside running nodes.

use crate::address::Address;
use crate::batch::{Bytes, address_hash, address_of, addressed_to};
use crate::connection::{Engine, ServerSession};
use crate::fault::fault;
use crate::reading::BEGIN;
use crate::schema;
use crate::transaction::{bytes, slices};
use negsync_nostr::kinds::{ALL_RELAYS, DELETION, GIFT_WRAP, Lifetime, VANISH};
use negsync_nostr::{Event, hex};
use negsync_store::{CheckReport, Finding, StoreError, unix_now};
use std::num::NonZero;
use tokio_postgres::{Error, Row};

/// So many events are read at a time: each may be as long as an event can be.
const EVENTS_AT_ONCE: i64 = 512;

/// Checks the store at the address. `progress` hears of the events that are done, and of how many there are.
///
/// # Errors
/// When the server cannot be reached, or the tables are not there or of another version.
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

/// An event's row as it stands.
struct CheckedRow {
    id: Vec<u8>,
    pubkey: Vec<u8>,
    created_at: i64,
    kind: i32,
    address: Option<Vec<u8>>,
    expires_at: Option<i64>,
    json: String,
}

impl CheckedRow {
    fn read(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            id: row.try_get(0)?,
            pubkey: row.try_get(1)?,
            created_at: row.try_get(2)?,
            kind: row.try_get(3)?,
            address: row.try_get(4)?,
            expires_at: row.try_get(5)?,
            json: row.try_get(6)?,
        })
    }
}

/// Each event: its JSON, its id and signature, its columns, its tags, and of a request to delete or to vanish
/// whether it was followed. Returns how many tags are as they should be.
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
        let rows = rows.iter().map(CheckedRow::read).collect::<Result<Vec<_>, _>>()?;
        let Some(read_to) = rows.last() else { return Ok(tags) };
        last.clone_from(&read_to.id);
        checked.events += rows.len() as u64;
        let mut events = Vec::new();
        for (event, findings) in examine_all(rows) {
            findings.into_iter().for_each(|finding| checked.find(finding));
            events.extend(event);
        }
        tags += missing_tags(connection, &events, checked).await?;
        unfollowed(connection, &events, checked).await?;
        progress(checked.events, total);
    }
}

/// What each row gives away by itself, on all cores.
fn examine_all(rows: Vec<CheckedRow>) -> Vec<(Option<Event>, Vec<Finding>)> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let share = rows.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let examined: Vec<_> = rows
            .chunks(share)
            .map(|rows| scope.spawn(|| rows.iter().map(examine).collect::<Vec<_>>()))
            .collect();
        examined.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    })
}

/// The event, unless the row holds none.
fn examine(row: &CheckedRow) -> (Option<Event>, Vec<Finding>) {
    let id: Option<Bytes> = row.id.as_slice().try_into().ok();
    let mut findings = Vec::new();
    let mut find = |what, detail| findings.push(Finding { what, id, detail });
    let event = match Event::parse(&row.json) {
        Ok(event) => event,
        Err(error) => {
            find("event", error.reason);
            return (None, findings);
        }
    };
    let expires_at = event.expires_at().map(|second| i64::try_from(second).unwrap_or(i64::MAX));
    let address = address_of(&event);
    let columns = [
        ("id", row.id == event.item().id),
        ("pubkey", row.pubkey == event.pubkey()),
        ("created_at", row.created_at == event.item().created_at as i64),
        ("kind", row.kind == i32::from(event.kind())),
        ("address", row.address.as_deref() == address.as_ref().map(Bytes::as_slice)),
        ("expires_at", row.expires_at == expires_at),
        ("json", row.json == event.json()),
    ];
    for (column, is_right) in columns {
        if !is_right {
            find("column", format!("{column}: is not what the event says"));
        }
    }
    if event.lifetime() == Lifetime::Ephemeral {
        find("rule", "an ephemeral event is stored".into());
    }
    match event.verify() {
        Ok(event) => (Some(event.into_inner()), findings),
        Err(error) => {
            find("signature", error.reason);
            // Its tags and what it asks for are looked at all the same.
            (Event::parse(&row.json).ok(), findings)
        }
    }
}

/// Finds the tags of events that are not in the table, and returns how many are.
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
        let key = keys.get(row.try_get::<_, i64>(1)?.saturating_sub(1) as usize);
        let detail = format!("{key:?} is not indexed");
        checked.find(Finding { what: "tag", id: bytes(row, 0).ok(), detail });
    }
    Ok((keys.len() - rows.len()) as u64)
}

/// Looks for what the table of tags holds beside the `indexed` ones of stored events.
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
            let detail = match json.map(Event::parse) {
                None => "is indexed under an event that is not stored",
                Some(Ok(event)) if event.tag_keys().iter().any(|has| has.as_bytes() == key) => {
                    continue;
                }
                Some(Ok(_)) => "is indexed and the event does not have it",
                // That the event is none has been said.
                Some(Err(_)) => continue,
            };
            let detail = format!("{} {detail}", hex::encode(key));
            checked.find(Finding { what: "tag", id: bytes(row, 0).ok(), detail });
        }
    }
}

/// What stored requests name must be kept out; [`rules`] looks whether it is gone.
async fn unfollowed(
    connection: &ServerSession,
    events: &[Event],
    checked: &mut CheckReport,
) -> Result<(), Error> {
    const BY_ID: &str = "SELECT named.id FROM unnest($1::bytea[]) AS named (id)
        WHERE NOT EXISTS (SELECT 1 FROM tombstone t
            WHERE t.id = named.id AND t.pubkey = $2 AND t.deletion = $3)";
    const BY_ADDRESS: &str = "SELECT named.address FROM unnest($1::bytea[]) AS named (address)
        WHERE NOT EXISTS (SELECT 1 FROM address_tombstone t
            WHERE t.address = named.address AND t.created_at = $2 AND t.deletion = $3)";
    const VANISHED: &str = "SELECT 1 FROM vanished WHERE pubkey = $1 AND until >= $2";
    for event in events {
        let (item, author) = (event.item(), event.pubkey().as_slice());
        let (id, made) = (item.id.as_slice(), item.created_at as i64);
        let mut find = |detail| checked.find(Finding { what: "rule", id: Some(item.id), detail });
        if event.kind() == DELETION {
            let ids = slices(event.deleted_ids());
            for row in connection.query(BY_ID, &[&ids, &author, &id]).await? {
                let named = hex::encode(&bytes(&row, 0)?);
                find(format!("deletes event {named}, and that is not kept out"));
            }
            let addresses = event.deleted_addresses().iter();
            let addresses: Vec<Bytes> =
                addresses.map(|(kind, d)| address_hash(event.pubkey(), *kind, d)).collect();
            let kept_out: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
                [&slices(&addresses), &made, &id];
            for _ in connection.query(BY_ADDRESS, &kept_out).await? {
                find("deletes an address, and that is not kept out".into());
            }
        }
        let asks_all = || event.tag_values("relay").iter().any(|relay| relay == ALL_RELAYS);
        if event.kind() == VANISH
            && asks_all()
            && connection.query(VANISHED, &[&author, &made]).await?.is_empty()
        {
            find("asks every relay to forget its author, who is not kept out".into());
        }
    }
    Ok(())
}

/// What is deleted is not stored, and the feed says what its commits did.
async fn rules(connection: &ServerSession, checked: &mut CheckReport) -> Result<(), Error> {
    const BROKEN: [(&str, &str, &str); 9] = [
        (
            "rule",
            "SELECT event.id FROM operator_tombstone JOIN event USING (id)",
            "the operator has removed it, and it is stored",
        ),
        (
            "rule",
            "SELECT event.id FROM tombstone JOIN event USING (id, pubkey)
             WHERE event.kind NOT IN (5, 62) AND NOT EXISTS (
                 SELECT 1 FROM vanished WHERE vanished.pubkey = tombstone.pubkey AND pending)",
            "it was deleted by its id, and is stored",
        ),
        (
            "rule",
            "SELECT event.id FROM address_tombstone buried JOIN event USING (address)
             WHERE event.created_at <= buried.created_at",
            "it was deleted by its address, and is stored",
        ),
        (
            "rule",
            "SELECT tombstone.id FROM tombstone LEFT JOIN event
             ON event.id = tombstone.deletion AND event.pubkey = tombstone.pubkey
             WHERE event.kind IS DISTINCT FROM 5",
            "it is kept out by a request to delete that is not stored",
        ),
        (
            "rule",
            "SELECT NULL::bytea FROM address_tombstone buried LEFT JOIN event
             ON event.id = buried.deletion AND event.pubkey = buried.pubkey
             WHERE event.kind IS DISTINCT FROM 5",
            "an address is kept out by a request to delete that is not stored",
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
    let due = connection.query(DUE, &[&(unix_now() as i64)]).await?;
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
            let detail = "its recipient has deleted it, and it is stored".into();
            checked.find(Finding { what: "rule", id: bytes(&row, 0).ok(), detail });
        }
    }
    Ok(())
}

/// NIP-62: what a key that has vanished wrote, and the gift wraps that were sent to it.
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
        let found = [
            (written, "its author has vanished, and it is stored"),
            (wraps, "its addressee has vanished, and it is stored"),
        ];
        for (rows, detail) in found {
            for row in rows {
                if pending {
                    checked.vanishing += 1;
                } else {
                    let id = bytes(&row, 0).ok();
                    checked.find(Finding { what: "rule", id, detail: detail.into() });
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
