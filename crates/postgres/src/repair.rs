//! Recovery after the database has lost commits that this node had: after a fail-over to an
//! asynchronous replica, or after a backup was restored.

use crate::backlog::Backlog;
use crate::columns::{bytes, slices};
use crate::connection::ServerSession;
use crate::history::{CommitHistory, KnownCommit};
use crate::transaction::FeedPlace;
use negsync_nostr::Event;
use negsync_reconcile::Item;
use negsync_store::Step;
use std::collections::HashSet;
use std::sync::Arc;
use tokio_postgres::{Error, Row};

/// Maximum number of items that are compared one by one; with more, everything is read again.
const MOST_COMPARED: usize = 50_000;
/// Events that are read at a time: each may have the maximum length.
const EVENTS_AT_ONCE: usize = 256;
/// Maximum number of ids of lost events in the log.
const NAMED: usize = 20;

/// Commits that this node had and that the database has lost.
#[derive(Debug)]
pub(crate) struct LostTail {
    /// The last common commit, if there is one.
    pub(crate) common: Option<FeedPlace>,
    /// The last commit that this node had.
    pub(crate) last: FeedPlace,
    /// The last commit in the database.
    pub(crate) now: FeedPlace,
    /// The items that the listener has and the database lacks, as far as known.
    pub(crate) items: Vec<Item>,
}

impl LostTail {
    /// Logs the lost items.
    pub(crate) fn report(&self) {
        let common = self.common.map_or(0, |common| common.seq);
        let ids: Vec<String> = self.items.iter().take(NAMED).map(|item| hex(&item.id)).collect();
        tracing::warn!(
            commits = self.last.seq.saturating_sub(common),
            events = self.items.len(),
            ?ids,
            common,
            head = self.now.seq,
            "database lost commits: the index goes on from the last common one. Hint: a fail-over to a \
             replica loses what it had not received; synchronous_standby_names prevents that"
        );
    }

    /// Logs that the lost items are unknown.
    pub(crate) fn report_unknown(&self, items: usize) {
        tracing::warn!(
            known = self.last.seq,
            common = self.common.map(|common| common.seq),
            head = self.now.seq,
            items,
            "database lost commits: all items were read anew. Hint: a fail-over to a replica loses what \
             it had not received, and a restored backup what came after it"
        );
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The last commit that is in the history and in the database.
pub(crate) async fn last_common(
    connection: &ServerSession,
    history: &CommitHistory,
) -> Result<Option<FeedPlace>, Error> {
    const COMMON: &str = "SELECT c.seq, c.mark
        FROM unnest($1::bigint[], $2::bigint[]) AS known (seq, mark)
        JOIN feed_commit c ON c.seq = known.seq AND c.mark = known.mark
        ORDER BY c.seq DESC LIMIT 1";
    let (seqs, marks) = history.places();
    let rows = connection.query(COMMON, &[&seqs, &marks]).await?;
    rows.first().map(FeedPlace::read).transpose()
}

/// Whether the feed no longer reaches back to a commit.
pub(crate) async fn is_pruned(connection: &ServerSession, place: FeedPlace) -> Result<bool, Error> {
    let rows = connection.query("SELECT min(seq) FROM feed_commit", &[]).await?;
    let oldest: Option<i64> = rows.first().map(|row| row.try_get(0)).transpose()?.flatten();
    Ok(oldest.is_some_and(|oldest| oldest > place.seq))
}

/// The changes from the known history to the contents of the database.
pub(crate) struct Repair {
    /// The commits since the common one.
    pub(crate) commits: Vec<KnownCommit>,
    pub(crate) steps: Vec<Step>,
    /// The items that the listener has and the database lacks.
    pub(crate) lost: Vec<Item>,
}

/// Compares the changes since the last common commit on both sides. Returns no [`Repair`] if there
/// is no common commit, or too much to compare. `now` is the last commit in the database.
pub(crate) async fn compare(
    connection: &ServerSession,
    history: &CommitHistory,
    now: FeedPlace,
    holds: &(impl Fn(&Item) -> bool + Sync),
) -> Result<(Option<FeedPlace>, Option<Repair>), Error> {
    let common = last_common(connection, history).await?;
    let repair = match common {
        Some(common) => compare_since(connection, history, (common, now), holds).await?,
        None => None,
    };
    Ok((common, repair))
}

async fn compare_since(
    connection: &ServerSession,
    history: &CommitHistory,
    (common, now): (FeedPlace, FeedPlace),
    holds: &(impl Fn(&Item) -> bool + Sync),
) -> Result<Option<Repair>, Error> {
    let mut touched = history.changed_since(common.seq);
    let since = Backlog { after: common.seq, to: now.seq };
    match since.events(connection).await? {
        Some(events) if touched.len().saturating_add(events) <= MOST_COMPARED => {}
        _ => return Ok(None),
    }
    let (commits, _) = since.read(connection).await?;
    touched.extend(commits.iter().flat_map(|commit| commit.items.iter().copied()));
    let there = which_exist(connection, &touched).await?;
    let (mut steps, mut lost, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    for item in touched {
        match (there.contains(&item.id), holds(&item)) {
            (true, true) => {}
            (true, false) => missing.push(item.id),
            // Also for items that no set has: a set that is being built may have them.
            (false, is_held) => {
                steps.push(Step::Removed(item));
                lost.extend(is_held.then_some(item));
            }
        }
    }
    for ids in missing.chunks(EVENTS_AT_ONCE) {
        let events = "SELECT json FROM event WHERE id = ANY($1)";
        for row in connection.query(events, &[&slices(ids)]).await? {
            // Rows that are not valid events are reported by `check`.
            if let Ok(event) = Event::parse(row.try_get(0)?) {
                steps.push(Step::Added(Arc::new(event)));
            }
        }
    }
    Ok(Some(Repair { commits, steps, lost }))
}

async fn which_exist(
    connection: &ServerSession,
    items: &HashSet<Item>,
) -> Result<HashSet<[u8; 32]>, Error> {
    let ids: Vec<&[u8]> = items.iter().map(|item| item.id.as_slice()).collect();
    let rows = connection.query("SELECT id FROM event WHERE id = ANY($1)", &[&ids]).await?;
    rows.iter().map(|row: &Row| bytes(row, 0)).collect()
}
