//! The recent acknowledgements of this node, so that they can be written again after the database
//! has lost them.

use crate::batch::Bytes;
use negsync_nostr::Event;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time for which acknowledgements are kept, counted back from the last answer.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// Maximum bytes of acknowledgements.
const MOST_BYTES: usize = 32 << 20;

/// An acknowledged operation.
#[derive(Debug, Clone)]
pub(crate) enum Acknowledged {
    /// An event was stored.
    Stored(Arc<Event>),
    /// An operator's action on ids.
    Operated { ids: Arc<[Bytes]>, action: OperatorAction },
}

/// An operator's action on events, by id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OperatorAction {
    /// Removes them.
    Remove,
    /// Removes them and keeps them out.
    Bury,
    /// Lifts their bans.
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
    // The number of the last commit of the operation.
    seq: i64,
    pub(crate) done: Acknowledged,
}

impl RecentAcknowledgements {
    /// Adds an operation acknowledged at `at` and done by the commit `seq` or an earlier one.
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

    /// Removes and returns, in order, the operations that may have been done by lost commits after
    /// `seq`. When written again they get a new number.
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
        // Removed entries count as lost only once.
        assert_eq!(recent.take_since(95).len(), 4);
        assert_eq!(recent.take_since(95).len(), 0);
        assert_eq!((recent.entries.len(), recent.bytes), (57, 57 * 32));
        recent.push(began + Duration::from_secs(100), 96, ids(MOST_BYTES / 32));
        assert_eq!((recent.entries.len(), recent.bytes), (1, MOST_BYTES));
        assert_eq!(recent.take_since(-1).len(), 1);
        assert_eq!(recent.bytes, 0);
    }
}
