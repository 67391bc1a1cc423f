//! The simplest range set: a sorted vector with the running sums of its ids.

use super::fingerprint::Sum;
use super::range_set::RangeSet;
use crate::item::Item;
use alloc::vec::Vec;
use core::ops::Range;

/// Sorted items, each with the sum of all ids up to it: the sum of any range is one subtraction. 72
/// bytes an item. For sets that are built once and dropped; use `index::tree` for a set that
/// changes.
#[derive(Clone, Debug, Default)]
pub struct SortedItems {
    items: Vec<Item>,
    /// The sum of the first `i + 1` ids, for each rank `i`.
    sums: Vec<Sum>,
}

impl SortedItems {
    /// Sorts `items` and removes duplicates.
    #[must_use]
    pub fn new(mut items: Vec<Item>) -> Self {
        items.sort_unstable();
        items.dedup();
        let mut total = Sum::ZERO;
        let sums = items
            .iter()
            .map(|item| {
                total.add(&Sum::of(&item.id));
                total
            })
            .collect();
        Self { items, sums }
    }

    /// The items, in order.
    #[must_use]
    pub fn items(&self) -> &[Item] {
        &self.items
    }
}

impl FromIterator<Item> for SortedItems {
    fn from_iter<I: IntoIterator<Item = Item>>(items: I) -> Self {
        Self::new(items.into_iter().collect())
    }
}

impl RangeSet for SortedItems {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn item(&self, rank: usize) -> Option<Item> {
        self.items.get(rank).copied()
    }

    fn lower_bound(&self, item: &Item) -> usize {
        self.items.partition_point(|own| own < item)
    }

    fn sum_below(&self, rank: usize) -> Sum {
        let last = rank.min(self.sums.len()).checked_sub(1);
        last.and_then(|last| self.sums.get(last)).copied().unwrap_or(Sum::ZERO)
    }

    fn for_each(&self, ranks: Range<usize>, visit: &mut dyn FnMut(Item)) {
        let end = ranks.end.min(self.items.len());
        self.items.get(ranks.start..end).unwrap_or_default().iter().copied().for_each(visit);
    }
}
