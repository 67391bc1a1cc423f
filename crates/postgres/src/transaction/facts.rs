//! The stored facts that affect the events of a batch.

use super::retention;
use crate::batch::{BatchFacts, Bytes, Questions, Stored, addressed_to, named_wraps};
use crate::columns::{bytes, second, slices, to_bytes};
use crate::connection::{Parameter, ServerSession};
use futures_util::future::try_join_all;
use negsync_nostr::Event;
use negsync_reconcile::Item;
use std::sync::Arc;
use tokio_postgres::{Error, Row};

/// Reads the facts, in one or two round trips.
pub(super) async fn ask(
    connection: &ServerSession,
    events: &[Arc<Event>],
) -> Result<BatchFacts, Error> {
    const STORED: &str = "SELECT id, pubkey, created_at, kind, address, expires_at FROM event WHERE id = ANY($1)
        UNION ALL
        SELECT id, pubkey, created_at, kind, address, expires_at FROM event WHERE address = ANY($2)";
    // NIP-62: a request of a vanishing key counts as removed, although the removal takes a while.
    const TOMBSTONES: &str = "SELECT t.id, t.pubkey, max(t.created_at) FROM unnest($1::bytea[], $2::bytea[]) AS asked (id, pubkey)
        JOIN tombstone t ON t.id = asked.id AND t.pubkey = asked.pubkey
        WHERE NOT EXISTS (SELECT 1 FROM vanished v
            WHERE v.pubkey = t.pubkey AND v.pending AND t.created_at <= v.until)
        GROUP BY t.id, t.pubkey";
    const ADDRESSES: &str = "SELECT t.address, t.pubkey, max(t.created_at) FROM address_tombstone t
        WHERE t.address = ANY($1) AND NOT EXISTS (SELECT 1 FROM vanished v
            WHERE v.pubkey = t.pubkey AND v.pending AND t.created_at <= v.until)
        GROUP BY t.address, t.pubkey";
    const FLOORS: &str = "SELECT floor.pubkey, floor.kind, floor.created_at, floor.id
        FROM (SELECT DISTINCT pubkey, kind FROM unnest($1::bytea[], $2::integer[]) AS asked (pubkey, kind)) AS asked
        JOIN retention_floor floor ON floor.pubkey = asked.pubkey AND floor.kind = asked.kind";
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
    let authors = slices(&questions.author_kinds.0);
    let floors: [Parameter<'_>; 2] = [&authors, &questions.author_kinds.1];
    let rows = try_join_all([
        connection.query(STORED, &stored),
        connection.query(TOMBSTONES, &tombstones),
        connection.query(ADDRESSES, &addresses),
        connection.query("SELECT pubkey, named FROM deleter WHERE pubkey = ANY($1)", &deleters),
        connection.query("SELECT pubkey, until FROM vanished WHERE pubkey = ANY($1)", &people),
        connection.query("SELECT id FROM operator_tombstone WHERE id = ANY($1)", &came),
        connection.query(retention::RULES, &[]),
        connection.query(FLOORS, &floors),
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
    let [stored, tombstones, addresses, named, vanished, removed, rules, floors] = rows else {
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
    if let Some(rules) = rules.first() {
        facts.retention = retention::read_rules(rules)?;
    }
    for row in floors {
        let of = (bytes(row, 0)?, row.try_get::<_, i32>(1)? as u16);
        facts.floors.insert(of, Item::new(second(row, 2)?, bytes(row, 3)?));
    }
    Ok(facts)
}

/// NIP-59: the gift wraps that are addressed to the authors of requests to delete them.
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
