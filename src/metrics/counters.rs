//! Metric types in addition to those of Prometheus, and their construction.

use crate::prefix::Prefix;
use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use std::sync::Arc;

/// One counter for each value of a label. The values are fixed, so clients cannot create new ones,
/// and counting takes no lock. Clones share the counters.
#[derive(Debug, Clone)]
pub struct Labelled {
    counters: Arc<[(&'static str, IntCounter)]>,
}

impl Labelled {
    pub(super) fn new(
        registry: &Registry,
        name: &str,
        help: &str,
        label: &str,
        values: &[&'static str],
    ) -> Self {
        let family = made(IntCounterVec::new(Opts::new(name, help), &[label]));
        let of_value = |value| (value, family.with_label_values(&[value]));
        let counters = values.iter().copied().map(of_value).collect();
        made(registry.register(Box::new(family)));
        Self { counters }
    }

    /// Counts one occurrence; an unknown value counts as the last of the known ones.
    pub fn count(&self, value: &str) {
        self.add(value, 1);
    }

    /// Like [`Labelled::count`], for several occurrences.
    pub fn add(&self, value: &str, number: u64) {
        let known = self.counters.iter().find(|(known, _)| *known == value);
        if let Some((_, counter)) = known.or(self.counters.last()) {
            counter.inc_by(number);
        }
    }

    /// The values and their counts.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.counters.iter().map(|(value, counter)| (*value, counter.get()))
    }

    /// Counts a refusal by the machine-readable prefix of its text (NIP-01).
    pub fn count_prefix(&self, text: &str) {
        self.count(Prefix::of(text).map_or("", Prefix::as_str));
    }
}

/// The contribution of one connection to a gauge; subtracted when it is dropped.
#[derive(Debug)]
pub struct Share {
    gauge: IntGauge,
    number: i64,
}

impl Share {
    /// An empty contribution to `gauge`.
    pub fn of(gauge: &IntGauge) -> Self {
        Self { gauge: gauge.clone(), number: 0 }
    }

    /// Sets the contribution to `number`.
    pub fn set(&mut self, number: usize) {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        self.gauge.add(number.saturating_sub(self.number));
        self.number = number;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Cannot fail: names, labels and buckets are constants of this program, and a test creates each of
/// them.
pub(super) fn made<T>(result: prometheus::Result<T>) -> T {
    result.expect("a metric's name, labels and buckets are right")
}

pub(super) fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, made(IntCounter::new(name, help)))
}

pub(super) fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, made(IntGauge::new(name, help)))
}

pub(super) fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    register(registry, made(Histogram::with_opts(options)))
}

pub(super) fn register<T: Collector + Clone + 'static>(registry: &Registry, metric: T) -> T {
    made(registry.register(Box::new(metric.clone())));
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_leaves_nothing_behind_and_shares_add_up() {
        let gauge = IntGauge::new("a", "b").unwrap();
        let (mut one, mut other) = (Share::of(&gauge), Share::of(&gauge));
        one.set(3);
        other.set(2);
        one.set(1);
        assert_eq!(gauge.get(), 3);
        drop(one);
        assert_eq!(gauge.get(), 2);
        drop(other);
        assert_eq!(gauge.get(), 0);
    }

    #[test]
    fn a_stranger_makes_no_new_values_of_a_label() {
        let registry = Registry::new();
        let labelled = Labelled::new(&registry, "a_total", "b", "c", &["blocked", "other"]);
        for text in ["blocked: no", "evil-1: yes", "evil-2: yes", "without", ""] {
            labelled.count_prefix(text);
        }
        assert!(labelled.counts().eq([("blocked", 1), ("other", 4)]));
        assert_eq!(registry.gather()[0].get_metric().len(), 2);
    }
}
