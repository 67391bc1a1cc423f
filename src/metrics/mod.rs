//! Metrics of a running relay, and their export to Prometheus.
//!
//! Store and index count separately in plain numbers; [`Metrics`] belongs to the relay over them
//! and exports all of them. There is no global registry, so several relays can run in one process.

mod collectors;
mod counters;
mod look;
mod peers;
mod scrape;
mod verdict;

pub use counters::{Labelled, Share};
pub use look::{DayDiffers, DriftLook, MOST_LOOK_DAYS};
pub use peers::{LastSync, PeerState, PeerStatus, Peers, Tally, Watched};
pub(crate) use prometheus::{Histogram, IntCounter, IntGauge};
pub use scrape::{CONTENT_TYPE, Observed};
pub use verdict::{Proof, Verdict};

use crate::index::IndexMetrics;
use crate::prefix::Prefix;
use crate::store::StoreMetrics;
use collectors::{IndexCollector, StoreCollector};
use counters::{counter, gauge, histogram, made};
use prometheus::Registry;

/// Buckets for the number of items in a session's set.
const SET_ITEMS: [f64; 8] = [0.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8];

/// The verbs of client messages (NIP-01, 42, 45, 77); `invalid` counts malformed messages.
const VERBS: [&str; 9] =
    ["EVENT", "REQ", "CLOSE", "COUNT", "AUTH", "NEG-OPEN", "NEG-MSG", "NEG-CLOSE", "invalid"];
/// The outcomes of published events: those of the store, and the prefixes of refusals (NIP-01,
/// NIP-42).
const OUTCOMES: [&str; 16] = [
    "stored",
    "duplicate",
    "superseded",
    "deleted",
    "vanished",
    "expired",
    "passed_on",
    "failed",
    "invalid",
    "blocked",
    "rate-limited",
    "restricted",
    "auth-required",
    "pow",
    "error",
    "other",
];
/// The outcomes of AUTH (NIP-42): accepted, or the prefix of the refusal.
const AUTH_OUTCOMES: [&str; 5] = ["accepted", "invalid", "restricted", "rate-limited", "error"];
/// The prefixes of CLOSED (NIP-01, NIP-42); the last one counts those of a program's own.
const QUERY_REASONS: [&str; 7] =
    ["invalid", "unsupported", "auth-required", "restricted", "rate-limited", "error", "other"];
/// The prefixes of NEG-ERR (NIP-77, NIP-42); the last one counts those of a program's own.
const NEG_REASONS: [&str; 9] = [
    "blocked",
    "closed",
    "invalid",
    "unsupported",
    "rate-limited",
    "auth-required",
    "restricted",
    "error",
    "other",
];
/// The reasons for refusing a connection.
const CONNECTION_REASONS: [&str; 4] = ["handshake", "banned", "connections", "address"];

/// The metrics of a relay, including its store and index.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Open WebSocket connections.
    pub connections: IntGauge,
    /// WebSocket connections since the start.
    pub connections_total: IntCounter,
    /// Refused connections, by reason.
    pub connections_refused: Labelled,
    /// Messages of clients, by verb.
    pub messages: Labelled,
    /// Published events, by outcome.
    pub events: Labelled,
    /// AUTH messages, by outcome.
    pub auth: Labelled,
    /// REQ and COUNT answered with CLOSED, by its prefix.
    pub query_refusals: Labelled,
    /// Events sent to clients: `stored` in answer to a REQ, or `live`.
    pub events_sent: Labelled,
    /// Connections that were woken for a matching live event.
    pub live_wakeups: IntCounter,
    /// Open subscriptions.
    pub subscriptions: IntGauge,
    /// Open NEG sessions.
    pub neg_sessions: IntGauge,
    /// NEG sessions opened since the start.
    pub neg_sessions_total: IntCounter,
    /// NEG-OPEN and NEG-MSG answered with NEG-ERR, by its prefix.
    pub neg_refusals: Labelled,
    /// NEG-OPEN and NEG-MSG answered with NEG-MSG.
    pub neg_rounds: IntCounter,
    /// Bytes of negentropy messages received, before hex encoding.
    pub neg_received_bytes: IntCounter,
    /// Bytes of negentropy messages sent, before hex encoding.
    pub neg_sent_bytes: IntCounter,
    /// Items in the sets of opened sessions.
    pub neg_set_items: Histogram,
}

impl Metrics {
    /// The metrics of a relay over this store and index.
    pub fn new(store: &StoreMetrics, index: &IndexMetrics) -> Self {
        let registry = Registry::new();
        made(registry.register(Box::new(StoreCollector::new(store))));
        let events = registry.clone();
        Self::of(registry, &events, index)
    }

    /// The metrics of a sidecar over this index, which answers only NEG messages: events and
    /// subscriptions belong to the other relay and are not counted.
    pub fn attached(index: &IndexMetrics) -> Self {
        Self::of(Registry::new(), &Registry::new(), index)
    }

    fn of(registry: Registry, events: &Registry, index: &IndexMetrics) -> Self {
        made(registry.register(Box::new(IndexCollector::new(index))));
        let of = &registry;
        let labelled = |of, name, help, label, values: &[&'static str]| {
            Labelled::new(of, name, help, label, values)
        };
        Self {
            connections: gauge(of, "negsync_connections", "Open WebSocket connections"),
            connections_total: counter(
                of,
                "negsync_connections_total",
                "WebSocket connections since the start",
            ),
            connections_refused: labelled(
                of,
                "negsync_connections_refused_total",
                "Connections that were not served",
                "reason",
                &CONNECTION_REASONS,
            ),
            messages: labelled(of, "negsync_messages_total", "Messages of clients", "verb", &VERBS),
            events: labelled(
                events,
                "negsync_events_total",
                "Published events by what became of them",
                "outcome",
                &OUTCOMES,
            ),
            auth: labelled(
                events,
                "negsync_auth_total",
                "AUTH by what became of it",
                "outcome",
                &AUTH_OUTCOMES,
            ),
            query_refusals: labelled(
                events,
                "negsync_query_refusals_total",
                "REQ and COUNT answered with CLOSED, by its prefix",
                "reason",
                &QUERY_REASONS,
            ),
            events_sent: labelled(
                events,
                "negsync_events_sent_total",
                "Events sent to clients, stored ones or live",
                "kind",
                &["stored", "live"],
            ),
            live_wakeups: counter(
                events,
                "negsync_live_wakeups_total",
                "Connections woken because a live event matched",
            ),
            subscriptions: gauge(events, "negsync_subscriptions", "Open subscriptions"),
            neg_sessions: gauge(of, "negsync_neg_sessions", "Open NEG sessions"),
            neg_sessions_total: counter(
                of,
                "negsync_neg_sessions_total",
                "NEG sessions that were opened",
            ),
            neg_refusals: labelled(
                of,
                "negsync_neg_refusals_total",
                "NEG messages answered with NEG-ERR, by its prefix",
                "reason",
                &NEG_REASONS,
            ),
            neg_rounds: counter(
                of,
                "negsync_neg_rounds_total",
                "NEG messages answered with NEG-MSG",
            ),
            neg_received_bytes: counter(
                of,
                "negsync_neg_received_bytes_total",
                "Bytes of negentropy messages received, before hex",
            ),
            neg_sent_bytes: counter(
                of,
                "negsync_neg_sent_bytes_total",
                "Bytes of negentropy messages sent, before hex",
            ),
            neg_set_items: histogram(
                of,
                "negsync_neg_set_items",
                "Items of the sets that NEG sessions were opened over",
                &SET_ITEMS,
            ),
            registry,
        }
    }

    /// Counts a refused message by its prefix (NIP-01). `verb` is the verb of the message, or empty
    /// if the answer was a NOTICE.
    pub fn refused(&self, verb: &str, prefix: Prefix) {
        let prefix = prefix.as_str();
        match verb {
            "EVENT" => self.events.count(prefix),
            "AUTH" => self.auth.count(prefix),
            "REQ" | "CLOSE" | "COUNT" => self.query_refusals.count(prefix),
            "NEG-OPEN" | "NEG-MSG" | "NEG-CLOSE" => self.neg_refusals.count(prefix),
            _ => {}
        }
    }
}
