//! The interface between the protocol and the storage of items.

use super::fingerprint::{Fingerprint, Sum};
use crate::item::Item;
use alloc::vec::Vec;
use core::ops::Range;

/// A point between items: all lower items are on its left (negentropy v1, "Bound"). The id is a
/// prefix, padded with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The lowest item that lies to the right of the bound.
    pub item: Item,
    /// Length of the id prefix that is sent, 0 to 32 bytes; the remaining bytes are zero.
    pub id_len: u8,
}

impl Bound {
    /// Below every item: the lower bound of a message's first range.
    pub const START: Self = Self::at(0);

    /// Above every item: the highest possible upper bound of a message's last range.
    pub const INFINITY: Self = Self::at(u64::MAX);

    /// Below every item with this `created_at` or a later one.
    #[must_use]
    pub const fn at(created_at: u64) -> Self {
        Self { item: Item::new(created_at, [0; 32]), id_len: 0 }
    }

    /// Just below `item`, with its whole id.
    #[must_use]
    pub const fn below(item: Item) -> Self {
        Self { item, id_len: 32 }
    }

    /// The shortest bound with `left` on its left and `right` on its right. `left` must be less
    /// than `right`.
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

/// A position in a set: between the items below it and the item at its rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RangePosition {
    /// The number of items below the position.
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
/// Ranks count from 0 in item order. A range that exceeds the set is cut to it; no call panics.
pub trait RangeSet {
    /// The number of items.
    fn len(&self) -> usize;

    /// Whether the set is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The item at `rank`, or `None` from `len` on.
    fn item(&self, rank: usize) -> Option<Item>;

    /// The number of items less than `item`: the rank of the first item that is not less.
    fn lower_bound(&self, item: &Item) -> usize;

    /// The sum of the ids at ranks below `rank`.
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

    /// The position of each of `items`. Responders call this with the bounds of a message, which
    /// mostly ascend: an implementation should search for each item from the position of the
    /// previous one.
    fn places(&self, items: &[Item]) -> Vec<RangePosition> {
        items.iter().map(|item| self.place(item)).collect()
    }

    /// The bound at each of `ranks` (see [`RangeSet::bound_at`]) and the sum of the ids below it.
    /// The ranks mostly ascend.
    fn cuts(&self, ranks: &[usize]) -> Vec<(Bound, Sum)> {
        ranks.iter().map(|rank| self.cut(*rank)).collect()
    }

    /// The position of `item`, whether or not the set has it.
    fn place(&self, item: &Item) -> RangePosition {
        let rank = self.lower_bound(item);
        RangePosition { rank, sum: self.sum_below(rank) }
    }

    /// The bound at `rank` and the sum of the ids below it.
    fn cut(&self, rank: usize) -> (Bound, Sum) {
        (self.bound_at(rank), self.sum_below(rank))
    }

    /// The fingerprint of the items at `ranks`, which must lie within the set.
    fn fingerprint(&self, ranks: Range<usize>) -> Fingerprint {
        let count = ranks.len();
        self.sum(ranks).fingerprint(count)
    }

    /// The shortest bound between the item before `rank` and the item at `rank`: [`Bound::START`]
    /// before the first item, [`Bound::INFINITY`] after the last.
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
