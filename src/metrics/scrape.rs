//! The text for Prometheus: counters, and values that are read at the time of the scrape.

use super::counters::{gauge, made, register};
use super::{Metrics, PeerStatus};
use crate::store::FeedLag;
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

/// The content type of [`Metrics::text`]: Prometheus' text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Sizes at the time of the scrape.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Observed {
    /// Items in the set of all events.
    pub index_items: usize,
    /// Their estimated memory, in bytes.
    pub index_bytes: usize,
    /// Kept sets of other filters.
    pub kept_sets: usize,
    /// Their estimated memory, in bytes.
    pub kept_bytes: usize,
    /// The bytes of the files of sets of other filters.
    pub kept_file_bytes: u64,
    /// Bytes that wait to be sent to clients.
    pub outbound_bytes: usize,
    /// Size of the store's file, in bytes.
    pub store_bytes: u64,
    /// Size of the store's write-ahead log, in bytes.
    pub wal_bytes: u64,
    /// The lag of this node, if several share a database.
    pub feed: Option<FeedLag>,
}

impl Metrics {
    /// All metrics in Prometheus' text format, with sizes and peers as of the second `now`.
    pub fn text(&self, observed: &Observed, peers: &[PeerStatus], now: u64) -> String {
        let momentary = Registry::new();
        add_observed(&momentary, observed);
        add_peers(&momentary, peers, now);
        let mut families = self.registry.gather();
        families.extend(momentary.gather());
        // Fails only for families without a name or a metric, which gathering leaves out.
        TextEncoder::new().encode_to_string(&families).unwrap_or_default()
    }
}

fn add_observed(registry: &Registry, observed: &Observed) {
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    for (name, help, value) in [
        ("negsync_index_items", "Items of the set of all events", count(observed.index_items)),
        (
            "negsync_index_bytes",
            "Memory of the set of all events, about",
            count(observed.index_bytes),
        ),
        ("negsync_index_kept_sets", "Kept sets of other filters", count(observed.kept_sets)),
        ("negsync_index_kept_bytes", "Memory of these sets, about", count(observed.kept_bytes)),
        (
            "negsync_index_kept_file_bytes",
            "Files of sets that are too large for memory",
            observed.kept_file_bytes,
        ),
        (
            "negsync_outbound_bytes",
            "Answers that wait for clients to take them",
            count(observed.outbound_bytes),
        ),
        ("negsync_store_bytes", "Size of the store's file", observed.store_bytes),
        ("negsync_store_wal_bytes", "Size of the store's write-ahead log", observed.wal_bytes),
    ] {
        gauge(registry, name, help).set(as_gauge(value));
    }
    let Some(feed) = observed.feed else { return };
    let commits = "Commits of other nodes that this one was told of and has not read";
    gauge(registry, "negsync_feed_lag_commits", commits).set(as_gauge(feed.commits));
    let seconds = "Seconds since this node could last read which commits there are";
    gauge(registry, "negsync_feed_lag_seconds", seconds).set(as_gauge(feed.seconds));
}

/// A value of a peer; `None` is not exported.
type OfPeer = fn(&PeerStatus, u64) -> Option<u64>;

const PEER_GAUGES: [(&str, &str, OfPeer); 5] = [
    ("negsync_peer_connected", "Whether there is a connection to the peer", |peer, _| {
        Some(u64::from(peer.connected))
    }),
    (
        "negsync_peer_last_converged_timestamp_seconds",
        "When all that was to be moved had last been moved, or had a reason not to be",
        |peer, _| peer.last_converged,
    ),
    ("negsync_peer_lag_seconds", "How long ago that was", |peer, now| peer.lag_s(now)),
    ("negsync_peer_have_events", "Events that only we have, by the last look", |peer, _| {
        Some(peer.have)
    }),
    ("negsync_peer_need_events", "Events that only the peer has, by the last look", |peer, _| {
        Some(peer.need)
    }),
];

const PEER_COUNTERS: [(&str, &str, OfPeer); 9] = [
    ("negsync_peer_syncs_total", "Syncs with the peer that came to their end", |peer, _| {
        Some(peer.syncs)
    }),
    ("negsync_peer_errors_total", "Connections and syncs that failed", |peer, _| Some(peer.errors)),
    ("negsync_peer_stored_total", "Events from the peer that were stored", |peer, _| {
        Some(peer.totals.stored)
    }),
    ("negsync_peer_uploaded_total", "Events that the peer took", |peer, _| {
        Some(peer.totals.uploaded)
    }),
    ("negsync_peer_refused_total", "Events from the peer that were not kept", |peer, _| {
        Some(peer.totals.refused)
    }),
    ("negsync_peer_refused_by_peer_total", "Events that the peer did not take", |peer, _| {
        Some(peer.totals.refused_by_peer)
    }),
    ("negsync_peer_round_trips_total", "Questions that the peer answered", |peer, _| {
        Some(peer.totals.round_trips)
    }),
    ("negsync_peer_sent_bytes_total", "Bytes of messages sent to the peer", |peer, _| {
        Some(peer.totals.bytes_up)
    }),
    ("negsync_peer_received_bytes_total", "Bytes of messages from the peer", |peer, _| {
        Some(peer.totals.bytes_down)
    }),
];

fn add_peers(registry: &Registry, peers: &[PeerStatus], now: u64) {
    for (name, help, of_peer) in PEER_GAUGES {
        let family = register(registry, made(IntGaugeVec::new(Opts::new(name, help), &["peer"])));
        for peer in peers {
            if let Some(value) = of_peer(peer, now) {
                family.with_label_values(&[&peer.name]).set(as_gauge(value));
            }
        }
    }
    for (name, help, of_peer) in PEER_COUNTERS {
        let family = register(registry, made(IntCounterVec::new(Opts::new(name, help), &["peer"])));
        for peer in peers {
            let value = of_peer(peer, now).unwrap_or_default();
            family.with_label_values(&[&peer.name]).inc_by(value);
        }
    }
}

fn as_gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
