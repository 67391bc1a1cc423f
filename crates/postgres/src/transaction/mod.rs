//! The transactions that change what is stored. Each takes the row of `head` first, so that they come one
//! after the other, and ends with the row of its commit in the feed.

mod facts;
mod removal;
pub(crate) mod retention;
mod steps;
mod stored_requests;
mod tag_rows;
mod writing;

pub(crate) use steps::{STEP_EVENTS, StepDone, expire, operate, vanish};
pub(crate) use stored_requests::{StoredRequests, follow_stored};
pub(crate) use writing::{BatchDone, BatchWriter, write_batch};

use crate::connection::{Parameter, ServerSession};
use crate::wake_up;
use futures_util::future::try_join3;
use tokio_postgres::{Error, Row};

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

/// The last commit before the one that is being made, from the row that is held until then.
async fn begin(connection: &ServerSession) -> Result<FeedPlace, Error> {
    begin_with(connection, async { Ok(()) }).await.map(|(before, ())| before)
}

/// As [`begin`]; what `first` asks is sent with it, and answered once the row is held.
async fn begin_with<T>(
    connection: &ServerSession,
    first: impl Future<Output = Result<T, Error>>,
) -> Result<(FeedPlace, T), Error> {
    const HEAD: &str = "SELECT seq, mark FROM head FOR UPDATE";
    // Prepared before: it has to be sent ahead of `first`.
    let head = connection.prepared(HEAD).await?;
    let begin = connection.client().batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED");
    let ((), head, first) = try_join3(begin, connection.client().query(&head, &[]), first).await?;
    let before = head.first().map_or(Ok(FeedPlace { seq: 0, mark: 0 }), FeedPlace::read)?;
    Ok((before, first))
}

/// Ends a transaction that has nothing to write, or that a failure has left open.
pub(crate) async fn roll_back(connection: &ServerSession) -> Result<(), Error> {
    connection.client().batch_execute("ROLLBACK").await
}

/// What a transaction has done to the table `event`, in rows, and the node that made it.
struct CommitNote {
    node: i64,
    added: usize,
    removed: usize,
}

/// Notes the commit, makes it, and wakes the other nodes.
async fn commit(
    connection: &ServerSession,
    before: FeedPlace,
    note: CommitNote,
) -> Result<FeedAdvance, Error> {
    commit_with(connection, before, note, async { Ok(()) }).await
}

/// As [`commit`]; what `last` writes is sent with it. All its statements have to be prepared.
async fn commit_with(
    connection: &ServerSession,
    before: FeedPlace,
    note: CommitNote,
    last: impl Future<Output = Result<(), Error>>,
) -> Result<FeedAdvance, Error> {
    const NOTE: &str = "WITH noted AS (
            INSERT INTO feed_commit (seq, mark, added, removed) VALUES ($1, $2, $3, $4)),
        moved AS (UPDATE head SET seq = $1, mark = $2)
        SELECT pg_notify('negsync', $5)";
    let own = FeedPlace { seq: before.next(), mark: rand::random() };
    let (added, removed) = (note.added as i32, note.removed as i32);
    let wake_up = wake_up::of_commit(own.seq, note.node);
    let note: [Parameter<'_>; 5] = [&own.seq, &own.mark, &added, &removed, &wake_up];
    if own.seq % PRUNE_EVERY == 0 {
        let oldest = own.seq.saturating_sub(FEED_COMMITS);
        connection.execute("DELETE FROM gone WHERE seq <= $1", &[&oldest]).await?;
        connection.execute("DELETE FROM feed_commit WHERE seq <= $1", &[&oldest]).await?;
    }
    // Prepared before all are sent at once. Where one fails COMMIT undoes everything.
    let statement = connection.prepared(NOTE).await?;
    let noted = connection.client().query(&statement, &note);
    try_join3(last, noted, connection.client().batch_execute("COMMIT")).await?;
    Ok(FeedAdvance { before: Some(before), own: Some(own) })
}
