//! What an index measures.

use negsync_store::Distribution;

/// Seconds that the building of a set takes.
const BUILD_S: &[f64] = &[0.001, 0.0025, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0];

/// What an index measures. Clones share it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct IndexMetrics {
    /// Seconds that the building of each set took; the set of all events is the first.
    pub build_s: Distribution,
}

impl Default for IndexMetrics {
    fn default() -> Self {
        Self { build_s: Distribution::new(BUILD_S) }
    }
}
