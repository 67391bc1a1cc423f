//! Log lines that clients can cause, at a bounded rate.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Minimum interval between two lines of one kind.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// The time of the last line of one kind, and the number of occurrences since.
#[derive(Default)]
pub(crate) struct LogPace {
    said: Mutex<(Option<Instant>, u64)>,
}

impl LogPace {
    /// Counts an occurrence. Returns the number since the last line, if one is to be logged now.
    pub(crate) fn due(&self) -> Option<u64> {
        self.due_at(Instant::now())
    }

    fn due_at(&self, now: Instant) -> Option<u64> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, times) = &mut *said;
        *times += 1;
        if at.is_some_and(|at| now.saturating_duration_since(at) < SAY_AGAIN) {
            return None;
        }
        *at = Some(now);
        Some(std::mem::take(times))
    }

    /// Logs that a request failed because the store could not be read.
    pub(crate) fn store_unread(&self, what: &str, error: &impl Display) {
        if let Some(times) = self.due() {
            tracing::error!(%error, times, "the store could not be read for {what}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_logged_at_once_and_the_others_together() {
        let pace = LogPace::default();
        let start = Instant::now();
        assert_eq!(pace.due_at(start), Some(1));
        for second in 1..10 {
            assert_eq!(pace.due_at(start + Duration::from_secs(second)), None);
        }
        assert_eq!(pace.due_at(start + SAY_AGAIN), Some(10));
        assert_eq!(pace.due_at(start + SAY_AGAIN), None);
    }
}
