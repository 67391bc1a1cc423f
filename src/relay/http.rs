//! Plain HTTP on the relay's port: the NIP-11 document, the page, how the relay does and what it
//! measures.

use super::page::{self, Updates};
use super::{Shared, health};
use crate::clients::status;
use crate::config::Config;
use http_body_util::Full;
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper::header::{
    ACCEPT, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue,
};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The body of every response.
pub(super) enum Body {
    /// All of it is there.
    Whole(Full<Bytes>),
    /// It goes on for as long as someone listens.
    Updates(Updates),
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::Whole(Full::from(text))
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::Whole(Full::default())
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(whole) => Pin::new(whole).poll_frame(context),
            Self::Updates(updates) => Pin::new(updates).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(whole) => whole.is_end_stream(),
            Self::Updates(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Updates(_) => SizeHint::new(),
        }
    }
}

/// What the relay does, by NIP: only what is true.
const SUPPORTED_NIPS: [u16; 9] = [1, 9, 11, 40, 42, 45, 62, 70, 77];

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
        (&Method::GET | &Method::HEAD, "/health") => health::respond(relay).await.map(Body::Whole),
        (&Method::GET | &Method::HEAD, "/metrics") => {
            let bytes = relay.index.store().file_bytes();
            relay.service.metrics(request, from, bytes).map(Body::Whole)
        }
        _ => refuse(StatusCode::NOT_FOUND, "There is nothing here.\n"),
    }
}

/// An answer that says why there is nothing else.
pub(super) fn refuse(status: StatusCode, text: &str) -> Response<Body> {
    answer(status, "text/plain", text.to_owned())
}

fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = answer_own(status, content_type, body);
    let headers = response.headers_mut();
    // NIP-11: browsers of any origin may read the document.
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("*"));
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, OPTIONS"));
    response
}

/// An answer that pages of other origins may not read.
pub(super) fn answer_own(
    status: StatusCode,
    content_type: &'static str,
    body: String,
) -> Response<Body> {
    status::answer(status, content_type, body).map(Body::Whole)
}

/// The NIP-11 document.
pub(super) fn document(config: &Config) -> Value {
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
            "max_content_length": limits.content_chars.get(),
            "created_at_upper_limit": limits.created_at_ahead_s.get(),
            "auth_required": config.auth.required,
            "payment_required": false,
            "restricted_writes": !config.auth.publish_keys.is_empty(),
        },
    });
    if limits.created_at_behind_s.get() > 0 {
        let behind = limits.created_at_behind_s.get();
        document["limitation"]["created_at_lower_limit"] = Value::from(behind);
    }
    for (key, value) in [("contact", &config.relay.contact), ("pubkey", &config.relay.pubkey)] {
        if !value.is_empty()
            && let Some(document) = document.as_object_mut()
        {
            document.insert(key.to_owned(), Value::from(value.as_str()));
        }
    }
    document
}
