//! That the store cannot be read, in the log: now and then, however many ask in vain.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long after a line the next one comes.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// What was said, and how often it happened since.
#[derive(Default)]
pub(crate) struct ReadTrouble {
    said: Mutex<(Option<Instant>, u64)>,
}

impl ReadTrouble {
    /// Something could not be answered because the store could not be read.
    pub(crate) fn failed(&self, what: &str, error: &impl Display) {
        if let Some(times) = self.due(Instant::now()) {
            tracing::error!(%error, times, "the store could not be read for {what}");
        }
    }

    /// How often it has happened, when that is to be said.
    fn due(&self, now: Instant) -> Option<u64> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, times) = &mut *said;
        *times += 1;
        if at.is_some_and(|at| now.saturating_duration_since(at) < SAY_AGAIN) {
            return None;
        }
        *at = Some(now);
        Some(std::mem::take(times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_said_at_once_and_the_others_together() {
        let trouble = ReadTrouble::default();
        let start = Instant::now();
        assert_eq!(trouble.due(start), Some(1));
        for second in 1..10 {
            assert_eq!(trouble.due(start + Duration::from_secs(second)), None);
        }
        assert_eq!(trouble.due(start + SAY_AGAIN), Some(10));
        assert_eq!(trouble.due(start + SAY_AGAIN), None);
    }
}
