//! The clock of stores, relays and syncs, in Unix seconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// The seconds of a day.
pub const DAY_S: u64 = 86_400;

/// Tells the time as Nostr counts it. A store is opened with one, and a relay or a sync over the store goes
/// by the same one: it decides what has expired (NIP-40), which `created_at` is accepted, how long a signed
/// authentication is valid, and what retention removes. Clones show the same time.
///
/// Deadlines and pauses are measured by [`std::time::Instant`] instead. Where several relays share a
/// PostgreSQL database, the server's clock decides what they have to agree on: leases, which nodes are
/// alive, and how long ephemeral events are kept.
#[derive(Debug, Clone, Default)]
pub struct Clock(Option<Arc<AtomicU64>>);

impl Clock {
    /// The clock of the system.
    #[must_use]
    pub fn system() -> Self {
        Self(None)
    }

    /// Seconds since the Unix epoch; 0 before it.
    #[must_use]
    pub fn now(&self) -> u64 {
        let Some(second) = &self.0 else {
            return SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        };
        second.load(Ordering::Acquire)
    }
}

/// A clock that stands still until it is set: for tests. Clones show the same time.
///
/// ```
/// use negsync_store::{Clock, ManualClock};
///
/// let manual = ManualClock::at(1_700_000_000);
/// let clock = Clock::from(&manual);
/// manual.advance(60);
/// assert_eq!(clock.now(), 1_700_000_060);
/// ```
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// A clock that shows a second since the Unix epoch.
    #[must_use]
    pub fn at(unix_s: u64) -> Self {
        Self(Arc::new(AtomicU64::new(unix_s)))
    }

    /// Sets it, forwards or back.
    pub fn set(&self, unix_s: u64) {
        self.0.store(unix_s, Ordering::Release);
    }

    /// Sets it forwards.
    pub fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::AcqRel);
    }

    /// Seconds since the Unix epoch.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

impl From<&ManualClock> for Clock {
    fn from(manual: &ManualClock) -> Self {
        Self(Some(Arc::clone(&manual.0)))
    }
}
