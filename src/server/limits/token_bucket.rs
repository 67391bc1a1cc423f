//! A token bucket.

use std::time::{Duration, Instant};

/// The fill rate and the capacity of a bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    /// Tokens a second; 0 for no limit.
    pub(super) per_s: u64,
    /// The capacity in tokens.
    pub(super) burst: u64,
}

/// The state of a bucket is a single time: when it will be full. A new one is full.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenBucket {
    full_at: Instant,
}

impl TokenBucket {
    pub(super) fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Takes `cost` tokens, or a full bucket if that is less. Returns false if they are not there.
    pub(super) fn take(&mut self, rate: Rate, cost: u64, now: Instant) -> bool {
        if rate.per_s == 0 {
            return true;
        }
        let seconds = |tokens: u64| Duration::from_secs_f64(tokens as f64 / rate.per_s as f64);
        let full_at = self.full_at.max(now) + seconds(cost.min(rate.burst));
        let is_there = full_at.duration_since(now) <= seconds(rate.burst);
        if is_there {
            self.full_at = full_at;
        }
        is_there
    }

    /// Takes a token in advance. Returns the time until it is there.
    pub(super) fn owe(&mut self, rate: Rate, now: Instant) -> Duration {
        if rate.per_s == 0 {
            return Duration::ZERO;
        }
        let seconds = |tokens: u64| Duration::from_secs_f64(tokens as f64 / rate.per_s as f64);
        self.full_at = self.full_at.max(now) + seconds(1);
        self.full_at.duration_since(now).saturating_sub(seconds(rate.burst))
    }

    /// Returns a token that was taken in advance and not used.
    pub(super) fn give_back(&mut self, rate: Rate) {
        let second = Duration::from_secs_f64(1.0 / rate.per_s.max(1) as f64);
        self.full_at = self.full_at.checked_sub(second).unwrap_or(self.full_at);
    }

    /// Whether the bucket is full, like a new one.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    #[test]
    fn in_any_time_no_more_is_taken_than_the_burst_and_the_rate_allow() {
        for seed in 0..50 {
            let mut rng = StdRng::seed_from_u64(seed);
            let rate = Rate { per_s: rng.random_range(1..200), burst: rng.random_range(1..100) };
            let start = Instant::now();
            let mut bucket = TokenBucket::new(start);
            let mut now = start;
            let mut taken: Vec<Duration> = Vec::new();
            for _ in 0..300 {
                now += Duration::from_micros(rng.random_range(0..20_000));
                let before = bucket;
                let cost = rng.random_range(1..=3).min(rate.burst);
                if bucket.take(rate, cost, now) {
                    taken.extend((0..cost).map(|_| now - start));
                } else {
                    // A refused request costs nothing, and the tokens are there after their time.
                    assert_eq!(bucket.full_at, before.full_at, "seed {seed}");
                    let later = now + Duration::from_secs_f64(cost as f64 / rate.per_s as f64);
                    assert!({ bucket }.take(rate, cost, later), "seed {seed}");
                }
            }
            for (first, from) in taken.iter().enumerate() {
                for (count, to) in taken.iter().skip(first).enumerate() {
                    let allowed =
                        rate.burst as f64 + (*to - *from).as_secs_f64() * rate.per_s as f64;
                    assert!((count + 1) as f64 <= allowed + 1e-3, "seed {seed}: {rate:?}");
                }
            }
        }
    }

    /// An event that costs more than a full bucket would otherwise never be accepted.
    #[test]
    fn what_costs_more_than_a_full_bucket_takes_all_of_it() {
        let now = Instant::now();
        let (rate, mut bucket) = (Rate { per_s: 10, burst: 50 }, TokenBucket::new(now));
        assert!(bucket.take(rate, 300, now));
        assert!(!bucket.take(rate, 1, now));
        assert!(bucket.take(rate, 300, now + Duration::from_secs(5)));
    }

    #[test]
    fn who_waits_for_what_is_owed_keeps_to_the_rate() {
        let (start, rate) = (Instant::now(), Rate { per_s: 10, burst: 5 });
        let (mut bucket, mut now) = (TokenBucket::new(start), start);
        for _ in 0..25 {
            now += bucket.owe(rate, now);
        }
        // Five at once, the others a tenth of a second apart.
        let took = (now - start).as_secs_f64();
        assert!((took - 2.0).abs() < 1e-3, "{took}");
    }

    #[test]
    fn a_rate_of_none_limits_nothing() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(now);
        assert!((0..1_000).all(|_| bucket.take(Rate { per_s: 0, burst: 1 }, 1, now)));
        assert_eq!(bucket.owe(Rate { per_s: 0, burst: 1 }, now), Duration::ZERO);
        assert!(bucket.is_full(now));
    }
}
