//! `[write_policy]`: the operator's program that decides about events.

use super::section::section;
use serde::{Deserialize, Serialize};

section! {
    /// `[write_policy]`
    pub struct WritePolicyConfig {
        /// The shell command of the program; empty for none.
        pub command: String => OnReload,
        /// Timeout for the decision about an event; the program is then restarted.
        pub timeout_s: u64 where 1..=3_600 => OnReload,
    }
}

impl Default for WritePolicyConfig {
    fn default() -> Self {
        Self { command: String::new(), timeout_s: 10 }
    }
}
