//! Metrics of a store, as plain numbers; the program decides how to show them.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Instant;

/// Buckets for the seconds of a commit, from a memory disk to a worn disk.
const COMMIT_S: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];
/// Buckets for the number of events in a commit.
const COMMIT_EVENTS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0];

/// The metrics of a store. Clones share them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StoreMetrics {
    /// Seconds that each commit of events took, including its flush.
    pub commit_s: Distribution,
    /// Number of events in each commit.
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
    /// The number of ids and addresses that deletion requests keep out.
    #[must_use]
    pub fn tombstones(&self) -> i64 {
        self.tombstones.load(Ordering::Relaxed)
    }

    /// Sets the number of tombstones.
    pub fn set_tombstones(&self, number: i64) {
        self.tombstones.store(number, Ordering::Relaxed);
    }

    /// Adds to the number of tombstones; may be negative.
    pub fn add_tombstones(&self, number: i64) {
        self.tombstones.fetch_add(number, Ordering::Relaxed);
    }
}

/// A histogram with fixed bucket bounds. Clones share it; observing takes no lock.
#[derive(Debug, Clone)]
pub struct Distribution(Arc<DistributionBuckets>);

#[derive(Debug)]
struct DistributionBuckets {
    bounds: &'static [f64],
    // One for each bound, and one for values above the last bound.
    counts: Box<[AtomicU64]>,
    // The bits of an `f64`.
    sum: AtomicU64,
}

impl Distribution {
    /// An empty histogram. `bounds` are the inclusive upper bounds of the buckets, in ascending
    /// order.
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
        // Cannot fail, because `add` always returns a value.
        let _ = self.0.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Starts a timer that adds its seconds when it is dropped.
    #[must_use = "a timer that is dropped at once measures nothing"]
    pub fn start_timer(&self) -> Timer {
        Timer { began: Instant::now(), distribution: self.clone() }
    }

    /// The upper bound of each bucket, and the number of values up to it.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let counts = self.0.counts.iter().scan(0, |sum, count| {
            *sum += count.load(Ordering::Relaxed);
            Some(*sum)
        });
        self.0.bounds.iter().copied().zip(counts)
    }

    /// The number of values.
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

/// Adds its lifetime in seconds to a [`Distribution`].
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
