//! The boundary between the protocol and whatever holds the items.

use super::fingerprint::Sum;
use crate::item::Item;
use std::ops::Range;

/// A point between items: everything below it is on the left (negentropy v1,
/// "Bound"). The id is a prefix, filled with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The least item that lies to the right of the bound.
    pub item: Item,
    /// How many bytes of the id are sent, 0 to 32; the rest are zero.
    pub id_len: u8,
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

    /// The sum of the ids at `ranks`.
    fn sum(&self, ranks: Range<usize>) -> Sum;

    /// Calls `visit` with each item at `ranks`, in order.
    fn for_each(&self, ranks: Range<usize>, visit: &mut dyn FnMut(Item));
}
