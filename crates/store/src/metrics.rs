//! What a store measures, in plain numbers: how they are shown is up to the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Instant;

/// Seconds that a commit takes, from a memory to a tired disk.
const COMMIT_S: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];
/// Events that share a commit.
const COMMIT_EVENTS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0];

/// What a store measures. Clones share it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StoreMetrics {
    /// Seconds that each commit of events took, to its end on the disk.
    pub commit_s: Distribution,
    /// Events that shared each commit.
    pub commit_events: Distribution,
    tombstones: Arc<AtomicI64>,
}

impl Default for StoreMetrics {
    fn default() -> Self {
        Self {
            commit_s: Distribution::new(COMMIT_S),
            commit_events: Distribution::new(COMMIT_EVENTS),
            tombstones: Arc::default(),
        }
    }
}

impl StoreMetrics {
    /// Ids and addresses that deletion requests keep out.
    #[must_use]
    pub fn tombstones(&self) -> i64 {
        self.tombstones.load(Ordering::Relaxed)
    }

    /// Says how many there are.
    pub fn set_tombstones(&self, number: i64) {
        self.tombstones.store(number, Ordering::Relaxed);
    }

    /// Counts some more, or fewer.
    pub fn add_tombstones(&self, number: i64) {
        self.tombstones.fetch_add(number, Ordering::Relaxed);
    }
}

/// How measured values are distributed over buckets with fixed upper bounds. Clones share it;
/// measuring takes no lock.
#[derive(Debug, Clone)]
pub struct Distribution(Arc<DistributionBuckets>);

#[derive(Debug)]
struct DistributionBuckets {
    bounds: &'static [f64],
    // One for each bound, and one for values above the last.
    counts: Box<[AtomicU64]>,
    // The bits of an `f64`.
    sum: AtomicU64,
}

impl Distribution {
    /// Without values. `bounds` are the buckets' upper bounds, included, in ascending order.
    #[must_use]
    pub fn new(bounds: &'static [f64]) -> Self {
        debug_assert!(bounds.is_sorted(), "the bounds of buckets ascend");
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(DistributionBuckets {
            bounds,
            counts,
            sum: AtomicU64::new(0.0_f64.to_bits()),
        }))
    }

    /// Adds a value.
    pub fn observe(&self, value: f64) {
        let bucket = self.0.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.0.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let add = |sum: u64| Some((f64::from_bits(sum) + value).to_bits());
        // Never fails: `add` always has an answer.
        let _ = self.0.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Adds the seconds until the timer is dropped.
    #[must_use = "a timer that is dropped at once measures nothing"]
    pub fn start_timer(&self) -> Timer {
        Timer { began: Instant::now(), distribution: self.clone() }
    }

    /// Each bucket's upper bound, and how many values are at most that.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let counts = self.0.counts.iter().scan(0, |sum, count| {
            *sum += count.load(Ordering::Relaxed);
            Some(*sum)
        });
        self.0.bounds.iter().copied().zip(counts)
    }

    /// How many values there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// The sum of the values.
    #[must_use]
    pub fn sum(&self) -> f64 {
        f64::from_bits(self.0.sum.load(Ordering::Relaxed))
    }
}

/// Adds the seconds of its life to a [`Distribution`].
#[derive(Debug)]
pub struct Timer {
    began: Instant,
    distribution: Distribution,
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.distribution.observe(self.began.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::Distribution;

    #[test]
    fn a_bucket_counts_what_is_at_most_its_bound() {
        let distribution = Distribution::new(&[1.0, 4.0]);
        for value in [0.5, 1.0, 2.0, 4.0, 4.5] {
            distribution.observe(value);
        }
        assert!(distribution.cumulative().eq([(1.0, 2), (4.0, 4)]));
        assert_eq!((distribution.count(), distribution.sum()), (5, 12.0));
    }
}
