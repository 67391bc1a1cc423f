//! The result of a reconciliation: the ids that only one side has.

use super::options::{InitiatorError, InitiatorStep};
use super::range_set::RangeSet;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

/// The differences that an initiator has found so far. The caller may empty the lists at any time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Ids that we have and the peer lacks.
    pub have: Vec<[u8; 32]>,
    /// Ids that the peer has and we lack, each once, in the peer's order.
    pub need: Vec<[u8; 32]>,
    /// Differences by the time of their events: the first second of each time bucket with
    /// differences, and their counts. Empty unless
    /// [`InitiatorOptions::time_bucket_s`](super::InitiatorOptions::time_bucket_s) is set.
    pub time_buckets: BTreeMap<u64, DifferenceCount>,
}

/// The number of events that only one side has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DifferenceCount {
    /// Events that we have and the peer lacks.
    pub have: u64,
    /// Events that the peer has and we lack.
    pub need: u64,
}

/// What the answers of a session have shown so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SessionEvidence {
    /// A fingerprint of the peer that differed from ours.
    pub(super) unequal: bool,
    /// An answer that was cut: its last fingerprint may be of other bounds than it says.
    pub(super) cut: bool,
    pub(super) difference: bool,
}

impl SessionEvidence {
    /// The end of a session in which every range is settled.
    pub(super) fn end(self) -> Result<InitiatorStep, InitiatorError> {
        if self.unequal && !self.cut && !self.difference {
            return Err(InitiatorError::Contradiction);
        }
        Ok(InitiatorStep::Done)
    }
}

impl Difference {
    /// No differences.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether no differences were found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.have.is_empty() && self.need.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.have.len() + self.need.len()
    }

    /// Counts differences in the time bucket that begins at second `start`.
    pub(super) fn count(&mut self, start: u64, have: usize, need: usize) {
        if have + need > 0 {
            let time_bucket = self.time_buckets.entry(start).or_default();
            time_bucket.have += have as u64;
            time_bucket.need += need as u64;
        }
    }

    /// Adds the differences between our items at `ranks` and `theirs`, the peer's whole list for
    /// the same range.
    pub(super) fn compare<S: RangeSet>(
        &mut self,
        set: &S,
        ranks: Range<usize>,
        theirs: &[[u8; 32]],
    ) {
        let mut listed: Vec<(&[u8; 32], bool)> = theirs.iter().map(|id| (id, false)).collect();
        listed.sort_unstable();
        listed.dedup();
        // Marks an id of the peer's list. Returns true if the list has it and it was not marked
        // before.
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
