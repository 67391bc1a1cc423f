//! What an initiator learns: which ids only one side has.

use super::range_set::RangeSet;
use std::collections::HashSet;
use std::ops::Range;

/// The differences that an initiator has found. The caller may empty the lists
/// whenever it likes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Ids that we have and the peer has not.
    pub have: Vec<[u8; 32]>,
    /// Ids that the peer has and we have not, each once, in the peer's order.
    pub need: Vec<[u8; 32]>,
}

impl Found {
    /// Nothing found.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether neither side lacks anything.
    pub fn is_empty(&self) -> bool {
        self.have.is_empty() && self.need.is_empty()
    }

    /// Adds what differs between our items at `ranks` and `theirs`, the peer's
    /// whole list for the same range.
    pub(super) fn compare<S: RangeSet>(
        &mut self,
        set: &S,
        ranks: Range<usize>,
        theirs: &[[u8; 32]],
    ) {
        let mut unmatched: HashSet<&[u8; 32]> = theirs.iter().collect();
        set.for_each(ranks, &mut |item| {
            if !unmatched.remove(&item.id) {
                self.have.push(item.id);
            }
        });
        self.need.extend(theirs.iter().filter(|id| unmatched.remove(*id)));
    }
}
