//! What an initiator learns: which ids only one side has.

use super::range_set::RangeSet;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

/// The differences that an initiator has found. The caller may empty the lists
/// whenever it likes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Ids that we have and the peer has not.
    pub have: Vec<[u8; 32]>,
    /// Ids that the peer has and we have not, each once, in the peer's order.
    pub need: Vec<[u8; 32]>,
    /// When the differences were made, by the first second of each cell of time in which there
    /// are any; empty unless [`Options::cell_s`](super::Options::cell_s) is set.
    pub cells: BTreeMap<u64, Differences>,
}

/// How many events only one side has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Events that we have and the peer has not.
    pub have: u64,
    /// Events that the peer has and we have not.
    pub need: u64,
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

    /// Counts differences in the cell that begins at second `start`.
    pub(super) fn count(&mut self, start: u64, have: usize, need: usize) {
        if have + need > 0 {
            let cell = self.cells.entry(start).or_default();
            cell.have += have as u64;
            cell.need += need as u64;
        }
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
