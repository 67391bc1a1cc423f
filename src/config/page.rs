//! `[page]`: the page for browsers.

use super::Network;
use super::section::section;
use serde::{Deserialize, Serialize};

section! {
    /// `[page]`
    pub struct PageConfig {
        /// Whether the page is on.
        pub enabled: bool => OnReload,
        /// The operator's networks; the page shows the peers' URLs there.
        pub operator: Vec<Network> => OnReload,
        /// Minimum interval between two comparisons by day with one peer, in seconds.
        pub look_interval_s: u64 where 1..=86_400 => OnReload,
    }
}

impl Default for PageConfig {
    fn default() -> Self {
        Self { enabled: false, operator: Vec::new(), look_interval_s: 300 }
    }
}
