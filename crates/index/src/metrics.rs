//! Metrics of an index.

use negsync_store::Distribution;

/// Buckets for the seconds of building a set.
const BUILD_S: &[f64] = &[0.001, 0.0025, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0];

/// The metrics of an index. Clones share them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct IndexMetrics {
    /// Seconds that building each set took; the set of all events is the first.
    pub build_s: Distribution,
}

impl Default for IndexMetrics {
    fn default() -> Self {
        Self { build_s: Distribution::new(BUILD_S) }
    }
}
