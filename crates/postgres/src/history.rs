//! The last commits that the listener has, with their changed items, for recovery after the
//! database has lost some of them.

use crate::transaction::FeedPlace;
use negsync_reconcile::Item;
use std::collections::{HashSet, VecDeque};

/// Maximum number of remembered commits.
const MOST_COMMITS: usize = 10_000;
/// Maximum number of items in them, 40 bytes each.
const MOST_ITEMS: usize = 200_000;

/// A commit that the listener has.
#[derive(Debug)]
pub(crate) struct KnownCommit {
    pub(crate) place: FeedPlace,
    /// The items that it added or removed.
    pub(crate) items: Box<[Item]>,
}

/// The commits that the listener has, within the bounds. Empty before the first read.
#[derive(Debug, Default)]
pub(crate) struct CommitHistory {
    commits: VecDeque<KnownCommit>,
    // The number of items in all commits.
    items: usize,
}

impl CommitHistory {
    /// Begins with the commit at which everything was read.
    pub(crate) fn begin(place: FeedPlace) -> Self {
        let mut history = Self::default();
        history.push(KnownCommit { place, items: Box::default() });
        history
    }

    /// The last commit that the listener has.
    pub(crate) fn last(&self) -> Option<FeedPlace> {
        self.commits.back().map(|commit| commit.place)
    }

    /// Adds the next commit.
    pub(crate) fn push(&mut self, commit: KnownCommit) {
        debug_assert!(self.last().is_none_or(|last| last.seq < commit.place.seq));
        self.items += commit.items.len();
        self.commits.push_back(commit);
        // The last one stays, whatever its size.
        while (self.commits.len() > MOST_COMMITS || self.items > MOST_ITEMS)
            && self.commits.len() > 1
            && let Some(oldest) = self.commits.pop_front()
        {
            self.items -= oldest.items.len();
        }
    }

    /// The numbers and the marks of all commits, in order.
    pub(crate) fn places(&self) -> (Vec<i64>, Vec<i64>) {
        self.commits.iter().map(|commit| (commit.place.seq, commit.place.mark)).unzip()
    }

    /// The items that commits after a number changed.
    pub(crate) fn changed_since(&self, seq: i64) -> HashSet<Item> {
        let later = self.commits.iter().rev().take_while(|commit| commit.place.seq > seq);
        later.flat_map(|commit| commit.items.iter().copied()).collect()
    }

    /// Drops the commits after a number.
    pub(crate) fn cut(&mut self, seq: i64) {
        while let Some(last) = self.commits.pop_back() {
            if last.place.seq <= seq {
                self.commits.push_back(last);
                return;
            }
            self.items -= last.items.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(seq: i64, items: usize) -> KnownCommit {
        let item = |number: usize| Item::new(seq as u64 * 1_000_000 + number as u64, [1; 32]);
        KnownCommit {
            place: FeedPlace { seq, mark: seq * 7 },
            items: (0..items).map(item).collect(),
        }
    }

    #[test]
    fn it_is_bounded_in_commits_and_in_items() {
        let mut history = CommitHistory::begin(FeedPlace { seq: 0, mark: 5 });
        for seq in 1..30_000 {
            history.push(commit(seq, 3));
        }
        assert_eq!(history.commits.len(), MOST_COMMITS);
        history.push(commit(30_000, MOST_ITEMS - 6));
        assert_eq!(history.commits.len(), 3);
        history.push(commit(30_001, MOST_ITEMS + 1));
        assert_eq!(history.places().0, [30_001]);
    }

    #[test]
    fn what_is_cut_off_is_forgotten_and_what_it_changed_is_known_before() {
        let mut history = CommitHistory::begin(FeedPlace { seq: 4, mark: 5 });
        (5..10).for_each(|seq| history.push(commit(seq, 2)));
        let changed = history.changed_since(7);
        assert!(changed.len() == 4 && changed.iter().all(|item| item.created_at >= 8_000_000));
        history.cut(7);
        assert_eq!(history.last(), Some(FeedPlace { seq: 7, mark: 49 }));
        assert_eq!(history.items, 6);
        assert!(history.changed_since(7).is_empty());
    }
}
