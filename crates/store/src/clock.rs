//! The clock of stores, relays and syncs, in Unix seconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// The seconds of a day.
pub const DAY_S: u64 = 86_400;

/// The clock of a store. A relay or a sync over the store uses the same one: it decides about
/// expiration (NIP-40), the accepted `created_at`, the validity of a signed authentication, and
/// retention. Clones share the time.
///
/// Deadlines and pauses use [`std::time::Instant`] instead. If several relays share a PostgreSQL
/// database, the server's clock decides where they have to agree: leases, live nodes, and the
/// lifetime of ephemeral events.
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
    /// A clock set to a second since the Unix epoch.
    #[must_use]
    pub fn at(unix_s: u64) -> Self {
        Self(Arc::new(AtomicU64::new(unix_s)))
    }

    /// Sets the time, forwards or backwards.
    pub fn set(&self, unix_s: u64) {
        self.0.store(unix_s, Ordering::Release);
    }

    /// Moves the time forwards.
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
