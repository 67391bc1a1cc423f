//! The sequence of a store's commits. The writer, the flushing thread, readers and the sets in
//! memory synchronize by it.
//!
//! A commit is *committed* when the tables hold it and readers see it. It is *published* when it is
//! flushed and the listener, with every set in memory, has it. The next commit waits until the last
//! one is published. Consequences:
//!
//! - *Nothing is acknowledged before it is flushed and published.* One thread does both, commit by
//!   commit, and replies after them (`flush`). A commit whose flush failed is published too, since
//!   readers see it; its replies say that it may not be durable.
//! - *A reader knows the last commit that it sees.* A read that must be of the same commit as the
//!   sets in memory begins [between](Commits::between_commits) two commits.
//! - *Every set is consistent with exactly one commit.* A set read from the tables is at most one
//!   commit ahead of the published ones. Once that commit is
//!   [published](Commits::wait_until_published), the set is completed by the changes published
//!   meanwhile; the last step of each item wins. If a set could be two commits ahead, publishing
//!   the first would partly revert it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a reader waits for a commit to be published: the longest flush of a working disk.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// The commits of a store. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Commits(Arc<CommitState>);

#[derive(Default)]
struct CommitState {
    counts: Mutex<CommitCounts>,
    // Signalled when a commit has been published, and when the last waiting reader has begun.
    moved: Condvar,
}

#[derive(Default)]
struct CommitCounts {
    committed: u64,
    // Equal to the number of commits, or one less.
    published: u64,
    // Readers that wait to begin; the next commit waits for them. The number of reading connections
    // bounds them.
    waiting: usize,
}

/// A commit that is not published yet. Dropping it marks the commit as published.
pub(super) struct Unpublished(Commits);

impl Commits {
    /// Runs `commit` once the last commit is published. If it fails there is no commit.
    pub(super) fn commit<E>(
        &self,
        commit: impl FnOnce() -> Result<(), E>,
    ) -> Result<Unpublished, E> {
        let is_early = |counts: &mut CommitCounts| counts.has_unpublished() || counts.waiting > 0;
        let waited = self.0.moved.wait_while(self.lock(), is_early);
        let mut counts = waited.unwrap_or_else(PoisonError::into_inner);
        commit()?;
        counts.committed += 1;
        Ok(Unpublished(self.clone()))
    }

    /// Runs `begin` between two commits, with `true` if every commit is published. Waits for that,
    /// with a deadline.
    pub(super) fn between_commits<T>(&self, begin: impl FnOnce(bool) -> T) -> T {
        let mut counts = self.lock();
        if counts.has_unpublished() {
            counts.waiting += 1;
            let has_unpublished = |counts: &mut CommitCounts| counts.has_unpublished();
            let waited = self.0.moved.wait_timeout_while(counts, PUBLISH_TIMEOUT, has_unpublished);
            counts = waited.unwrap_or_else(PoisonError::into_inner).0;
            counts.waiting -= 1;
            self.0.moved.notify_all();
        }
        begin(!counts.has_unpublished())
    }

    /// Waits until every commit is published that a read before the call may have seen.
    pub(super) fn wait_until_published(&self) {
        let counts = self.lock();
        let committed = counts.committed;
        drop(self.0.moved.wait_while(counts, |counts| counts.published < committed));
    }

    fn lock(&self) -> MutexGuard<'_, CommitCounts> {
        self.0.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CommitCounts {
    fn has_unpublished(&self) -> bool {
        self.published < self.committed
    }
}

impl Drop for Unpublished {
    fn drop(&mut self) {
        self.0.lock().published += 1;
        self.0.0.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc::channel;

    const COMMITS: u64 = 2_000;
    const READERS: usize = 4;

    /// The tables and the memory are two counters moved by different threads, like the writer and
    /// the flushing thread.
    #[test]
    fn a_reading_between_commits_finds_the_tables_and_memory_at_one_commit() {
        let (commits, tables, memory) = (Commits::default(), AtomicU64::new(0), AtomicU64::new(0));
        let (sender, flushing) = channel::<Unpublished>();
        std::thread::scope(|scope| {
            for _ in 0..READERS {
                scope.spawn(|| {
                    let mut seen = 0;
                    for _ in 0..COMMITS {
                        let (in_tables, in_memory) = commits.between_commits(|is_published| {
                            assert!(is_published);
                            (tables.load(Ordering::Relaxed), memory.load(Ordering::Relaxed))
                        });
                        assert_eq!(in_tables, in_memory);
                        assert!(seen <= in_tables);
                        seen = in_tables;
                        let scanned = tables.load(Ordering::Relaxed);
                        commits.wait_until_published();
                        assert!(scanned <= memory.load(Ordering::Relaxed));
                    }
                });
            }
            scope.spawn(|| {
                for unpublished in flushing {
                    memory.fetch_add(1, Ordering::Relaxed);
                    drop(unpublished);
                }
            });
            for number in 0..COMMITS {
                let unpublished = commits.commit(|| {
                    // The previous commit is published.
                    assert_eq!(memory.load(Ordering::Relaxed), number);
                    tables.store(number + 1, Ordering::Relaxed);
                    Ok::<_, Infallible>(())
                });
                sender.send(unpublished.unwrap()).unwrap();
            }
            drop(sender);
        });
    }

    #[test]
    fn a_commit_that_fails_is_none() {
        let commits = Commits::default();
        assert!(commits.commit(|| Err("refused")).is_err());
        commits.wait_until_published();
        assert!(commits.between_commits(|is_published| is_published));
    }
}
