//! The removals and refusals by rules of retention. All nodes use the rules in the database.

use super::removal::remove;
use super::steps::{StepDone, of_a_step};
use super::{CommitNote, FeedPlace, begin, commit, roll_back};
use crate::batch::Bytes;
use crate::columns::{bytes, ids_of, second, slices};
use crate::connection::ServerSession;
use negsync_reconcile::Item;
use negsync_store::{RETIRED, Retention};
use tokio_postgres::{Error, Row};

/// Maximum number of events that a step removes.
const STEP_EVENTS: i64 = 128;
/// Maximum number of recorded ids.
const MOST_IDS: i64 = 1_000_000;

/// An author and a kind.
pub(crate) type AuthorKind = (Bytes, u16);

/// The rules in force.
pub(crate) async fn rules(connection: &ServerSession) -> Result<Retention, Error> {
    let rows = connection.query(RULES, &[]).await?;
    rows.first().map_or(Ok(Retention::default()), read_rules)
}

pub(super) const RULES: &str = "SELECT rules FROM retention";

pub(super) fn read_rules(row: &Row) -> Result<Retention, Error> {
    row.try_get(0).map(Retention::from_text)
}

/// Replaces the rules in force, if they differ: events that the old rules kept out may come again.
pub(crate) async fn change(connection: &ServerSession, wanted: &Retention) -> Result<(), Error> {
    const BEGIN_ANEW: &str =
        "DELETE FROM retention; DELETE FROM retention_floor; DELETE FROM retired;
        UPDATE sync_mark SET read_from = NULL, read_to = NULL, whole_at = NULL";
    begin(connection).await?;
    if rules(connection).await? == *wanted {
        return roll_back(connection).await;
    }
    // A complete reading of a peer was complete only under the old rules.
    connection.client().batch_execute(BEGIN_ANEW).await?;
    connection.execute("DELETE FROM refused WHERE reason = $1", &[&RETIRED]).await?;
    connection.execute("INSERT INTO retention (rules) VALUES ($1)", &[&wanted.to_text()]).await?;
    connection.client().batch_execute("COMMIT").await
}

/// The next authors and kinds after one, in order, up to a maximum number.
pub(crate) async fn next_authors(
    connection: &ServerSession,
    (author, kind): (&[u8], i32),
    most: i64,
) -> Result<Vec<AuthorKind>, Error> {
    const NEXT: &str = "WITH RECURSIVE pair AS (
            (SELECT pubkey, kind FROM event WHERE (pubkey, kind) > ($1, $2)
                ORDER BY pubkey, kind LIMIT 1)
            UNION ALL
            SELECT later.pubkey, later.kind FROM pair CROSS JOIN LATERAL
                (SELECT pubkey, kind FROM event WHERE (pubkey, kind) > (pair.pubkey, pair.kind)
                    ORDER BY pubkey, kind LIMIT 1) AS later)
        SELECT pubkey, kind FROM pair LIMIT $3";
    let rows = connection.query(NEXT, &[&author, &kind, &most]).await?;
    rows.iter().map(|row| Ok((bytes(row, 0)?, row.try_get::<_, i32>(1)? as u16))).collect()
}

/// Those of these authors and kinds that have more stored events than are kept.
pub(crate) async fn crowded(
    connection: &ServerSession,
    of: &[AuthorKind],
    rules: &Retention,
) -> Result<Vec<AuthorKind>, Error> {
    const CROWDED: &str = "SELECT asked.pubkey, asked.kind
        FROM unnest($1::bytea[], $2::integer[], $3::bigint[]) AS asked (pubkey, kind, kept)
        WHERE (SELECT count(*) FROM event
            WHERE event.pubkey = asked.pubkey AND event.kind = asked.kind) > asked.kept";
    let authors: Vec<&[u8]> = of.iter().map(|(author, _)| author.as_slice()).collect();
    let kinds: Vec<i32> = of.iter().map(|(_, kind)| i32::from(*kind)).collect();
    let kept = |(_, kind): &AuthorKind| rules.per_author(*kind).map_or(i64::MAX, i64::from);
    let kept: Vec<i64> = of.iter().map(kept).collect();
    let rows = connection.query(CROWDED, &[&authors, &kinds, &kept]).await?;
    rows.iter().map(|row| Ok((bytes(row, 0)?, row.try_get::<_, i32>(1)? as u16))).collect()
}

/// Removes some of an author's surplus events of a kind, beyond the newest that are kept. Events up
/// to the newest one removed are refused from then on.
pub(crate) async fn remove_surplus(
    connection: &ServerSession,
    node: i64,
    (author, kind): AuthorKind,
    by: &Retention,
) -> Result<StepDone, Error> {
    const SURPLUS: &str = "SELECT created_at, id FROM event WHERE pubkey = $1 AND kind = $2
        ORDER BY created_at DESC, id DESC OFFSET $3 LIMIT $4";
    const RAISE: &str = "INSERT INTO retention_floor AS floor (pubkey, kind, created_at, id)
        VALUES ($1, $2, $3, $4)
        ON CONFLICT (pubkey, kind) DO UPDATE SET created_at = excluded.created_at, id = excluded.id
        WHERE (excluded.created_at, excluded.id) > (floor.created_at, floor.id)";
    let before = begin(connection).await?;
    let kept = by.per_author(kind).map(i64::from);
    let (Some(kept), true) = (kept, rules(connection).await? == *by) else {
        roll_back(connection).await?;
        return Ok(StepDone::default());
    };
    let (author, kind) = (author.as_slice(), i32::from(kind));
    let rows = connection.query(SURPLUS, &[&author, &kind, &kept, &STEP_EVENTS]).await?;
    let items = rows.iter().map(|row| Ok(Item::new(second(row, 0)?, bytes(row, 1)?)));
    let items: Vec<Item> = items.collect::<Result<_, Error>>()?;
    if let Some(newest) = items.first() {
        let second = newest.created_at as i64;
        connection.execute(RAISE, &[&author, &kind, &second, &newest.id.as_slice()]).await?;
    }
    let ids: Vec<Bytes> = items.iter().map(|item| item.id).collect();
    retire(connection, node, before, &ids).await
}

/// Removes some of the events that are too old at the second `now`.
pub(crate) async fn remove_old(
    connection: &ServerSession,
    node: i64,
    by: &Retention,
    now: u64,
) -> Result<StepDone, Error> {
    const OLD: &str = "SELECT event.id FROM unnest($1::integer[], $2::bigint[]) AS aged (kind, oldest)
        CROSS JOIN LATERAL (SELECT id FROM event WHERE event.kind = aged.kind AND created_at < aged.oldest
            ORDER BY created_at LIMIT $3) AS event
        LIMIT $3";
    let oldest = |kind: u16| Some((i32::from(kind), by.oldest(kind, now)? as i64));
    let aged = kinds(connection).await?.into_iter().filter_map(oldest);
    let (kinds, oldest): (Vec<i32>, Vec<i64>) = aged.unzip();
    if kinds.is_empty() {
        return Ok(StepDone::default());
    }
    let old = ids_of(&connection.query(OLD, &[&kinds, &oldest, &STEP_EVENTS]).await?)?;
    if old.is_empty() {
        return Ok(StepDone::default());
    }
    let before = begin(connection).await?;
    // Other rules may keep these events.
    if rules(connection).await? != *by {
        roll_back(connection).await?;
        return Ok(StepDone::default());
    }
    let done = retire(connection, node, before, &old).await?;
    Ok(StepDone { there_is_more: true, ..done })
}

/// Removes the stored events of `ids`, up to the maximum of a step, in an open transaction, and
/// commits it.
async fn retire(
    connection: &ServerSession,
    node: i64,
    before: FeedPlace,
    ids: &[Bytes],
) -> Result<StepDone, Error> {
    const REMEMBER: &str =
        "INSERT INTO retired (id) SELECT unnest($1::bytea[]) ON CONFLICT DO NOTHING";
    const FORGET: &str =
        "DELETE FROM retired WHERE number <= (SELECT max(number) FROM retired) - $1";
    let (some, is_all) = of_a_step(connection, ids).await?;
    if some.is_empty() {
        roll_back(connection).await?;
        return Ok(StepDone::default());
    }
    connection.execute(REMEMBER, &[&slices(&some)]).await?;
    connection.execute(FORGET, &[&MOST_IDS]).await?;
    let mut steps = Vec::new();
    let removed = remove(connection, before.next(), &some, &mut steps).await?;
    let feed = commit(connection, before, CommitNote { node, added: 0, removed }).await?;
    let there_is_more = !is_all || ids.len() as i64 == STEP_EVENTS;
    Ok(StepDone { feed, steps, there_is_more })
}

/// The kinds of stored events.
pub(crate) async fn kinds(connection: &ServerSession) -> Result<Vec<u16>, Error> {
    const KINDS: &str = "WITH RECURSIVE one AS (
            (SELECT kind FROM event ORDER BY kind LIMIT 1)
            UNION ALL
            SELECT (SELECT kind FROM event WHERE event.kind > one.kind ORDER BY kind LIMIT 1)
                FROM one WHERE one.kind IS NOT NULL)
        SELECT kind FROM one WHERE kind IS NOT NULL";
    let rows = connection.query(KINDS, &[]).await?;
    rows.iter().map(|row| Ok(row.try_get::<_, i32>(0)? as u16)).collect()
}

/// Those of `ids` that the rules have removed.
pub(crate) async fn retired(
    connection: &ServerSession,
    ids: &[&[u8]],
) -> Result<Vec<Bytes>, Error> {
    let rows = connection.query("SELECT id FROM retired WHERE id = ANY($1)", &[&ids]).await?;
    ids_of(&rows)
}
