//! The operator's own program that decides about events.

use super::section::section;
use serde::{Deserialize, Serialize};

section! {
    /// `[write_policy]`
    pub struct WritePolicyConfig {
        /// The shell command that runs it; empty for none.
        pub command: String => OnReload,
        /// How long it may take over an event before it is started anew.
        pub timeout_s: u64 where 1..=3_600 => OnReload,
    }
}

impl Default for WritePolicyConfig {
    fn default() -> Self {
        Self { command: String::new(), timeout_s: 10 }
    }
}
