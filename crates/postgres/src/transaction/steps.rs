//! Long work in steps: expiration, vanishing and removal.

use super::removal::remove;
use super::{CommitNote, FeedAdvance, FeedPlace, begin, commit, roll_back};
use crate::acknowledged::OperatorAction;
use crate::batch::{Bytes, addressed_to};
use crate::columns::{bytes, ids_of, slices};
use crate::connection::ServerSession;
use negsync_nostr::Event;
use negsync_nostr::kinds::{GIFT_WRAP, VANISH};
use negsync_store::Step;
use tokio_postgres::Error;

/// Maximum of one step of an expiration, a vanishing or a removal: events, and rows as
/// [`Event::weight`] counts them, unless a single event has more. Other work waits for the step.
pub(crate) const STEP_EVENTS: i64 = 512;
const STEP_ROWS: usize = 2_048;
/// Bytes of JSON that are read to count rows, unless a single event has more.
const STEP_BYTES: i64 = 4 << 20;

/// The result of a step.
#[derive(Debug, Default)]
pub(crate) struct StepDone {
    pub(crate) feed: FeedAdvance,
    pub(crate) steps: Vec<Step>,
    /// Whether more of the same work may be left.
    pub(crate) there_is_more: bool,
}

/// The first of `ids` that are stored, as many as a step may remove; and whether these are all.
pub(super) async fn of_a_step(
    connection: &ServerSession,
    ids: &[Bytes],
) -> Result<(Vec<Bytes>, bool), Error> {
    const WEIGHED: &str = "SELECT id, CASE WHEN before < $2 THEN json END
        FROM (SELECT id, json, place,
                sum(octet_length(json)) OVER (ORDER BY place) - octet_length(json) AS before
            FROM unnest($1::bytea[]) WITH ORDINALITY AS named (id, place) JOIN event USING (id)) AS found
        ORDER BY place";
    let (mut some, mut rows) = (Vec::new(), 0_usize);
    for row in connection.query(WEIGHED, &[&slices(ids), &STEP_BYTES]).await? {
        let Some(json) = row.try_get::<_, Option<&str>>(1)? else { return Ok((some, false)) };
        // The number of rows is unknown for a row that is not a valid event.
        rows += Event::parse(json).map_or(1, |event| event.weight());
        if rows > STEP_ROWS && !some.is_empty() {
            return Ok((some, false));
        }
        some.push(bytes(&row, 0)?);
    }
    Ok((some, true))
}

/// Removes the events of `ids`, up to the maximum of a step, in an open transaction, and commits
/// it.
async fn remove_found(
    connection: &ServerSession,
    node: i64,
    before: FeedPlace,
    ids: &[Bytes],
    there_is_more: bool,
) -> Result<StepDone, Error> {
    let (some, is_all) = of_a_step(connection, ids).await?;
    let done = remove_some(connection, node, before, &some).await?;
    Ok(StepDone { there_is_more: there_is_more || !is_all, ..done })
}

/// Removes all events of `ids`, in an open transaction, and commits it.
pub(super) async fn remove_some(
    connection: &ServerSession,
    node: i64,
    before: FeedPlace,
    ids: &[Bytes],
) -> Result<StepDone, Error> {
    let mut steps = Vec::new();
    let removed = remove(connection, before.next(), ids, &mut steps).await?;
    let feed = commit(connection, before, CommitNote { node, added: 0, removed }).await?;
    Ok(StepDone { feed, steps, there_is_more: false })
}

/// NIP-40: removes some of the events that expired by `now`.
pub(crate) async fn expire(
    connection: &ServerSession,
    node: i64,
    now: u64,
) -> Result<StepDone, Error> {
    const DUE: &str = "SELECT id FROM event WHERE expires_at IS NOT NULL AND expires_at <= $1
        ORDER BY expires_at LIMIT $2";
    let before = begin(connection).await?;
    let due = ids_of(&connection.query(DUE, &[&(now as i64), &STEP_EVENTS]).await?)?;
    if due.is_empty() {
        roll_back(connection).await?;
        return Ok(StepDone::default());
    }
    let there_is_more = due.len() as i64 == STEP_EVENTS;
    remove_found(connection, node, before, &due, there_is_more).await
}

/// NIP-62: removes some of the events of a vanished key, and of the gift wraps to it.
pub(crate) async fn vanish(connection: &ServerSession, node: i64) -> Result<StepDone, Error> {
    const WRITTEN: &str = "SELECT id FROM event
        WHERE pubkey = $1 AND kind <> $2 AND created_at <= $3 LIMIT $4";
    // A tag row without its event, which `check` finds, is ignored here.
    const WRAPS: &str = "SELECT tag.id FROM tag JOIN event ON event.id = tag.id
        WHERE tag.key = $1 AND tag.kind = $2 AND tag.created_at <= $3 LIMIT $4";
    let before = begin(connection).await?;
    let pending =
        connection.query("SELECT pubkey, until FROM vanished WHERE pending LIMIT 1", &[]).await?;
    let Some(row) = pending.first() else {
        roll_back(connection).await?;
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
    remove_found(connection, node, before, &ids, true).await
}

/// Performs an operator's action at the second `now`. If there is more to remove than fits in a
/// step, it has to be repeated with the same ids.
pub(crate) async fn operate(
    connection: &ServerSession,
    node: i64,
    ids: &[Bytes],
    action: OperatorAction,
    now: u64,
) -> Result<StepDone, Error> {
    const BURY: &str = "INSERT INTO operator_tombstone (id, pubkey, kind, created_at, at)
        SELECT named.id, event.pubkey, event.kind, event.created_at, $2
        FROM unnest($1::bytea[]) AS named (id) LEFT JOIN event ON event.id = named.id
        ON CONFLICT DO NOTHING";
    const UNDELETE: &str = "DELETE FROM operator_tombstone WHERE id = ANY($1)";
    let before = begin(connection).await?;
    match action {
        OperatorAction::Remove => {}
        OperatorAction::Bury => {
            connection.execute(BURY, &[&slices(ids), &(now as i64)]).await?;
        }
        OperatorAction::Undelete => {
            connection.execute(UNDELETE, &[&slices(ids)]).await?;
            // A commit of its own, whose number shows whether a fail-over has lost it.
            let note = CommitNote { node, added: 0, removed: 0 };
            let feed = commit(connection, before, note).await?;
            return Ok(StepDone { feed, ..StepDone::default() });
        }
    }
    remove_found(connection, node, before, ids, false).await
}
