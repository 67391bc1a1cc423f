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
    /// Ids that an operator removed, and that are kept out where `is_buried`.
    Removed { ids: Arc<[Bytes]>, is_buried: bool },
}

impl Acknowledged {
    pub(crate) fn memory_bytes(&self) -> usize {
        match self {
            Self::Stored(event) => event.memory_bytes(),
            Self::Removed { ids, .. } => size_of_val(&**ids),
        }
    }
}

/// The acknowledgements of the last minute.
#[derive(Debug, Default)]
pub(crate) struct RecentAcknowledgements {
    entries: VecDeque<RecentEntry>,
    bytes: usize,
}

#[derive(Debug)]
struct RecentEntry {
    at: Instant,
    // The last commit by which it was done.
    seq: i64,
    done: Acknowledged,
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

    /// What may have been done by commits behind a number, in order.
    pub(crate) fn since(&self, seq: i64) -> Vec<Acknowledged> {
        let later = self.entries.iter().filter(|entry| entry.seq > seq);
        later.map(|entry| entry.done.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_before_the_last_answer_is_kept_and_no_more_than_the_bound() {
        let mut recent = RecentAcknowledgements::default();
        let began = Instant::now();
        let ids = |count: usize| Acknowledged::Removed {
            ids: vec![[7; 32]; count].into(),
            is_buried: true,
        };
        for second in 0..100 {
            recent.push(began + Duration::from_secs(second), second as i64, ids(1));
        }
        assert_eq!(recent.since(-1).len(), 61);
        assert_eq!(recent.since(95).len(), 4);
        recent.push(began + Duration::from_secs(100), 100, ids(MOST_BYTES / 32));
        assert_eq!(recent.since(-1).len(), 1);
        assert_eq!(recent.bytes, MOST_BYTES);
    }
}
