//! `[rates]`: rate limits of clients.

use super::section::section;
use serde::{Deserialize, Serialize};

section! {
    /// `[rates]`: each pair is the token bucket of an address.
    pub struct RatesConfig {
        /// EVENT messages a second; 0 for no limit.
        pub events_per_s: u64 where 0..=1_000_000 => OnReload,
        /// Maximum burst of EVENT messages.
        pub events_burst: u64 where 1..=1_000_000_000 => OnReload,
        /// REQ and COUNT messages a second; 0 for no limit.
        pub queries_per_s: u64 where 0..=1_000_000 => OnReload,
        /// Maximum burst of REQ and COUNT messages.
        pub queries_burst: u64 where 1..=1_000_000_000 => OnReload,
        /// NEG-OPEN and NEG-MSG messages a second; 0 for no limit.
        pub neg_per_s: u64 where 0..=1_000_000 => OnReload,
        /// Maximum burst of NEG-OPEN and NEG-MSG messages.
        pub neg_burst: u64 where 1..=1_000_000_000 => OnReload,
        /// Other frames a second; 0 for no limit.
        pub other_per_s: u64 where 0..=1_000_000 => OnReload,
        /// Maximum burst of other frames.
        pub other_burst: u64 where 1..=1_000_000_000 => OnReload,
    }
}

impl Default for RatesConfig {
    fn default() -> Self {
        Self {
            events_per_s: 1_000,
            events_burst: 50_000,
            queries_per_s: 500,
            queries_burst: 10_000,
            neg_per_s: 200,
            neg_burst: 10_000,
            other_per_s: 500,
            other_burst: 10_000,
        }
    }
}
