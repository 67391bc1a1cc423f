//! Plain HTTP on the relay's port: the NIP-11 document, the page, how the relay does and what it
//! measures.

use super::information::document;
use super::limits::is_forwarded;
use super::response::{Body, answer, answer_own, refuse};
use super::{Shared, health, page};
use crate::metrics::{self, Observed};
use crate::store::unix_now;
use hyper::body::Incoming;
use hyper::header::ACCEPT;
use hyper::{Method, Request, Response, StatusCode};
use std::net::IpAddr;
use std::sync::Arc;

const NOSTR_JSON: &str = "application/nostr+json";

/// Answers a request that does not ask for a WebSocket.
pub(super) async fn respond(
    request: &Request<Incoming>,
    relay: &Arc<Shared>,
    from: IpAddr,
) -> Response<Body> {
    let wants_document = request
        .headers()
        .get_all(ACCEPT)
        .iter()
        .any(|value| value.to_str().is_ok_and(|value| value.contains(NOSTR_JSON)));
    let has_page = relay.config().page.enabled;
    match (request.method(), request.uri().path()) {
        (&Method::OPTIONS, _) => answer(StatusCode::NO_CONTENT, "text/plain", String::new()),
        (&Method::GET | &Method::HEAD, _) if wants_document => {
            answer(StatusCode::OK, NOSTR_JSON, document(&relay.config()).to_string())
        }
        (&Method::GET | &Method::HEAD, "/") if has_page && page::is_wanted(request) => {
            page::respond(request, relay, from).await
        }
        (&Method::GET, "/events") if has_page => page::respond_updates(request, relay, from),
        (&Method::GET | &Method::HEAD, "/") => {
            let text =
                format!("{}: a Nostr relay. Connect with WebSocket.\n", relay.config().relay.name);
            answer(StatusCode::OK, "text/plain; charset=utf-8", text)
        }
        (&Method::GET | &Method::HEAD, "/health") => health::respond(relay).await,
        (&Method::GET | &Method::HEAD, "/metrics") => metrics(request, relay, from),
        _ => refuse(StatusCode::NOT_FOUND, "There is nothing here.\n"),
    }
}

/// What the relay measures, for those who may know.
fn metrics(request: &Request<Incoming>, relay: &Shared, from: IpAddr) -> Response<Body> {
    let is_allowed = relay.config().metrics.allow.iter().any(|network| network.contains(from));
    if is_forwarded(request) || !is_allowed {
        let text = "Metrics are shown to the addresses in metrics.allow, without a proxy.\n";
        return answer_own(StatusCode::FORBIDDEN, "text/plain", text.to_owned());
    }
    let (now, statistics) = (unix_now(), relay.index.sets().statistics());
    let (store_bytes, wal_bytes) = relay.index.store().file_bytes();
    let observed = Observed {
        index_items: statistics.items,
        index_bytes: statistics.bytes,
        kept_sets: statistics.kept_sets,
        kept_bytes: statistics.kept_bytes,
        store_bytes,
        wal_bytes,
    };
    let text = relay.metrics.text(&observed, &relay.peers.all(now), now);
    answer_own(StatusCode::OK, metrics::CONTENT_TYPE, text)
}
