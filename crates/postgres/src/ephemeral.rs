//! Ephemeral events for the subscriptions of other nodes: rows of an unlogged table, read by
//! number, and removed after a minute.

use crate::batch::Bytes;
use crate::columns::slices;
use crate::connection::ServerSession;
use crate::wake_up;
use negsync_nostr::Event;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use tokio_postgres::Error;

/// How long an event is kept for other nodes, in seconds, and the maximum number of events.
const TERM_S: f64 = 60.0;
const MOST_EVENTS: i64 = 10_000;
/// Events that are read at a time: each may have the maximum length.
const EVENTS_AT_ONCE: i64 = 256;

/// Writes events for other nodes, in order, except those that are in the table already. The
/// transaction must hold the row of `head`, so that numbers become visible in order.
pub(crate) async fn send(
    connection: &ServerSession,
    node: i64,
    events: &[&Event],
) -> Result<(), Error> {
    const SEND: &str = "WITH sent AS (
            INSERT INTO ephemeral (node, id, json)
            SELECT $1, id, json
            FROM unnest($2::bytea[], $3::text[]) WITH ORDINALITY AS sent (id, json, place) ORDER BY place
            ON CONFLICT DO NOTHING RETURNING 1)
        SELECT pg_notify('negsync', $4) FROM sent LIMIT 1";
    let ids: Vec<Bytes> = events.iter().map(|event| event.item().id).collect();
    let json: Vec<&str> = events.iter().map(|event| event.json()).collect();
    connection
        .query(SEND, &[&node, &slices(&ids), &json, &wake_up::of_ephemeral(node)])
        .await
        .map(|_| ())
}

/// Removes events that were kept long enough.
pub(crate) async fn age_out(connection: &ServerSession) -> Result<(), Error> {
    const AGE_OUT: &str =
        "DELETE FROM ephemeral WHERE at < clock_timestamp() - make_interval(secs => $1)
        OR number <= (SELECT max(number) FROM ephemeral) - $2";
    connection.execute(AGE_OUT, &[&TERM_S, &MOST_EVENTS]).await.map(|_| ())
}

/// The number of the newest event, if there is one.
pub(crate) async fn newest(connection: &ServerSession) -> Result<Option<i64>, Error> {
    let rows = connection.query("SELECT max(number) FROM ephemeral", &[]).await?;
    Ok(rows.first().map(|row| row.try_get::<_, Option<i64>>(0)).transpose()?.flatten())
}

/// How far this node has read the events of others.
pub(crate) struct EphemeralCursor {
    node: i64,
    last: AtomicI64,
}

impl EphemeralCursor {
    /// A cursor after all events up to the number.
    pub(crate) fn new(node: i64, last: Option<i64>) -> Self {
        Self { node, last: AtomicI64::new(last.unwrap_or_default()) }
    }

    /// The node that reads.
    pub(crate) fn node(&self) -> i64 {
        self.node
    }

    /// Whether there are events to read, if `newest` is the highest number.
    pub(crate) fn is_behind(&self, newest: Option<i64>) -> bool {
        newest.is_some_and(|newest| newest != self.last.load(Ordering::Acquire))
    }

    /// The next events of other nodes up to the number `newest`; empty when there are no more.
    pub(crate) async fn read(
        &self,
        connection: &ServerSession,
        newest: i64,
    ) -> Result<Vec<Arc<Event>>, Error> {
        const NEXT: &str = "SELECT number, json FROM ephemeral
            WHERE number > $1 AND number <= $2 AND node <> $3 ORDER BY number LIMIT $4";
        let last = self.last.load(Ordering::Acquire);
        // Lower than before: the server has crashed, and the unlogged table starts again.
        let last = if newest < last { 0 } else { last };
        let rows = connection.query(NEXT, &[&last, &newest, &self.node, &EVENTS_AT_ONCE]).await?;
        let read_to = match rows.last() {
            Some(row) if rows.len() as i64 == EVENTS_AT_ONCE => row.try_get(0)?,
            _ => newest,
        };
        let mut events = Vec::new();
        for row in &rows {
            events.extend(Event::parse(row.try_get(1)?).ok().map(Arc::new));
        }
        self.last.store(read_to, Ordering::Release);
        Ok(events)
    }
}
