//! The filters whose sets were found too large to keep, so that they are not scanned for again at
//! each session.

use negsync_store::Filter;
use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Maximum number of filters; the oldest is dropped first.
const FILTERS: usize = 256;
/// Seconds after which a set is tried again: events may have been removed, or a disk freed.
const TERM_S: u64 = 600;

/// These filters, by hash: a filter may be of any length.
#[derive(Default)]
pub(super) struct Oversized {
    hasher: RandomState,
    noted: Mutex<VecDeque<Noted>>,
}

struct Noted {
    hash: u64,
    until: u64,
}

impl Oversized {
    /// Whether the filter was noted less than its term before the second `now`.
    pub(super) fn contains(&self, content: &Filter, now: u64) -> bool {
        let hash = self.hasher.hash_one(content);
        self.lock().iter().any(|noted| noted.hash == hash && now < noted.until)
    }

    /// Notes a filter at the second `now`.
    pub(super) fn note(&self, content: &Filter, now: u64) {
        let hash = self.hasher.hash_one(content);
        let mut noted = self.lock();
        noted.retain(|noted| noted.hash != hash);
        noted.truncate(FILTERS - 1);
        noted.push_front(Noted { hash, until: now.saturating_add(TERM_S) });
    }

    /// Forgets all filters, because the store is another one now.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Noted>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
