//! The one sequence of a store's commits, which the writer, the thread that flushes, readings and the
//! sets in memory keep time by.
//!
//! A commit is *committed* when the tables hold it and readings see it. It is *published* when it has been flushed and
//! the listener knows of it, and with that every set in memory. The next commit waits until the last one is
//! published. From that follows:
//!
//! - *Nothing is acknowledged before it is flushed and published.* One thread does both, commit by commit, and
//!   replies after them (`flush`). A commit whose flush failed is published too, since readings see it; its
//!   replies say that it may not be durable.
//! - *A reading knows the last commit that it sees.* One that has to be of the same commit as the sets in memory
//!   begins [between](Commits::between_commits) two commits.
//! - *Every set is consistent with exactly one commit.* A set that was read from the tables is at most one commit
//!   ahead of what was published. Once that commit is [published](Commits::wait_until_published), the set is made
//!   whole by applying what was published meanwhile, each item's last step last. Were it two commits ahead,
//!   publishing the first would take the set back to it, in part.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a reading waits for a commit to be published: as long as a disk may take that still works.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// The commits of a store. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Commits(Arc<CommitState>);

#[derive(Default)]
struct CommitState {
    counts: Mutex<CommitCounts>,
    // Signalled when a commit has been published, and when the last reading that waited has begun.
    moved: Condvar,
}

#[derive(Default)]
struct CommitCounts {
    committed: u64,
    // As many as were committed, or one less.
    published: u64,
    // Readings that wait to begin: the next commit waits for them. They are no more than there
    // are connections that read.
    waiting: usize,
}

/// A commit that is not published yet. Dropped once it is.
pub(super) struct Unpublished(Commits);

impl Commits {
    /// Runs `commit` once the last one is published. When it fails there is no commit.
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

    /// Runs `begin` while nothing is committed, and with `true` when every commit is published. It
    /// waits for that, with a deadline.
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

    /// Waits until every commit is published that may have been read before the call.
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

    /// What is made and what is known of it in memory are two counters that different threads
    /// move, as the writer and the thread that flushes do.
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
                    // The one before is published.
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
