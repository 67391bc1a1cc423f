//! The part of a snapshot within a filter's `since`, `until` and `limit` (NIP-01).

use super::item_set::ItemSet;
use negsync_reconcile::Item;
use negsync_reconcile::{Bound, RangePosition, RangeSet, Sum};
use negsync_store::StoreError;
use std::ops::Range;

/// A view of a snapshot; ranks count from 0 within the view. Creating one costs O(log n) and copies
/// nothing; it never sees a later write to the set.
///
/// One range of the set's ranks suffices for `since` and `until`. `limit` may need a second one. It
/// prefers the newest events but, within a second, the lowest ids: where it cuts within a second,
/// the highest ids of that second are left out, and they lie between the part of that second that
/// is kept and the newer events.
#[derive(Clone, Debug)]
pub struct Slice {
    set: ItemSet,
    /// The ranks of the oldest second, as far as it is kept.
    head: Range<usize>,
    /// The ranks of all newer items; it begins where `head` ends or later.
    tail: Range<usize>,
}

impl Slice {
    /// The items of `set` from `since` to `until`, both included, and of those the first `limit` in
    /// NIP-01's order: newest first; within a second the lowest id first.
    pub fn new(
        set: impl Into<ItemSet>,
        since: Option<u64>,
        until: Option<u64>,
        limit: Option<usize>,
    ) -> Self {
        let set = set.into();
        let start = since.map_or(0, |since| rank_of(&set, Some(since)));
        let end = rank_of(&set, until.and_then(|until| until.checked_add(1))).max(start);
        let limit = limit.unwrap_or(usize::MAX);
        let dropped = (end - start).saturating_sub(limit);
        let oldest = set.item(start + dropped).filter(|_| dropped > 0);
        let Some(second) = oldest.map(|item| item.created_at) else {
            let from = start + dropped;
            return Self { set, head: from..end, tail: end..end };
        };
        let second_start = rank_of(&set, Some(second)).max(start);
        let second_end = rank_of(&set, second.checked_add(1)).min(end);
        let kept_of_second = limit.saturating_sub(end - second_end);
        let head = second_start..second_start + kept_of_second;
        Self { set, head, tail: second_end..end }
    }

    /// All items, in order.
    #[must_use]
    pub fn to_vec(&self) -> Vec<Item> {
        let mut items = Vec::with_capacity(self.len());
        self.for_each(0..self.len(), &mut |item| items.push(item));
        items
    }

    /// Checks that all answers from the slice so far are valid. Call it after each answer, before
    /// the answer is sent.
    ///
    /// # Errors
    /// [`StoreError::IndexLost`] when a part of the set could not be read.
    pub fn check(&self) -> Result<(), StoreError> {
        if self.set.is_readable() { Ok(()) } else { Err(StoreError::IndexLost) }
    }

    /// The set's ranks for `ranks` of the slice, cut to the slice.
    fn parts(&self, ranks: Range<usize>) -> [Range<usize>; 2] {
        let part = |part: &Range<usize>, skipped: usize| {
            let rank = |rank: usize| part.start + rank.saturating_sub(skipped).min(part.len());
            rank(ranks.start)..rank(ranks.end)
        };
        [part(&self.head, 0), part(&self.tail, self.head.len())]
    }
}

/// The rank of the first item at `second` or later; the end for `None`.
fn rank_of(set: &ItemSet, second: Option<u64>) -> usize {
    second.map_or(set.len(), |second| set.lower_bound(&Item::new(second, [0; 32])))
}

impl RangeSet for Slice {
    fn len(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    fn item(&self, rank: usize) -> Option<Item> {
        match rank.checked_sub(self.head.len()) {
            None => self.set.item(self.head.start + rank),
            Some(behind) if behind < self.tail.len() => self.set.item(self.tail.start + behind),
            Some(_) => None,
        }
    }

    fn lower_bound(&self, item: &Item) -> usize {
        let rank = self.set.lower_bound(item);
        let within = |part: &Range<usize>| rank.clamp(part.start, part.end) - part.start;
        within(&self.head) + within(&self.tail)
    }

    fn sum_below(&self, rank: usize) -> Sum {
        let [head, tail] = self.parts(0..rank);
        let mut sum = self.set.sum(head);
        sum.add(&self.set.sum(tail));
        sum
    }

    fn places(&self, items: &[Item]) -> Vec<RangePosition> {
        if !self.tail.is_empty() {
            return items.iter().map(|item| self.place(item)).collect();
        }
        // A single range: the items before it are before every position in it.
        let below = |rank| RangePosition { rank, sum: self.set.sum_below(rank) };
        let (start, end) = (below(self.head.start), below(self.head.end));
        let mut places = self.set.places(items);
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
        let start = self.set.sum_below(self.head.start);
        let end = self.set.sum_below(self.head.end);
        let of_set: Vec<usize> =
            ranks.iter().map(|rank| self.head.start.saturating_add(*rank)).collect();
        let mut cuts = self.set.cuts(&of_set);
        for ((bound, sum), rank) in cuts.iter_mut().zip(ranks) {
            // The slice has other ends than the set.
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
            self.set.for_each(part, visit);
        }
    }
}
