//! The transactions that change the store. Each locks the row of `head` first, so they run one
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

/// Commits that the feed keeps; a node that was away for longer reads everything again.
const FEED_COMMITS: i64 = 100_000;
/// Interval at which older commits are removed, in commits.
const PRUNE_EVERY: i64 = 1_000;

/// The position of a commit in the feed. Two commits may have the same number, one lost in a
/// fail-over and one after it; their marks differ.
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

    /// The number of the next commit.
    fn next(self) -> i64 {
        self.seq.saturating_add(1)
    }
}

/// The position of a transaction in the feed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FeedAdvance {
    /// The last commit before it.
    pub(crate) before: Option<FeedPlace>,
    /// Its own commit; `None` if nothing was written.
    pub(crate) own: Option<FeedPlace>,
}

impl FeedAdvance {
    /// The number of the last commit whose effects it may contain.
    pub(crate) fn last(self) -> i64 {
        self.own.or(self.before).map_or(0, |place| place.seq)
    }
}

/// The row of `head`. Without it, as while a backup is being restored, nothing is read or written:
/// the order of commits is unknown.
pub(crate) async fn head_row<'rows>(
    connection: &ServerSession,
    rows: &'rows [Row],
) -> Result<&'rows Row, Error> {
    // The server raises the error, so that it has a code and a hint as any other.
    const RAISE: &str = "DO $$ BEGIN
        RAISE object_not_in_prerequisite_state USING
            MESSAGE = 'the table negsync.head is empty',
            HINT = 'wait for the end of a restore, or restore a backup';
        END $$";
    loop {
        match rows.first() {
            Some(row) => return Ok(row),
            // Always fails.
            None => connection.client().batch_execute(RAISE).await?,
        }
    }
}

/// Locks the row of `head` until the end of the transaction. Returns the last commit.
async fn begin(connection: &ServerSession) -> Result<FeedPlace, Error> {
    begin_with(connection, async { Ok(()) }).await.map(|(before, ())| before)
}

/// Like [`begin`]; the query of `first` is sent along, and runs once the row is locked.
async fn begin_with<T>(
    connection: &ServerSession,
    first: impl Future<Output = Result<T, Error>>,
) -> Result<(FeedPlace, T), Error> {
    const HEAD: &str = "SELECT seq, mark FROM head FOR UPDATE";
    // Prepared in advance, so that it is sent before `first`.
    let head = connection.prepared(HEAD).await?;
    let begin = connection.client().batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED");
    let ((), head, first) = try_join3(begin, connection.client().query(&head, &[]), first).await?;
    let before = FeedPlace::read(head_row(connection, &head).await?)?;
    Ok((before, first))
}

/// Ends a transaction that has nothing to write, or that was left open after an error.
pub(crate) async fn roll_back(connection: &ServerSession) -> Result<(), Error> {
    connection.client().batch_execute("ROLLBACK").await
}

/// The number of rows that a transaction changed in the table `event`, and its node.
struct CommitNote {
    node: i64,
    added: usize,
    removed: usize,
}

/// Records the commit in the feed, commits, and notifies the other nodes.
async fn commit(
    connection: &ServerSession,
    before: FeedPlace,
    note: CommitNote,
) -> Result<FeedAdvance, Error> {
    commit_with(connection, before, note, async { Ok(()) }).await
}

/// Like [`commit`]; the writes of `last` are sent along. All its statements must be prepared.
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
    // Prepared before all are sent at once. If one fails, COMMIT rolls everything back.
    let statement = connection.prepared(NOTE).await?;
    let noted = connection.client().query(&statement, &note);
    try_join3(last, noted, connection.client().batch_execute("COMMIT")).await?;
    Ok(FeedAdvance { before: Some(before), own: Some(own) })
}
