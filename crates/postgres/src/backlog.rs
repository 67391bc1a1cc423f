//! The commits of the feed since one that this node has, read in the order in which they were made.

use crate::columns::{bytes, second};
use crate::connection::{Parameter, ServerSession};
use crate::history::KnownCommit;
use crate::transaction::FeedPlace;
use futures_util::future::try_join3;
use negsync_nostr::Event;
use negsync_reconcile::Item;
use negsync_store::Step;
use std::sync::Arc;
use tokio_postgres::Error;

/// Maximum number of new or removed events that are read commit by commit. With more of them, or
/// more commits or bytes of events, all items are read again, without the events.
const MOST_NEW_EVENTS: i64 = 50_000;
const MOST_NEW_COMMITS: i64 = 20_000;
const MOST_NEW_BYTES: i64 = 64 << 20;

/// The item that a step adds or removes.
pub(crate) fn item_of(step: &Step) -> Option<Item> {
    match step {
        Step::Added(event) => Some(event.item()),
        Step::Removed(item) => Some(*item),
        Step::Passed(_) => None,
    }
}

/// A range of the feed's commits, with a lower and an upper bound. Each statement has both bounds:
/// the server estimates a range without an upper bound as a third of the table, and reads all of
/// it.
#[derive(Clone, Copy)]
pub(crate) struct Backlog {
    pub(crate) after: i64,
    pub(crate) to: i64,
}

impl Backlog {
    /// Like [`Backlog::read`]; `None` if there is more than is read commit by commit.
    pub(crate) async fn read_few(
        self,
        connection: &ServerSession,
    ) -> Result<Option<(Vec<KnownCommit>, Vec<Step>)>, Error> {
        match self.events(connection).await? {
            Some(_) => self.read(connection).await.map(Some),
            None => Ok(None),
        }
    }

    /// The number of events that the commits added and removed; `None` if that, or their size,
    /// exceeds what is read commit by commit.
    pub(crate) async fn events(self, connection: &ServerSession) -> Result<Option<usize>, Error> {
        const COMMITS: &str = "SELECT coalesce(sum(added::bigint + removed), 0)::bigint, count(*)
            FROM feed_commit WHERE seq > $1 AND seq <= $2";
        // The length of a value that is stored out of line is known without reading it.
        const BYTES: &str = "SELECT coalesce(sum(octet_length(json)), 0)::bigint
            FROM event WHERE seq > $1 AND seq <= $2";
        let part: [Parameter<'_>; 2] = [&self.after, &self.to];
        let Some(row) = connection.query(COMMITS, &part).await?.pop() else { return Ok(Some(0)) };
        let (events, commits): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        if events > MOST_NEW_EVENTS || commits > MOST_NEW_COMMITS {
            return Ok(None);
        }
        let bytes = connection.query(BYTES, &part).await?;
        let bytes: i64 = bytes.first().map_or(Ok(0), |row| row.try_get(0))?;
        Ok((bytes <= MOST_NEW_BYTES).then_some(events.max(0) as usize))
    }

    /// The commits and their steps, in order; within a commit, removals come first.
    pub(crate) async fn read(
        self,
        connection: &ServerSession,
    ) -> Result<(Vec<KnownCommit>, Vec<Step>), Error> {
        const COMMITS: &str =
            "SELECT seq, mark FROM feed_commit WHERE seq > $1 AND seq <= $2 ORDER BY seq";
        const GONE: &str = "SELECT seq, created_at, id FROM gone WHERE seq > $1 AND seq <= $2";
        const ADDED: &str = "SELECT seq, json FROM event WHERE seq > $1 AND seq <= $2";
        let part: [Parameter<'_>; 2] = [&self.after, &self.to];
        let (commits, gone, added) = try_join3(
            connection.query(COMMITS, &part),
            connection.query(GONE, &part),
            connection.query(ADDED, &part),
        )
        .await?;
        let mut steps = Vec::new();
        for row in gone {
            let item = Item::new(second(&row, 1)?, bytes(&row, 2)?);
            steps.push((row.try_get::<_, i64>(0)?, false, Step::Removed(item)));
        }
        for row in added {
            // Rows that are not valid events are reported by `check`.
            if let Ok(event) = Event::parse(row.try_get(1)?) {
                steps.push((row.try_get::<_, i64>(0)?, true, Step::Added(Arc::new(event))));
            }
        }
        steps.sort_by_key(|(seq, is_added, _)| (*seq, *is_added));
        let mut rest = steps.as_slice();
        let mut known = Vec::new();
        for row in &commits {
            let place = FeedPlace::read(row)?;
            let own = rest.partition_point(|(seq, ..)| *seq <= place.seq);
            let (own, later) = rest.split_at(own);
            rest = later;
            let items = own.iter().filter_map(|(_, _, step)| item_of(step)).collect();
            known.push(KnownCommit { place, items });
        }
        Ok((known, steps.into_iter().map(|(_, _, step)| step).collect()))
    }
}
