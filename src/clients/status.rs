//! How serving does, over HTTP: `/health` for those who start it again when it does not, `/metrics`
//! for Prometheus. Pages of other origins may not read either.

use super::Service;
use super::limits::is_forwarded;
use super::own_host::names_own_host;
use crate::metrics::{self, Observed};
use crate::store::unix_now;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use serde_json::json;
use std::net::IpAddr;

/// 200 when there is no reason why work cannot be done, 503 with the reasons when there is.
pub(crate) fn health(reasons: &[String]) -> Response<Full<Bytes>> {
    let (status, word) = match reasons {
        [] => (StatusCode::OK, "ok"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
    };
    let body = json!({ "status": word, "reasons": reasons });
    answer(status, "application/json", format!("{body}\n"))
}

impl Service {
    /// The reasons that every service has.
    pub(crate) fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if *self.running.stopping.borrow() {
            reasons.push("the relay is stopping".to_owned());
        }
        if !self.sets.statistics().is_loaded {
            reasons.push("the index is being loaded".to_owned());
        }
        reasons
    }

    /// What is measured, for those who may know; the store's file and its log have so many bytes.
    pub(crate) fn metrics<B>(
        &self,
        request: &Request<B>,
        from: IpAddr,
        (store_bytes, wal_bytes): (u64, u64),
    ) -> Response<Full<Bytes>> {
        let config = self.config();
        let is_allowed = config.metrics.allow.iter().any(|network| network.contains(from));
        if !names_own_host(request, &config) {
            let text = "Metrics are not shown under this Host; name it in relay.hosts.\n";
            return answer(StatusCode::FORBIDDEN, "text/plain", text.to_owned());
        }
        if is_forwarded(request) || !is_allowed {
            let text = "Metrics are shown to the addresses in metrics.allow, without a proxy.\n";
            return answer(StatusCode::FORBIDDEN, "text/plain", text.to_owned());
        }
        let (now, statistics) = (unix_now(), self.sets.statistics());
        let observed = Observed {
            index_items: statistics.items,
            index_bytes: statistics.bytes,
            kept_sets: statistics.kept_sets,
            kept_bytes: statistics.kept_bytes,
            store_bytes,
            wal_bytes,
        };
        let text = self.metrics.text(&observed, &self.peers.all(now), now);
        answer(StatusCode::OK, metrics::CONTENT_TYPE, text)
    }
}

/// An answer that nobody keeps.
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
