//! Pauses between attempts.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// The first pause, before jitter.
const FIRST: Duration = Duration::from_millis(500);
/// Maximum pause, before jitter.
const MOST: Duration = Duration::from_secs(60);

/// Pauses that double with each attempt, each shortened by up to half at random, so that clients
/// that lost the same peer do not reconnect at the same time.
#[derive(Debug)]
pub(super) struct Backoff {
    failures: u32,
    random: u64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(RandomState::new().build_hasher().finish())
    }
}

impl Backoff {
    /// Pauses whose random part derives from `seed`.
    pub(super) fn new(seed: u64) -> Self {
        Self { failures: 0, random: seed | 1 }
    }

    /// The number of failed attempts since the last success.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Records a success.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Records a failure, and returns the pause before the next attempt.
    pub(super) fn next(&mut self) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(16)).min(MOST);
        self.failures = self.failures.saturating_add(1);
        // Xorshift: random enough to spread reconnections.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let random = self.random >> 11;
        full.mul_f64(0.5 + 0.5 * random as f64 / (1u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_differ() {
        let (mut one, mut other) = (Backoff::default(), Backoff::default());
        let pauses: Vec<Duration> = (0..20).map(|_| one.next()).collect();
        assert!(pauses[0] >= FIRST / 2 && pauses[0] <= FIRST);
        assert!(pauses[12..].iter().all(|pause| (MOST / 2..=MOST).contains(pause)));
        assert!(pauses.iter().any(|pause| *pause != other.next()));
        one.reset();
        assert!(one.next() <= FIRST);
    }
}
