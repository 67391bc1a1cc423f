//! What the relay knows of itself while it runs, and how Prometheus reads it.
//!
//! Each floor counts on its own: a store and an index in plain numbers, [`Metrics`] for a relay over them; it
//! is the one that shows all of them. There is no registry beside these values, so that many relays can
//! live in one process.

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

/// Items of a session's set.
const SET_ITEMS: [f64; 8] = [0.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8];

/// The verbs of a client's messages (NIP-01, 42, 45, 77); `invalid` is what could not be read.
const VERBS: [&str; 9] =
    ["EVENT", "REQ", "CLOSE", "COUNT", "AUTH", "NEG-OPEN", "NEG-MSG", "NEG-CLOSE", "invalid"];
/// What became of events: the store's outcomes, and the prefixes of NIP-01 and NIP-42 with which
/// they are refused.
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
/// What became of AUTH (NIP-42): the key is known by it, or a prefix of its refusal.
const AUTH_OUTCOMES: [&str; 5] = ["accepted", "invalid", "restricted", "rate-limited", "error"];
/// The prefixes of CLOSED (NIP-01, NIP-42), and others of a program's own.
const QUERY_REASONS: [&str; 7] =
    ["invalid", "unsupported", "auth-required", "restricted", "rate-limited", "error", "other"];
/// The prefixes of NEG-ERR (NIP-77) and of those of NIP-42, and others of a program's own.
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
/// Why a connection is not served.
const CONNECTION_REASONS: [&str; 4] = ["handshake", "banned", "connections", "address"];

/// What a relay measures, together with what lies under it.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// WebSocket connections that are open.
    pub connections: IntGauge,
    /// WebSocket connections since the start.
    pub connections_total: IntCounter,
    /// Connections that were not served, by reason.
    pub connections_refused: Labelled,
    /// Messages of clients by verb.
    pub messages: Labelled,
    /// Published events by what became of them.
    pub events: Labelled,
    /// AUTH by what became of it.
    pub auth: Labelled,
    /// REQ and COUNT that were answered with CLOSED, by its prefix.
    pub query_refusals: Labelled,
    /// Events sent to clients: `stored` in answer to a REQ, or `live`.
    pub events_sent: Labelled,
    /// Connections that were woken because a live event matched.
    pub live_wakeups: IntCounter,
    /// Subscriptions that are open.
    pub subscriptions: IntGauge,
    /// NEG sessions that are open.
    pub neg_sessions: IntGauge,
    /// NEG sessions that were opened.
    pub neg_sessions_total: IntCounter,
    /// NEG-OPEN and NEG-MSG that were answered with NEG-ERR, by its prefix.
    pub neg_refusals: Labelled,
    /// NEG-OPEN and NEG-MSG that were answered with NEG-MSG.
    pub neg_rounds: IntCounter,
    /// Bytes of negentropy messages received, before hex.
    pub neg_received_bytes: IntCounter,
    /// Bytes of negentropy messages sent, before hex.
    pub neg_sent_bytes: IntCounter,
    /// Items of the sets that sessions were opened over.
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

    /// The metrics of what answers NEG alone, over this index: events and subscriptions, which are
    /// another relay's, are counted nowhere.
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

    /// Counts a message that was refused with a prefix (NIP-01). `verb` is that of the message, and
    /// empty where it was answered with a NOTICE.
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
