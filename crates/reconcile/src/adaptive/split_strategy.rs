//! Chooses how to ask about a range, with the constants of that choice.
//!
//! A fingerprint costs about 20 bytes to send and, at the slowest known responder, 60 microseconds
//! to compute; an id costs 32 bytes and almost no time.

use super::bound_choice::BoundChoice;
use super::{PendingRange, RangeState};
use crate::message::RANGE_MAX_BYTES;
use crate::options::Rule;
use crate::range_set::{Bound, RangeSet};
use crate::reference::{LIST_BELOW_ITEMS, SplitBucket};
use alloc::vec;
use alloc::vec::Vec;

/// A differing range of up to this many of our items is listed rather than split: two leaves of a
/// responder.
const LIST_UP_TO_ITEMS: usize = 63;

/// Maximum number of our items in a range that one list covers.
const LIST_MOST_ITEMS: usize = 8192;

/// Above this density (differences for each item), lists are cheaper than splitting.
const DENSE: f64 = 0.04;

/// Bucket size that a responder lists at once when it differs: below its limit of 32 even with a
/// few items that we lack.
const LEAF_ITEMS: usize = 24;

/// Maximum number of leaves for all pending ranges together; above it, twigs are used.
const MOST_LEAVES: usize = 1200;

/// Bucket size that a responder splits into 16 leaves of about 15 items. Where one item in a
/// hundred to one in a thousand differs, smaller leaves cost more in fingerprints than they save in
/// ids.
const TWIG_ITEMS: usize = 240;

/// Maximum number of twigs into which one range is split.
const MOST_TWIGS: usize = 16;

/// Buckets of an opening without a sync mark.
const OPENING_BUCKETS: usize = 64;

/// Buckets of an opening below the sync mark, where few differences are expected.
const CHECKED_BUCKETS: usize = 16;

/// Items in a bucket of an opening above the sync mark, where differences are expected.
const OPENING_LEAF_ITEMS: usize = 16;

/// Maximum number of buckets of an opening above the sync mark.
const UNCHECKED_BUCKETS: usize = 256;

/// How to ask about a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    List,
    /// This many fingerprints.
    Split(usize),
}

/// The choices, given the requests that the peer has been seen to accept.
#[derive(Clone, Copy, Debug)]
pub(super) struct SplitStrategy {
    rule: Rule,
    /// Whether an IdList may hold fewer ids than we have in its range.
    empty_id_lists: bool,
    /// Whether the peer answers long lists with lists.
    long_lists: bool,
}

impl SplitStrategy {
    pub(super) fn new(rule: Rule, empty_id_lists: bool) -> Self {
        Self { rule, empty_id_lists, long_lists: empty_id_lists }
    }

    pub(super) fn rule(&self) -> Rule {
        self.rule
    }

    /// Maximum number of our items in a range that one list covers, in a message of `limit_bytes`.
    pub(super) fn list_most_items(&self, limit_bytes: usize) -> usize {
        // A list of our own ids has to fit beside the fixed parts of a message.
        let fit = limit_bytes.saturating_sub(RANGE_MAX_BYTES * 3) / 32;
        if self.empty_id_lists { LIST_MOST_ITEMS } else { LIST_MOST_ITEMS.min(fit) }
    }

    /// Updates the strategy after an answer. `odd` is
    /// [`AnswerReading::odd`](super::reply::AnswerReading).
    pub(super) fn learn(&mut self, odd: bool) {
        self.long_lists &= !odd;
    }

    pub(super) fn lists_own_ids(&self) -> bool {
        !self.empty_id_lists
    }

    pub(super) fn joins_lists(&self) -> bool {
        self.long_lists
    }

    fn lists_up_to(&self) -> usize {
        if self.empty_id_lists { LIST_UP_TO_ITEMS } else { LIST_BELOW_ITEMS - 1 }
    }

    /// Whether asking about all of `pending` in leaves would exceed the maximum number of leaves.
    pub(super) fn is_crowded<'a>(&self, pending: impl Iterator<Item = &'a PendingRange>) -> bool {
        let long = |range: &&PendingRange| {
            range.state != RangeState::Untested && range.own_items() > self.lists_up_to()
        };
        let leaves = |range: &PendingRange| range.own_items().div_ceil(LEAF_ITEMS);
        pending.filter(long).map(leaves).sum::<usize>() > MOST_LEAVES
    }

    pub(super) fn plan(&self, range: &PendingRange, crowded: bool) -> Plan {
        let items = range.own_items();
        // Without items our fingerprint is that of the empty set, which a responder may send for
        // reasons of its own: always list.
        if items == 0 || self.rule == Rule::Exact {
            return Plan::List;
        }
        let dense = range.density.is_some_and(|density| density > DENSE);
        match range.state {
            RangeState::Untested => Plan::Split(1),
            _ if items <= self.lists_up_to() => Plan::List,
            RangeState::Unlisted if self.long_lists => Plan::List,
            RangeState::Differs if self.long_lists && dense => Plan::List,
            _ if !crowded => Plan::Split(items.div_ceil(LEAF_ITEMS)),
            _ => {
                let least = if self.empty_id_lists { 1 } else { 2 };
                let twigs = (items + TWIG_ITEMS / 2) / TWIG_ITEMS;
                Plan::Split(twigs.clamp(least, MOST_TWIGS))
            }
        }
    }
}

/// Estimated length of the answer to `plan`, in bytes.
pub(super) fn expected_reply_bytes(range: &PendingRange, plan: Plan) -> usize {
    const RANGE_BYTES: usize = 8;
    const FINGERPRINTS_BYTES: usize = 16 * (RANGE_BYTES + 16);
    match plan {
        // Nothing is known about the range, and most such ranges are empty.
        Plan::List if range.own_items() == 0 && range.state == RangeState::Untested => RANGE_BYTES,
        // We hold nothing here and the range differs, so the peer holds something.
        Plan::List => RANGE_BYTES + range.own_items().clamp(8, LIST_MOST_ITEMS) * 32,
        Plan::Split(count) => {
            let items = range.own_items() / count.max(1);
            let differing = match range.density {
                Some(density) => 1.0 - chance_of_none(density, items),
                None => 1.0,
            };
            let answer = if items < LIST_BELOW_ITEMS { items * 32 } else { FINGERPRINTS_BYTES };
            (count as f64 * differing * answer as f64) as usize
        }
    }
}

/// The probability that none of `items` differs, if each differs with probability `density`.
/// Written out because `core` has no `powi`.
fn chance_of_none(density: f64, items: usize) -> f64 {
    let mut square = 1.0 - density.clamp(0.0, 1.0);
    let mut chance = 1.0;
    let mut exponent = items;
    while exponent > 0 {
        if exponent & 1 == 1 {
            chance *= square;
        }
        square *= square;
        exponent >>= 1;
    }
    chance
}

/// The initial ranges: adjacent, and together the whole order.
pub(super) fn opening<S: RangeSet>(
    set: &S,
    sync_mark: Option<u64>,
    bound_choice: &mut BoundChoice,
) -> Vec<PendingRange> {
    let Some(newest) = set.len().checked_sub(1).and_then(|last| set.item(last)) else {
        return whole(set);
    };
    // We need everything newer than our newest item: a list of that wastes nothing.
    let ours_end = Bound::at(newest.created_at.saturating_add(1));
    let mut out =
        SplitOpening { set, bound_choice, ranges: Vec::new(), rank: 0, lower: Bound::START };
    match sync_mark.map(Bound::at) {
        Some(checked) => {
            let checked_items = set.lower_bound(&checked.item);
            out.test(checked_items, checked, CHECKED_BUCKETS);
            let unchecked = set.len() - checked_items;
            if unchecked > LIST_UP_TO_ITEMS {
                let buckets = unchecked.div_ceil(OPENING_LEAF_ITEMS).min(UNCHECKED_BUCKETS);
                out.test(set.len(), ours_end, buckets);
            }
        }
        None if set.len() > LIST_UP_TO_ITEMS => {
            let buckets = (set.len() / OPENING_LEAF_ITEMS).min(OPENING_BUCKETS);
            out.test(set.len(), ours_end, buckets);
        }
        None => {}
    }
    let (rank, lower) = (out.rank, out.lower);
    out.ranges.push(range(lower, Bound::INFINITY, rank, set.len(), RangeState::Unlisted));
    out.ranges
}

/// The whole order as one range, to be listed.
pub(super) fn whole<S: RangeSet>(set: &S) -> Vec<PendingRange> {
    vec![range(Bound::START, Bound::INFINITY, 0, set.len(), RangeState::Unlisted)]
}

struct SplitOpening<'a, S> {
    set: &'a S,
    bound_choice: &'a mut BoundChoice,
    ranges: Vec<PendingRange>,
    rank: usize,
    lower: Bound,
}

impl<S: RangeSet> SplitOpening<'_, S> {
    /// Covers the order up to `upper`, with `end` items below it, in up to `count` buckets.
    fn test(&mut self, end: usize, upper: Bound, count: usize) {
        let count = count.min(end - self.rank).max(1);
        for bucket in self.bound_choice.buckets(self.set, self.rank..end, upper, count) {
            let SplitBucket { start, end, upper, .. } = bucket;
            self.ranges.push(range(self.lower, upper, start, end, RangeState::Untested));
            self.lower = upper;
        }
        self.rank = end;
    }
}

fn range(lower: Bound, upper: Bound, start: usize, end: usize, state: RangeState) -> PendingRange {
    PendingRange { lower, upper, start, end, state, density: None }
}
