//! What this node has acknowledged lately, so that it can be sent again when the database has lost it.

use crate::batch::Bytes;
use negsync_nostr::Event;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What was acknowledged for so long before the last answer is kept.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// And at most so many bytes of it.
const MOST_BYTES: usize = 32 << 20;

/// One thing that was done and acknowledged.
#[derive(Debug, Clone)]
pub(crate) enum Acknowledged {
    /// An event that is stored.
    Stored(Arc<Event>),
    /// What an operator did with ids.
    Operated { ids: Arc<[Bytes]>, action: OperatorAction },
}

/// What an operator does with events, by id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OperatorAction {
    /// Removes them.
    Remove,
    /// Removes them and keeps them out.
    Bury,
    /// Keeps them out no more.
    Undelete,
}

impl Acknowledged {
    pub(crate) fn memory_bytes(&self) -> usize {
        match self {
            Self::Stored(event) => event.memory_bytes(),
            Self::Operated { ids, .. } => size_of_val(&**ids),
        }
    }
}

/// The acknowledgements of the last minute.
#[derive(Debug, Default)]
pub(crate) struct RecentAcknowledgements {
    entries: VecDeque<RecentEntry>,
    bytes: usize,
}

/// One acknowledgement.
#[derive(Debug)]
pub(crate) struct RecentEntry {
    pub(crate) at: Instant,
    // The last commit by which it was done.
    seq: i64,
    pub(crate) done: Acknowledged,
}

impl RecentAcknowledgements {
    /// Keeps what was acknowledged at `at`, done by the commit `seq` or before it.
    pub(crate) fn push(&mut self, at: Instant, seq: i64, done: Acknowledged) {
        self.bytes += done.memory_bytes();
        self.entries.push_back(RecentEntry { at, seq, done });
        let is_old = |entry: &RecentEntry| at.saturating_duration_since(entry.at) > KEPT_FOR;
        while (self.bytes > MOST_BYTES || self.entries.front().is_some_and(is_old))
            && let Some(oldest) = self.entries.pop_front()
        {
            self.bytes -= oldest.done.memory_bytes();
        }
    }

    /// Takes out what may have been done by commits behind a number, which are lost, in order: once it is
    /// done again it has another number.
    pub(crate) fn take_since(&mut self, seq: i64) -> VecDeque<RecentEntry> {
        let (kept, lost) =
            std::mem::take(&mut self.entries).into_iter().partition(|entry| entry.seq <= seq);
        self.entries = kept;
        self.bytes = self.entries.iter().map(|entry| entry.done.memory_bytes()).sum();
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_before_the_last_answer_is_kept_and_no_more_than_the_bound() {
        let mut recent = RecentAcknowledgements::default();
        let began = Instant::now();
        let ids = |count: usize| Acknowledged::Operated {
            ids: vec![[7; 32]; count].into(),
            action: OperatorAction::Bury,
        };
        for second in 0..100 {
            recent.push(began + Duration::from_secs(second), second as i64, ids(1));
        }
        assert_eq!((recent.entries.len(), recent.bytes), (61, 61 * 32));
        // What is taken out is lost once.
        assert_eq!(recent.take_since(95).len(), 4);
        assert_eq!(recent.take_since(95).len(), 0);
        assert_eq!((recent.entries.len(), recent.bytes), (57, 57 * 32));
        recent.push(began + Duration::from_secs(100), 96, ids(MOST_BYTES / 32));
        assert_eq!((recent.entries.len(), recent.bytes), (1, MOST_BYTES));
        assert_eq!(recent.take_since(-1).len(), 1);
        assert_eq!(recent.bytes, 0);
    }
}
