//! How many differences an item there are, from what answers show.
//!
//! A responder splits a range into 16 buckets that hold equally many of *its*
//! items. How many of *ours* fall into each then varies only by what differs:
//! for `m` items of theirs in a bucket, of which we lack each with odds `p`, the
//! variance of our count is near `p·m`.

use alloc::vec::Vec;

/// Into how many buckets a responder splits.
const BUCKETS: usize = 16;

/// Buckets smaller than this say nothing: the one item more that the first of
/// them hold would count as a difference.
const LEAST_BUCKET_ITEMS: usize = 64;

/// How many neighbouring estimates are taken together. Each alone is off by a
/// third; a median is not moved by a gap in one place.
const NEIGHBOURS: usize = 5;

/// Lists of fewer items together say nothing.
const LEAST_LISTED_ITEMS: usize = 4096;

/// Below this many differences an item, lists are a waste.
const SPARSE: f64 = 0.03;

/// Our counts in the buckets of one answer.
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

    /// DifferenceCount an item, if this was a split that can tell.
    pub(super) fn density(&self) -> Option<f64> {
        let buckets = BUCKETS as f64;
        if self.counts != BUCKETS || self.items < buckets * LEAST_BUCKET_ITEMS as f64 {
            return None;
        }
        let deviations = self.squares - self.items * self.items / buckets;
        Some(deviations / self.items * buckets / (buckets - 1.0))
    }
}

/// The median of each estimate and its neighbours.
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

/// What the long lists of an answer showed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Listed {
    pub(super) items: usize,
    pub(super) differences: usize,
}

impl Listed {
    /// The density, if it is too low to go on listing.
    pub(super) fn too_sparse_to_list(self) -> Option<f64> {
        let density = self.differences as f64 / self.items.max(1) as f64;
        (self.items >= LEAST_LISTED_ITEMS && density < SPARSE).then_some(density)
    }
}
