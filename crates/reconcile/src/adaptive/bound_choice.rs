//! The bounds at which a range is divided: even or random.
//!
//! An attacker can craft two sets whose sums are equal in the ranges that even bounds produce. A
//! second session with random bounds compares other ranges.

use crate::range_set::{Bound, RangeSet};
use crate::reference::{SplitBucket, buckets_between, even_ends};
use alloc::vec::Vec;
use core::ops::Range;

/// Chooses bounds. Without a seed the buckets are even.
#[derive(Clone, Copy, Debug)]
pub(super) struct BoundChoice {
    state: Option<u64>,
}

impl BoundChoice {
    pub(super) fn new(seed: Option<u64>) -> Self {
        Self { state: seed }
    }

    /// Divides `ranks`, which hold at least `count` items, into `count` buckets; none is empty.
    pub(super) fn buckets<S: RangeSet>(
        &mut self,
        set: &S,
        ranks: Range<usize>,
        upper: Bound,
        count: usize,
    ) -> Vec<SplitBucket> {
        let mut ends = even_ends(&ranks, count);
        // The limit of a random shift. Two adjacent bounds that both move by this much do not meet.
        let reach = (ranks.len() / count).saturating_sub(1) / 2;
        let inner = 1..count;
        if let Some(state) = &mut self.state
            && let Some(inner) = ends.get_mut(inner)
        {
            for end in inner {
                *end = *end - reach + (next(state) % (2 * reach as u64 + 1)) as usize;
            }
        }
        buckets_between(set, &ends, upper)
    }
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
