//! What an initiator learns: which ids only one side has.

use super::range_set::RangeSet;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

/// The differences that an initiator has found. The caller may empty the lists
/// whenever it likes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Ids that we have and the peer has not.
    pub have: Vec<[u8; 32]>,
    /// Ids that the peer has and we have not, each once, in the peer's order.
    pub need: Vec<[u8; 32]>,
    /// When the differences were made, by the first second of each time bucket of time in which there
    /// are any; empty unless [`InitiatorOptions::time_bucket_s`](super::InitiatorOptions::time_bucket_s) is set.
    pub time_buckets: BTreeMap<u64, DifferenceCount>,
}

/// How many events only one side has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DifferenceCount {
    /// Events that we have and the peer has not.
    pub have: u64,
    /// Events that the peer has and we have not.
    pub need: u64,
}

impl Difference {
    /// Nothing found.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether neither side lacks anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.have.is_empty() && self.need.is_empty()
    }

    /// Counts differences in the time bucket that begins at second `start`.
    pub(super) fn count(&mut self, start: u64, have: usize, need: usize) {
        if have + need > 0 {
            let time_bucket = self.time_buckets.entry(start).or_default();
            time_bucket.have += have as u64;
            time_bucket.need += need as u64;
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
        let mut listed: Vec<(&[u8; 32], bool)> = theirs.iter().map(|id| (id, false)).collect();
        listed.sort_unstable();
        listed.dedup();
        // Marks an id of the peer's list; returns whether it was there and not marked before.
        let mut take = |id: &[u8; 32]| {
            let place = listed.binary_search_by(|(listed, _)| (*listed).cmp(id));
            let entry = place.ok().and_then(|place| listed.get_mut(place));
            entry.is_some_and(|(_, is_taken)| !core::mem::replace(is_taken, true))
        };
        set.for_each(ranks, &mut |item| {
            if !take(&item.id) {
                self.have.push(item.id);
            }
        });
        self.need.extend(theirs.iter().filter(|id| take(id)));
    }
}
