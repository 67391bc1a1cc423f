//! How long to wait before the next attempt.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// The first pause, before jitter.
const FIRST: Duration = Duration::from_millis(500);
/// The longest pause, before jitter.
const MOST: Duration = Duration::from_secs(60);

/// Pauses that double from attempt to attempt, each shortened by up to half at random, so that
/// those who lost the same peer do not come back at the same moment.
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
    /// Pauses of which `seed` decides the random part.
    pub(super) fn new(seed: u64) -> Self {
        Self { failures: 0, random: seed | 1 }
    }

    /// The attempts that failed since the last success.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// An attempt got somewhere.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// An attempt failed: the pause before the next.
    pub(super) fn next(&mut self) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(16)).min(MOST);
        self.failures = self.failures.saturating_add(1);
        // Xorshift: enough to keep those apart who lost the same peer.
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
