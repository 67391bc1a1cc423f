//! HTTP on the relay's port: the NIP-11 document, the page, health and metrics.

use super::response::{Body, METHODS, answer, refuse};
use super::{RelayState, health, page};
use crate::server::media_type::{NOSTR_JSON, accepts};
use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use std::net::IpAddr;
use std::sync::Arc;

/// Answers a request other than a WebSocket upgrade.
pub(super) async fn respond(
    request: &Request<Incoming>,
    relay: &Arc<RelayState>,
    from: IpAddr,
) -> Response<Body> {
    let wants_document = accepts(request.headers(), NOSTR_JSON);
    let has_page = relay.config().page.enabled;
    let path = request.uri().path();
    let is_endpoint = relay.endpoint.is(path);
    match (request.method(), path) {
        (&Method::OPTIONS, _) if is_endpoint => {
            answer(StatusCode::NO_CONTENT, "text/plain", String::new())
        }
        (&Method::GET | &Method::HEAD, _) if is_endpoint && wants_document => {
            answer(StatusCode::OK, NOSTR_JSON, json!(relay.document()).to_string())
        }
        (&Method::GET | &Method::HEAD, _)
            if is_endpoint && has_page && page::is_wanted(request) =>
        {
            page::respond(request, relay, from).await
        }
        (&Method::GET, _) if has_page && relay.endpoint.is_updates(path) => {
            page::respond_updates(request, relay, from)
        }
        (&Method::GET | &Method::HEAD, _) if is_endpoint && page::is_wanted(request) => {
            answer(StatusCode::OK, "text/html; charset=utf-8", page::turned_off(&relay.config()))
        }
        (&Method::GET | &Method::HEAD, _) if is_endpoint => {
            let name = relay.document().name.unwrap_or_default();
            let text = format!("{name}: a Nostr relay. Connect with WebSocket.\n");
            answer(StatusCode::OK, "text/plain; charset=utf-8", text)
        }
        (&Method::GET | &Method::HEAD, "/health") => health::respond(relay).await.map(Body::Whole),
        (&Method::GET | &Method::HEAD, "/metrics") => {
            let store = relay.index.store();
            relay.service.metrics(request, from, store.size(), store.feed_lag()).map(Body::Whole)
        }
        (&Method::GET | &Method::HEAD, "/status") => {
            let store = Some(relay.index.store().as_ref());
            relay.service.status(request, from, store).map(Body::Whole)
        }
        _ if is_endpoint => {
            let text = "This path takes GET, HEAD and OPTIONS, and POST for NIP-86 alone.\n";
            let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, text);
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(METHODS));
            response
        }
        _ => refuse(StatusCode::NOT_FOUND, "There is nothing here.\n"),
    }
}
