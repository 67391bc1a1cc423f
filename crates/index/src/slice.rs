//! What a filter's `since`, `until` and `limit` leave of a snapshot (NIP-01).

use super::tree::Tree;
use negsync_reconcile::Item;
use negsync_reconcile::{Bound, RangePosition, RangeSet, Sum};
use std::ops::Range;

/// A view of a snapshot: ranks count from 0 within the view. Making one costs
/// O(log n) and copies nothing; it never sees a later write to the tree.
///
/// One range of the tree's ranks is enough for `since` and `until`. `limit`
/// may take a second one, because it prefers the newest events but, among those
/// of one second, the lowest ids: where it cuts within a second, the highest
/// ids of that second are left out, and they lie between what is kept of it and
/// all that is newer.
#[derive(Clone, Debug)]
pub struct Slice {
    tree: Tree,
    /// The ranks in the tree of the oldest second, as much of it as is kept.
    head: Range<usize>,
    /// The ranks of all that is newer; it begins where `head` ends or later.
    tail: Range<usize>,
}

impl Slice {
    /// The items of `tree` from `since` to `until`, both inclusive, and of
    /// those the `limit` that NIP-01 puts first: newest first and, within one
    /// second, lowest id first.
    pub fn new(tree: Tree, since: Option<u64>, until: Option<u64>, limit: Option<usize>) -> Self {
        let start = since.map_or(0, |since| rank_of(&tree, Some(since)));
        let end = rank_of(&tree, until.and_then(|until| until.checked_add(1))).max(start);
        let limit = limit.unwrap_or(usize::MAX);
        let dropped = (end - start).saturating_sub(limit);
        let oldest = tree.item(start + dropped).filter(|_| dropped > 0);
        let Some(second) = oldest.map(|item| item.created_at) else {
            let from = start + dropped;
            return Self { tree, head: from..end, tail: end..end };
        };
        let second_start = rank_of(&tree, Some(second)).max(start);
        let second_end = rank_of(&tree, second.checked_add(1)).min(end);
        let kept_of_second = limit.saturating_sub(end - second_end);
        let head = second_start..second_start + kept_of_second;
        Self { tree, head, tail: second_end..end }
    }

    /// The items at `ranks`, in order. A range past the end is cut to the slice.
    pub fn iter_range(&self, ranks: Range<usize>) -> impl Iterator<Item = &Item> {
        let [head, tail] = self.parts(ranks);
        self.tree.iter_range(head).chain(self.tree.iter_range(tail))
    }

    /// The tree's ranks for `ranks` of the slice, cut to the slice.
    fn parts(&self, ranks: Range<usize>) -> [Range<usize>; 2] {
        let part = |part: &Range<usize>, skipped: usize| {
            let rank = |rank: usize| part.start + rank.saturating_sub(skipped).min(part.len());
            rank(ranks.start)..rank(ranks.end)
        };
        [part(&self.head, 0), part(&self.tail, self.head.len())]
    }
}

/// The rank of the first item at `second` or later; the end for `None`.
fn rank_of(tree: &Tree, second: Option<u64>) -> usize {
    second.map_or(tree.len(), |second| tree.lower_bound(&Item::new(second, [0; 32])))
}

impl RangeSet for Slice {
    fn len(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    fn item(&self, rank: usize) -> Option<Item> {
        self.iter_range(rank..rank.saturating_add(1)).next().copied()
    }

    fn lower_bound(&self, item: &Item) -> usize {
        let rank = self.tree.lower_bound(item);
        let within = |part: &Range<usize>| rank.clamp(part.start, part.end) - part.start;
        within(&self.head) + within(&self.tail)
    }

    fn sum_below(&self, rank: usize) -> Sum {
        let [head, tail] = self.parts(0..rank);
        let mut sum = self.tree.sum(head);
        sum.add(&self.tree.sum(tail));
        sum
    }

    fn places(&self, items: &[Item]) -> Vec<RangePosition> {
        if !self.tail.is_empty() {
            return items.iter().map(|item| self.place(item)).collect();
        }
        // One range of the tree: what is before it is before every place in it.
        let below = |rank| RangePosition { rank, sum: self.tree.sum_below(rank) };
        let (start, end) = (below(self.head.start), below(self.head.end));
        let mut places = self.tree.places(items);
        for place in &mut places {
            if place.rank < start.rank {
                *place = start;
            } else if place.rank > end.rank {
                *place = end;
            }
            place.rank -= start.rank;
            place.sum.subtract(&start.sum);
        }
        places
    }

    fn cuts(&self, ranks: &[usize]) -> Vec<(Bound, Sum)> {
        if !self.tail.is_empty() {
            return ranks.iter().map(|rank| self.cut(*rank)).collect();
        }
        let start = self.tree.sum_below(self.head.start);
        let end = self.tree.sum_below(self.head.end);
        let of_tree: Vec<usize> =
            ranks.iter().map(|rank| self.head.start.saturating_add(*rank)).collect();
        let mut cuts = self.tree.cuts(&of_tree);
        for ((bound, sum), rank) in cuts.iter_mut().zip(ranks) {
            // The ends of the slice are not those of the tree.
            if *rank == 0 || *rank >= self.head.len() {
                *bound = self.bound_at(*rank);
            }
            if *rank > self.head.len() {
                *sum = end;
            }
            sum.subtract(&start);
        }
        cuts
    }

    fn for_each(&self, ranks: Range<usize>, visit: &mut dyn FnMut(Item)) {
        for part in self.parts(ranks) {
            self.tree.for_each(part, visit);
        }
    }
}
