//! The system's clock in Unix seconds.

use std::time::{SystemTime, UNIX_EPOCH};

/// The seconds of a day.
pub const DAY_S: u64 = 86_400;

/// Seconds since the Unix epoch by the system's clock; 0 before it.
#[must_use]
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
