//! The state of serving over HTTP: `/health` for supervisors, `/metrics` for Prometheus, `/status`
//! for `negsync peers` and `negsync top`. Pages of other origins cannot read the responses.

use super::Service;
use super::limits::is_forwarded;
use super::own_host::names_own_host;
use crate::metrics::{self, Observed, PeerStatus};
use crate::store::{Distribution, EventStore, FeedLag};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// 200 if there are no reasons for failure, otherwise 503 with the reasons.
pub(crate) fn health(reasons: &[String]) -> Response<Full<Bytes>> {
    let (status, word) = match reasons {
        [] => (StatusCode::OK, "ok"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
    };
    let body = json!({ "status": word, "reasons": reasons });
    answer(status, "application/json", format!("{body}\n"))
}

impl Service {
    /// The reasons for failure that every service can have.
    pub(crate) fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.running.stopping.is_cancelled() {
            reasons.push("the relay is stopping".to_owned());
        }
        if !self.sets.statistics().is_loaded {
            reasons.push("the index is being loaded".to_owned());
        }
        reasons
    }

    /// The metrics, for allowed clients; with the sizes of the store and its log in bytes.
    pub(crate) fn metrics<B>(
        &self,
        request: &Request<B>,
        from: IpAddr,
        (store_bytes, wal_bytes): (u64, u64),
        feed: Option<FeedLag>,
    ) -> Response<Full<Bytes>> {
        if let Some(refusal) = self.refused_to_strangers(request, from) {
            return refusal;
        }
        let (now, statistics) = (self.now(), self.sets.statistics());
        let observed = Observed {
            index_items: statistics.items,
            index_bytes: statistics.bytes,
            kept_sets: statistics.kept_sets,
            kept_bytes: statistics.kept_bytes,
            kept_file_bytes: statistics.kept_file_bytes,
            outbound_bytes: self.counts.outbound.waiting(),
            store_bytes,
            wal_bytes,
            feed,
        };
        let text = self.metrics.text(&observed, &self.peers.all(now), now);
        answer(StatusCode::OK, metrics::CONTENT_TYPE, text)
    }
}

impl Service {
    /// The states of the peers and the connected clients, for allowed clients. `store` is the path
    /// of the relay's own events.
    pub(crate) fn status<B>(
        &self,
        request: &Request<B>,
        from: IpAddr,
        store: Option<&dyn EventStore>,
    ) -> Response<Full<Bytes>> {
        if let Some(refusal) = self.refused_to_strangers(request, from) {
            return refusal;
        }
        let now = self.now();
        let peers = self.peers.all(now);
        let peers: Vec<_> = peers.iter().map(PeerDocument::new).collect();
        let metrics = &self.metrics;
        let (store_bytes, wal_bytes) = store.map_or((0, 0), EventStore::size);
        let commit_s = store.map(|store| &store.metrics().commit_s);
        let events: BTreeMap<&str, u64> =
            metrics.events.counts().filter(|(_, count)| *count > 0).collect();
        let body = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "now": now,
            "started_at": self.started_at,
            "connections": metrics.connections.get(),
            "subscriptions": metrics.subscriptions.get(),
            "neg_sessions": metrics.neg_sessions.get(),
            "stored_events": self.sets.statistics().items,
            "store_bytes": store_bytes,
            "wal_bytes": wal_bytes,
            "totals": {
                "connections": metrics.connections_total.get(),
                "neg_sessions": metrics.neg_sessions_total.get(),
                "neg_messages": metrics.neg_rounds.get(),
                "commits": commit_s.map_or(0, Distribution::count),
                "commit_s": commit_s.map_or(0.0, Distribution::sum),
                "events": events,
            },
            "peers": peers,
        });
        answer(StatusCode::OK, "application/json", format!("{body}\n"))
    }

    /// The refusal, unless the request comes directly from an address in `metrics.allow`.
    fn refused_to_strangers<B>(
        &self,
        request: &Request<B>,
        from: IpAddr,
    ) -> Option<Response<Full<Bytes>>> {
        let config = self.config();
        let is_allowed = config.metrics.allow.iter().any(|network| network.contains(from));
        let text = if !names_own_host(request, &config) {
            "This is not shown under this Host; name it in relay.hosts.\n"
        } else if is_forwarded(request) || !is_allowed {
            "This is shown to the addresses in metrics.allow, without a proxy.\n"
        } else {
            return None;
        };
        Some(answer(StatusCode::FORBIDDEN, "text/plain", text.to_owned()))
    }
}

/// A peer in `/status`.
#[derive(Serialize)]
struct PeerDocument<'peer> {
    state: &'static str,
    #[serde(flatten)]
    status: &'peer PeerStatus,
}

impl<'peer> PeerDocument<'peer> {
    fn new(status: &'peer PeerStatus) -> Self {
        Self { state: status.state().words(), status }
    }
}

/// A response that must not be cached.
pub(crate) fn answer(
    status: StatusCode,
    content_type: &'static str,
    body: String,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
