//! Exports the metrics of the store and the index to Prometheus.

use super::counters::made;
use crate::index::IndexMetrics;
use crate::store::{Distribution, StoreMetrics};
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Gauge, Histogram, Metric, MetricFamily, MetricType};
use std::collections::HashMap;

/// Exports the metrics of a store.
pub(super) struct StoreCollector {
    store: StoreMetrics,
    commit_s: Desc,
    commit_events: Desc,
    tombstones: Desc,
}

impl StoreCollector {
    pub(super) fn new(store: &StoreMetrics) -> Self {
        Self {
            store: store.clone(),
            commit_s: described("negsync_store_commit_seconds", "How long commits of events took"),
            commit_events: described(
                "negsync_store_commit_events",
                "How many events shared a commit",
            ),
            tombstones: described(
                "negsync_store_tombstones",
                "Ids and addresses that deletion requests keep out",
            ),
        }
    }
}

impl Collector for StoreCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.commit_s, &self.commit_events, &self.tombstones]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut gauge = Gauge::default();
        gauge.set_value(self.store.tombstones() as f64);
        vec![
            histogram(&self.commit_s, &self.store.commit_s),
            histogram(&self.commit_events, &self.store.commit_events),
            family(&self.tombstones, MetricType::GAUGE, Metric::from_gauge(gauge)),
        ]
    }
}

/// Exports the metrics of an index.
pub(super) struct IndexCollector {
    index: IndexMetrics,
    build_s: Desc,
}

impl IndexCollector {
    pub(super) fn new(index: &IndexMetrics) -> Self {
        let build_s = described(
            "negsync_index_build_seconds",
            "How long it took to build the sets that were not kept",
        );
        Self { index: index.clone(), build_s }
    }
}

impl Collector for IndexCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.build_s]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        vec![histogram(&self.build_s, &self.index.build_s)]
    }
}

fn described(name: &str, help: &str) -> Desc {
    made(Desc::new(name.to_owned(), help.to_owned(), Vec::new(), HashMap::new()))
}

fn histogram(desc: &Desc, distribution: &Distribution) -> MetricFamily {
    let bucket = |(upper_bound, count)| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(upper_bound);
        bucket.set_cumulative_count(count);
        bucket
    };
    let mut histogram = Histogram::default();
    histogram.set_bucket(distribution.cumulative().map(bucket).collect());
    histogram.set_sample_count(distribution.count());
    histogram.set_sample_sum(distribution.sum());
    let mut metric = Metric::default();
    metric.set_histogram(histogram);
    family(desc, MetricType::HISTOGRAM, metric)
}

fn family(desc: &Desc, kind: MetricType, metric: Metric) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(desc.fq_name.clone());
    family.set_help(desc.help.clone());
    family.set_field_type(kind);
    family.set_metric(vec![metric]);
    family
}
