//! The page that a browser is shown.

use super::Network;
use super::section::section;
use serde::{Deserialize, Serialize};

section! {
    /// `[page]`
    pub struct PageConfig {
        /// Whether there is a page.
        pub enabled: bool => OnReload,
        /// From where an operator looks: who is shown the peers' addresses.
        pub operator: Vec<Network> => OnReload,
        /// The least seconds between two looks at the days on which one peer differs.
        pub look_interval_s: u64 where 1..=86_400 => OnReload,
    }
}

impl Default for PageConfig {
    fn default() -> Self {
        Self { enabled: false, operator: Vec::new(), look_interval_s: 300 }
    }
}
