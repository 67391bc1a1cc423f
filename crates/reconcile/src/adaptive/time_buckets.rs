//! Counts differences by time bucket, for example by day.
//!
//! An answer lists ids without their times, but only ids within the requested range. So each
//! requested range lies in one time bucket. A range in which we hold nothing may span many time
//! buckets at first; it is divided once the peer shows that it holds something there.

use super::{PendingRange, RangeState};
use crate::range_set::{Bound, RangeSet};
use alloc::vec::Vec;
use core::num::NonZeroU64;

/// Maximum number of empty time buckets before our first and after our last item that are asked
/// about one by one; the minimum is `LEAST_NEAR_CELLS`, and between the two it is the number of our
/// items. The peer's events in these buckets are listed once. Ranges further away double in length.
const NEAR_CELLS: u64 = 1_024;
const LEAST_NEAR_CELLS: u64 = 16;

/// The same maximum for an empty set, counted from [`FIRST_EVENTS`].
const NEAR_CELLS_OF_NOTHING: u64 = 4_096;

/// Where to begin when we hold nothing: 1 January 2020, before the first Nostr events.
const FIRST_EVENTS: u64 = 1_577_836_800;

/// Parts into which a range of more time buckets is divided at a time.
const PARTS: u64 = 64;

/// From this number of ranges on, an opening uses one range for each gap between our items.
const MOST_OPENING_RANGES: usize = 1 << 16;

/// Time buckets of equal length; the first begins at second 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeBuckets {
    pub(super) length_s: NonZeroU64,
}

impl TimeBuckets {
    fn of(self, second: u64) -> u64 {
        second / self.length_s
    }

    /// Where a time bucket begins.
    fn start(self, time_bucket: u64) -> Bound {
        time_bucket.checked_mul(self.length_s.get()).map_or(Bound::INFINITY, Bound::at)
    }

    /// The first and the last time bucket that overlap `range`.
    fn reach(self, range: &PendingRange) -> (u64, u64) {
        let upper = range.upper.item;
        let ends_with_second = upper.id == [0; 32];
        let last = upper.created_at.saturating_sub(u64::from(ends_with_second));
        (self.of(range.lower.item.created_at), self.of(last))
    }

    /// The first second of the time bucket that contains all of `range`, if one does.
    pub(super) fn only(self, range: &PendingRange) -> Option<u64> {
        let (first, last) = self.reach(range);
        (first == last).then(|| self.start(first).item.created_at)
    }

    /// Whether two ranges begin in the same time bucket.
    pub(super) fn share(self, one: &PendingRange, other: &PendingRange) -> bool {
        self.reach(one).0 == self.reach(other).0
    }

    /// The initial ranges: each time bucket in which we hold items, and the gaps between them.
    pub(super) fn opening<S: RangeSet>(self, set: &S) -> Vec<PendingRange> {
        let near = (set.len() as u64).clamp(LEAST_NEAR_CELLS, NEAR_CELLS);
        let lower = Bound::START;
        let mut out =
            BucketOpening { time_buckets: self, near, ranges: Vec::new(), rank: 0, lower };
        let first = set.item(0).map_or(self.of(FIRST_EVENTS), |item| self.of(item.created_at));
        out.leave_before(first);
        while let Some(item) = set.item(out.rank) {
            let time_bucket = self.of(item.created_at);
            let gap = time_bucket.saturating_sub(self.of(out.lower.item.created_at));
            if gap <= PARTS && out.ranges.len() < MOST_OPENING_RANGES {
                out.leave_each(gap);
            }
            out.up_to(self.start(time_bucket), out.rank);
            let upper = self.start(time_bucket.saturating_add(1));
            out.up_to(upper, set.lower_bound(&upper.item));
        }
        out.leave_after(if set.is_empty() { NEAR_CELLS_OF_NOTHING } else { near });
        out.ranges
    }

    /// Divides a range in which we hold nothing.
    pub(super) fn divide(self, range: &PendingRange) -> Vec<PendingRange> {
        let (first, last) = self.reach(range);
        let parts = (last - first).saturating_add(1).min(PARTS);
        let time_buckets = (last - first) / parts + 1;
        let mut rest = PendingRange { state: RangeState::Unlisted, ..*range };
        let mut divided = Vec::with_capacity(PARTS as usize);
        let starts = (1..parts).map(|part| self.start(first.saturating_add(part * time_buckets)));
        for start in starts.take_while(|start| start.item < range.upper.item) {
            divided.push(PendingRange { upper: start, ..rest });
            rest.lower = start;
        }
        divided.push(rest);
        divided
    }
}

struct BucketOpening {
    time_buckets: TimeBuckets,
    near: u64,
    ranges: Vec<PendingRange>,
    rank: usize,
    lower: Bound,
}

impl BucketOpening {
    /// Adds one range up to `upper`, with `end` items below it.
    fn up_to(&mut self, upper: Bound, end: usize) {
        if self.lower.item < upper.item {
            let (lower, start) = (self.lower, self.rank);
            let state = RangeState::Untested;
            self.ranges.push(PendingRange { lower, upper, start, end, state, density: None });
            (self.lower, self.rank) = (upper, end);
        }
    }

    /// Adds the next `count` time buckets, which are empty on our side, one by one.
    fn leave_each(&mut self, count: u64) {
        let first = self.time_buckets.of(self.lower.item.created_at);
        for time_bucket in first..first.saturating_add(count) {
            self.up_to(self.time_buckets.start(time_bucket.saturating_add(1)), self.rank);
        }
    }

    /// Adds ranges up to `time_bucket`; they become shorter the nearer they are to it.
    fn leave_before(&mut self, time_bucket: u64) {
        let near = time_bucket.saturating_sub(self.near);
        let mut before: Vec<u64> =
            core::iter::successors(Some(self.near), |far| far.checked_mul(2))
                .map_while(|far| near.checked_sub(far))
                .collect();
        before.reverse();
        for time_bucket in before {
            self.up_to(self.time_buckets.start(time_bucket), self.rank);
        }
        self.up_to(self.time_buckets.start(near), self.rank);
        self.leave_each(time_bucket - near);
    }

    /// Adds ranges to the end of the order; they become longer the further away they are.
    fn leave_after(&mut self, near: u64) {
        self.leave_each(near);
        let first = self.time_buckets.of(self.lower.item.created_at);
        let further = core::iter::successors(Some(near.max(1)), |far| far.checked_mul(2));
        for time_bucket in further.map_while(|far| first.checked_add(far)) {
            self.up_to(self.time_buckets.start(time_bucket), self.rank);
        }
        self.up_to(Bound::INFINITY, self.rank);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SortedItems;
    use crate::item::Item;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    fn time_buckets(length_s: u64) -> TimeBuckets {
        TimeBuckets { length_s: NonZeroU64::new(length_s).unwrap() }
    }

    /// Fails unless `ranges` are adjacent and together cover `lower` to `upper`.
    fn touch(ranges: &[PendingRange], lower: Bound, upper: Bound, about: &str) {
        assert_eq!(ranges[0].lower, lower, "{about}");
        assert_eq!(ranges[ranges.len() - 1].upper, upper, "{about}");
        assert!(ranges.iter().all(|range| range.lower.item < range.upper.item), "{about}");
        assert!(ranges.windows(2).all(|pair| pair[0].touches(&pair[1])), "{about}");
    }

    #[test]
    fn an_opening_covers_the_order_and_no_range_with_items_spans_two_cells() {
        for seed in 0..300 {
            let mut rng = StdRng::seed_from_u64(seed);
            let length_s = [1, 60, 86_400, u64::MAX][rng.random_range(0..4)];
            let span = [10, 1 << 20, 1 << 33, u64::MAX - 1][rng.random_range(0..4)];
            let items: Vec<Item> = (0..rng.random_range(0..60))
                .map(|_| Item::new(rng.random_range(0..=span), rng.random()))
                .collect();
            let set = SortedItems::new(items);
            let time_buckets = time_buckets(length_s);
            let about = std::format!("seed {seed}, {length_s} s");
            let ranges = time_buckets.opening(&set);
            touch(&ranges, Bound::START, Bound::INFINITY, &about);
            let mut rank = 0;
            for range in &ranges {
                assert_eq!(range.start, rank, "{about}");
                assert_eq!(range.end, set.lower_bound(&range.upper.item), "{about}");
                rank = range.end;
                assert!(range.own_items() == 0 || time_buckets.only(range).is_some(), "{about}");
            }
            assert_eq!(rank, set.len(), "{about}");
        }
    }

    #[test]
    fn dividing_ends_with_single_cells() {
        for seed in 0..300 {
            let mut rng = StdRng::seed_from_u64(seed);
            let time_buckets = time_buckets([1, 60, 86_400][rng.random_range(0..3)]);
            let lower = Bound::at(rng.random_range(0..1 << 40));
            let upper = match rng.random_range(0..3) {
                0 => Bound::INFINITY,
                1 => Bound::at(lower.item.created_at + rng.random_range(1..1 << 30)),
                _ => Bound::below(Item::new(lower.item.created_at + 86_400, [1; 32])),
            };
            let state = RangeState::Unlisted;
            let mut range = PendingRange { lower, upper, start: 0, end: 0, state, density: None };
            let mut depth = 0;
            while time_buckets.only(&range).is_none() {
                let parts = time_buckets.divide(&range);
                assert!(parts.len() >= 2, "seed {seed}");
                touch(&parts, range.lower, range.upper, &std::format!("seed {seed}"));
                range = parts[rng.random_range(0..parts.len())];
                depth += 1;
                assert!(depth <= 12, "seed {seed}");
            }
        }
    }
}
