//! Estimates the density of differences (differences for each item) from answers.
//!
//! A responder splits a range into 16 buckets that hold equally many of *its* items. The number of
//! *our* items in a bucket varies only with the differences: for `m` of its items in a bucket, each
//! of which we lack with probability `p`, the variance of our count is near `p·m`.

use alloc::vec::Vec;

/// Buckets into which a responder splits a range.
const BUCKETS: usize = 16;

/// Minimum bucket size for an estimate. The first buckets of a split may hold one item more, which
/// would count as a difference in smaller ones.
const LEAST_BUCKET_ITEMS: usize = 64;

/// Neighbouring estimates of which the median is taken. A single estimate is off by a third; a gap
/// in one place does not move the median.
const NEIGHBOURS: usize = 5;

/// Minimum number of listed items for an estimate.
const LEAST_LISTED_ITEMS: usize = 4096;

/// Below this density, lists cost more than splitting.
const SPARSE: f64 = 0.03;

/// The number of our items in each bucket of one answer.
#[derive(Clone, Debug, Default)]
pub(super) struct BucketCounts {
    counts: usize,
    items: f64,
    squares: f64,
}

impl BucketCounts {
    pub(super) fn add(&mut self, items: usize) {
        self.counts += 1;
        self.items += items as f64;
        self.squares += (items * items) as f64;
    }

    /// Differences for each item, if the split is large enough for an estimate.
    pub(super) fn density(&self) -> Option<f64> {
        let buckets = BUCKETS as f64;
        if self.counts != BUCKETS || self.items < buckets * LEAST_BUCKET_ITEMS as f64 {
            return None;
        }
        let deviations = self.squares - self.items * self.items / buckets;
        Some(deviations / self.items * buckets / (buckets - 1.0))
    }
}

/// Replaces each estimate by the median of itself and its neighbours.
pub(super) fn smooth(densities: &[f64]) -> Vec<f64> {
    let width = NEIGHBOURS.min(densities.len());
    (0..densities.len())
        .map(|index| {
            let first = index.saturating_sub(width / 2).min(densities.len() - width);
            let mut near: Vec<f64> = densities.iter().skip(first).take(width).copied().collect();
            near.sort_unstable_by(f64::total_cmp);
            near.get(width / 2).copied().unwrap_or_default()
        })
        .collect()
}

/// Counts of items and differences in the long lists of one answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Listed {
    pub(super) items: usize,
    pub(super) differences: usize,
}

impl Listed {
    /// The density, if it is too low for lists.
    pub(super) fn too_sparse_to_list(self) -> Option<f64> {
        let density = self.differences as f64 / self.items.max(1) as f64;
        (self.items >= LEAST_LISTED_ITEMS && density < SPARSE).then_some(density)
    }
}
