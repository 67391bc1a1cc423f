//! The boundary between the protocol and whatever holds the items.

use super::fingerprint::{Fingerprint, Sum};
use crate::item::Item;
use alloc::vec::Vec;
use core::ops::Range;

/// A point between items: everything below it is on the left (negentropy v1,
/// "Bound"). The id is a prefix, filled with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The least item that lies to the right of the bound.
    pub item: Item,
    /// How many bytes of the id are sent, 0 to 32; the rest are zero.
    pub id_len: u8,
}

impl Bound {
    /// Below every item: where the first range of a message begins.
    pub const START: Self = Self::at(0);

    /// Above every item: where the last range of a message may end.
    pub const INFINITY: Self = Self::at(u64::MAX);

    /// Below every item made at `created_at` or later.
    #[must_use]
    pub const fn at(created_at: u64) -> Self {
        Self { item: Item::new(created_at, [0; 32]), id_len: 0 }
    }

    /// Just below `item`, with its whole id.
    #[must_use]
    pub const fn below(item: Item) -> Self {
        Self { item, id_len: 32 }
    }

    /// The shortest bound that has `left` on its left and `right` on its right,
    /// for `left` less than `right`.
    #[must_use]
    pub fn between(left: &Item, right: &Item) -> Self {
        if left.created_at != right.created_at {
            return Self::at(right.created_at);
        }
        let shared = left.id.iter().zip(&right.id).take_while(|(l, r)| l == r).count();
        let id_len = (shared + 1).min(32);
        let mut id = [0; 32];
        for (to, from) in id.iter_mut().zip(right.id).take(id_len) {
            *to = from;
        }
        Self { item: Item::new(right.created_at, id), id_len: id_len as u8 }
    }
}

/// A point of a set: between the items below it and the one at its rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RangePosition {
    /// How many items are below.
    pub rank: usize,
    /// The sum of their ids.
    pub sum: Sum,
}

impl RangePosition {
    /// The fingerprint of the items from `lower` to here.
    #[must_use]
    pub fn fingerprint_from(&self, lower: &Self) -> Fingerprint {
        let mut sum = self.sum;
        sum.subtract(&lower.sum);
        sum.fingerprint(self.rank.saturating_sub(lower.rank))
    }
}

/// A complete, immutable, ordered set of items that a session answers from.
///
/// Ranks count from 0 in item order. A range that reaches past the end is cut
/// to the set: no call panics.
pub trait RangeSet {
    /// How many items there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The item at `rank`, or `None` from `len` on.
    fn item(&self, rank: usize) -> Option<Item>;

    /// How many items are less than `item`: the rank of the first that is not.
    fn lower_bound(&self, item: &Item) -> usize;

    /// The sum of the ids below `rank`.
    fn sum_below(&self, rank: usize) -> Sum;

    /// Calls `visit` with each item at `ranks`, in order.
    fn for_each(&self, ranks: Range<usize>, visit: &mut dyn FnMut(Item));

    /// The sum of the ids at `ranks`.
    fn sum(&self, ranks: Range<usize>) -> Sum {
        if ranks.is_empty() {
            return Sum::ZERO;
        }
        let mut sum = self.sum_below(ranks.end);
        sum.subtract(&self.sum_below(ranks.start));
        sum
    }

    /// Where each of `items` is, or would be. Responders ask this of the bounds
    /// of a message, which mostly ascend: a set that finds one from the one
    /// before it should.
    fn places(&self, items: &[Item]) -> Vec<RangePosition> {
        items.iter().map(|item| self.place(item)).collect()
    }

    /// The bound at each of `ranks`, as [`RangeSet::bound_at`] has it, and the
    /// sum below; mostly asked for ranks that ascend.
    fn cuts(&self, ranks: &[usize]) -> Vec<(Bound, Sum)> {
        ranks.iter().map(|rank| self.cut(*rank)).collect()
    }

    /// Where `item` is, or would be.
    fn place(&self, item: &Item) -> RangePosition {
        let rank = self.lower_bound(item);
        RangePosition { rank, sum: self.sum_below(rank) }
    }

    /// The bound at `rank` and the sum below.
    fn cut(&self, rank: usize) -> (Bound, Sum) {
        (self.bound_at(rank), self.sum_below(rank))
    }

    /// The fingerprint of the items at `ranks`, which lie within the set.
    fn fingerprint(&self, ranks: Range<usize>) -> Fingerprint {
        let count = ranks.len();
        self.sum(ranks).fingerprint(count)
    }

    /// The shortest bound between the item before `rank` and the one at
    /// `rank`; the start before the first, infinity after the last.
    fn bound_at(&self, rank: usize) -> Bound {
        let Some(left) = rank.checked_sub(1).and_then(|left| self.item(left)) else {
            return Bound::START;
        };
        self.item(rank).map_or(Bound::INFINITY, |right| Bound::between(&left, &right))
    }
}

impl<S: RangeSet + ?Sized> RangeSet for &S {
    fn len(&self) -> usize {
        (**self).len()
    }

    fn item(&self, rank: usize) -> Option<Item> {
        (**self).item(rank)
    }

    fn lower_bound(&self, item: &Item) -> usize {
        (**self).lower_bound(item)
    }

    fn sum_below(&self, rank: usize) -> Sum {
        (**self).sum_below(rank)
    }

    fn for_each(&self, ranks: Range<usize>, visit: &mut dyn FnMut(Item)) {
        (**self).for_each(ranks, visit);
    }

    fn sum(&self, ranks: Range<usize>) -> Sum {
        (**self).sum(ranks)
    }

    fn places(&self, items: &[Item]) -> Vec<RangePosition> {
        (**self).places(items)
    }

    fn cuts(&self, ranks: &[usize]) -> Vec<(Bound, Sum)> {
        (**self).cuts(ranks)
    }
}
