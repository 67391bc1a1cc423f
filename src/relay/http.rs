//! Plain HTTP on the relay's port: the NIP-11 document.

use super::Shared;
use crate::config::Config;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_TYPE, HeaderValue,
};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

/// The body of every response.
pub(super) type Body = Full<Bytes>;

/// What the relay does, by NIP: only what is true.
const SUPPORTED_NIPS: [u16; 9] = [1, 9, 11, 40, 42, 45, 62, 70, 77];

const NOSTR_JSON: &str = "application/nostr+json";

/// Answers a request that does not ask for a WebSocket.
pub(super) fn respond(request: &Request<Incoming>, relay: &Shared) -> Response<Body> {
    let wants_document = request
        .headers()
        .get_all(ACCEPT)
        .iter()
        .any(|value| value.to_str().is_ok_and(|value| value.contains(NOSTR_JSON)));
    match (request.method(), request.uri().path()) {
        (&Method::OPTIONS, _) => answer(StatusCode::NO_CONTENT, "text/plain", String::new()),
        (&Method::GET | &Method::HEAD, _) if wants_document => {
            answer(StatusCode::OK, NOSTR_JSON, document(&relay.config).to_string())
        }
        (&Method::GET | &Method::HEAD, "/") => {
            let text =
                format!("{}: a Nostr relay. Connect with WebSocket.\n", relay.config.relay.name);
            answer(StatusCode::OK, "text/plain; charset=utf-8", text)
        }
        _ => refuse(StatusCode::NOT_FOUND, "There is nothing here.\n"),
    }
}

/// An answer that says why there is nothing else.
pub(super) fn refuse(status: StatusCode, text: &str) -> Response<Body> {
    answer(status, "text/plain", text.to_owned())
}

fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    // NIP-11: browsers of any origin may read the document.
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("*"));
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, OPTIONS"));
    response
}

/// The NIP-11 document.
fn document(config: &Config) -> Value {
    let limits = &config.limits;
    let mut document = json!({
        "name": config.relay.name,
        "description": config.relay.description,
        "software": "negsync",
        "version": env!("CARGO_PKG_VERSION"),
        "supported_nips": SUPPORTED_NIPS,
        // The version of the negentropy protocol, as strfry and its clients announce it.
        "negentropy": 1,
        "limitation": {
            "max_message_length": limits.message_bytes.get(),
            "max_subscriptions": limits.subscriptions.get(),
            "max_filters": limits.filters.get(),
            "max_limit": limits.events_per_filter.get(),
            "max_subid_length": limits.subscription_id_bytes.get(),
            "max_event_tags": limits.event_tags.get(),
            "created_at_upper_limit": limits.created_at_ahead_s.get(),
            "auth_required": config.auth.required,
            "payment_required": false,
            "restricted_writes": !config.auth.publish_keys.is_empty(),
        },
    });
    for (key, value) in [("contact", &config.relay.contact), ("pubkey", &config.relay.pubkey)] {
        if !value.is_empty()
            && let Some(document) = document.as_object_mut()
        {
            document.insert(key.to_owned(), Value::from(value.as_str()));
        }
    }
    document
}
