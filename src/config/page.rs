//! The page that a browser is shown.

use super::{Network, Within};
use serde::{Deserialize, Serialize};

/// `[page]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PageConfig {
    /// Whether there is a page.
    pub enabled: bool,
    /// From where an operator looks: who is shown the peers' addresses.
    pub operator: Vec<Network>,
    /// The least seconds between two looks at the days on which one peer differs.
    pub look_interval_s: Within<1, 86_400>,
}

impl Default for PageConfig {
    fn default() -> Self {
        Self { enabled: false, operator: Vec::new(), look_interval_s: Within::new(300) }
    }
}
