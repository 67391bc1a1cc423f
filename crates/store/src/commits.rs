//! The one sequence of a store's commits, which the writer, the thread that flushes, readings and the
//! sets in memory keep time by.
//!
//! A commit is *made* when the tables hold it and readings see it. It is *told* when it has been
//! flushed and the listener knows of it, and with that every set in memory. The next is made only
//! once the last is told. From that follows:
//!
//! - *Nothing is acknowledged before it is flushed and told.* One thread does both, commit by
//!   commit, and replies after them (`flush`). What could not be flushed is told all the same,
//!   since readings see it, and its replies say so.
//! - *A reading knows the last commit that it sees.* One that has to be of the same commit as the
//!   sets in memory begins [between](Commits::between) two commits.
//! - *Nobody gets a set of no moment.* A set that was read from the tables is at most one commit
//!   ahead of what was told; once that has been [told](Commits::wait_until_told), applying what was
//!   told meanwhile, each item's last step last, makes it whole. Were two commits ahead, telling of
//!   the first would take the set back to it, in part.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a reading waits for a commit to be told: as long as a disk may take that still works.
const TELL_TIMEOUT: Duration = Duration::from_secs(5);

/// The commits of a store. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Commits(Arc<CommitState>);

#[derive(Default)]
struct CommitState {
    counts: Mutex<CommitCounts>,
    // Signalled when a commit has been told, and when the last reading that waited has begun.
    moved: Condvar,
}

#[derive(Default)]
struct CommitCounts {
    made: u64,
    // As many as were made, or one less.
    told: u64,
    // Readings that wait to begin: the next commit is made after them. They are no more than there
    // are connections that read.
    waiting: usize,
}

/// A commit that is made. Dropped once it is told.
pub(super) struct Untold(Commits);

impl Commits {
    /// Runs `commit` once the last one is told. When it fails there is no commit.
    pub(super) fn make<E>(&self, commit: impl FnOnce() -> Result<(), E>) -> Result<Untold, E> {
        let is_early = |counts: &mut CommitCounts| counts.is_untold() || counts.waiting > 0;
        let waited = self.0.moved.wait_while(self.lock(), is_early);
        let mut counts = waited.unwrap_or_else(PoisonError::into_inner);
        commit()?;
        counts.made += 1;
        Ok(Untold(self.clone()))
    }

    /// Runs `begin` while no commit is made, and with `true` when all that were made are told; this
    /// is waited for, but not for ever.
    pub(super) fn between<T>(&self, begin: impl FnOnce(bool) -> T) -> T {
        let mut counts = self.lock();
        if counts.is_untold() {
            counts.waiting += 1;
            let is_untold = |counts: &mut CommitCounts| counts.is_untold();
            let waited = self.0.moved.wait_timeout_while(counts, TELL_TIMEOUT, is_untold);
            counts = waited.unwrap_or_else(PoisonError::into_inner).0;
            counts.waiting -= 1;
            self.0.moved.notify_all();
        }
        begin(!counts.is_untold())
    }

    /// Waits until every commit is told that may have been read before the call.
    pub(super) fn wait_until_told(&self) {
        let counts = self.lock();
        let made = counts.made;
        drop(self.0.moved.wait_while(counts, |counts| counts.told < made));
    }

    fn lock(&self) -> MutexGuard<'_, CommitCounts> {
        self.0.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CommitCounts {
    fn is_untold(&self) -> bool {
        self.told < self.made
    }
}

impl Drop for Untold {
    fn drop(&mut self) {
        self.0.lock().told += 1;
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
        let (sender, flushing) = channel::<Untold>();
        std::thread::scope(|scope| {
            for _ in 0..READERS {
                scope.spawn(|| {
                    let mut seen = 0;
                    for _ in 0..COMMITS {
                        let (in_tables, in_memory) = commits.between(|is_told| {
                            assert!(is_told);
                            (tables.load(Ordering::Relaxed), memory.load(Ordering::Relaxed))
                        });
                        assert_eq!(in_tables, in_memory);
                        assert!(seen <= in_tables);
                        seen = in_tables;
                        let scanned = tables.load(Ordering::Relaxed);
                        commits.wait_until_told();
                        assert!(scanned <= memory.load(Ordering::Relaxed));
                    }
                });
            }
            scope.spawn(|| {
                for untold in flushing {
                    memory.fetch_add(1, Ordering::Relaxed);
                    drop(untold);
                }
            });
            for number in 0..COMMITS {
                let untold = commits.make(|| {
                    // The one before is told.
                    assert_eq!(memory.load(Ordering::Relaxed), number);
                    tables.store(number + 1, Ordering::Relaxed);
                    Ok::<_, Infallible>(())
                });
                sender.send(untold.unwrap()).unwrap();
            }
            drop(sender);
        });
    }

    #[test]
    fn a_commit_that_fails_is_none() {
        let commits = Commits::default();
        assert!(commits.make(|| Err("refused")).is_err());
        commits.wait_until_told();
        assert!(commits.between(|is_told| is_told));
    }
}
