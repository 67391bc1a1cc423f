//! Which commit a reading of the store is of.

use std::sync::{Arc, Mutex, PoisonError};

/// Counts the commits that change what is stored. Clones share the count.
///
/// Commits are counted and readings begun one at a time, so that a reading knows the last commit
/// that it sees: what is known of that commit elsewhere is known of the reading.
#[derive(Clone, Default)]
pub(super) struct Commits(Arc<Mutex<u64>>);

impl Commits {
    /// Runs `commit`, which counts when it is done and `counts`; returns its number.
    pub(super) fn count<E>(
        &self,
        counts: bool,
        commit: impl FnOnce() -> Result<(), E>,
    ) -> Result<u64, E> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        commit()?;
        *last += u64::from(counts);
        Ok(*last)
    }

    /// Runs `begin` with the number of the last commit, before there is a next one.
    pub(super) fn hold<T>(&self, begin: impl FnOnce(u64) -> T) -> T {
        begin(*self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
