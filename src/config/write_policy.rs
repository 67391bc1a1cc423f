//! The operator's own program that decides about events.

use super::Within;
use serde::{Deserialize, Serialize};

/// `[write_policy]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct WritePolicyConfig {
    /// The shell command that runs it; empty for none.
    pub command: String,
    /// How long it may take over an event before it is started anew.
    pub timeout_s: Within<1, 3_600>,
}

impl Default for WritePolicyConfig {
    fn default() -> Self {
        Self { command: String::new(), timeout_s: Within::new(10) }
    }
}
