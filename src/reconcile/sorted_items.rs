//! The plainest range set: a sorted vector beside the running sums of its ids.

use super::fingerprint::Sum;
use super::range_set::RangeSet;
use crate::item::Item;
use std::ops::Range;

/// Items in order with the sum of all that come before each: any range sum is
/// one subtraction. 72 bytes an item. For sets that are built once and thrown
/// away; a set that changes belongs in `index::tree`.
#[derive(Clone, Debug, Default)]
pub struct SortedItems {
    items: Vec<Item>,
    /// The sum of the first `i + 1` ids, for each rank `i`.
    sums: Vec<Sum>,
}

impl SortedItems {
    /// The items of `items` in order, each once.
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
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// The sum of the ids below `rank`.
    fn sum_below(&self, rank: usize) -> Sum {
        let last = rank.min(self.sums.len()).checked_sub(1);
        last.and_then(|last| self.sums.get(last)).copied().unwrap_or(Sum::ZERO)
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

    fn sum(&self, ranks: Range<usize>) -> Sum {
        if ranks.is_empty() {
            return Sum::ZERO;
        }
        let mut sum = self.sum_below(ranks.end);
        sum.subtract(&self.sum_below(ranks.start));
        sum
    }

    fn sum_until(&self, start: usize, item: &Item) -> (usize, Sum) {
        // The end is near more often than not: look twice as far each time.
        let rest = self.items.get(start..).unwrap_or_default();
        let mut far = 16;
        while rest.get(far).is_some_and(|own| own < item) {
            far *= 2;
        }
        let near = rest.get(..far).unwrap_or(rest);
        let known = if far > 16 { far / 2 } else { 0 };
        let beyond = near.get(known..).unwrap_or_default();
        let end = start + known + beyond.partition_point(|own| own < item);
        (end, self.sum(start..end))
    }

    fn for_each(&self, ranks: Range<usize>, visit: &mut dyn FnMut(Item)) {
        let end = ranks.end.min(self.items.len());
        self.items.get(ranks.start..end).unwrap_or_default().iter().copied().for_each(visit);
    }
}
