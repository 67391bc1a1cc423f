//! Management over HTTP (NIP-86): a POST to the relay's own path, signed by a key of
//! `moderation.operators` (NIP-98). It changes the same state as `negsync ban` and `negsync
//! delete`.

mod authorization;
mod methods;

use super::RelayState;
use super::response::{Body, answer};
use crate::server::log_pace::LogPace;
use authorization::{Requests, authorize};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// The media type of a request (NIP-86).
const RPC: &str = "application/nostr+json+rpc";
/// Maximum length of a request.
const REQUEST_BYTES: usize = 64 << 10;

/// State of management between requests.
#[derive(Default)]
pub(super) struct ManagementState {
    requests: Requests,
    refusals: LogPace,
}

/// A request's body.
#[derive(Deserialize)]
struct Call {
    method: String,
    #[serde(default)]
    params: Vec<Value>,
}

/// Whether a request is a management call.
pub(super) fn is_asked_for<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    request.method() == Method::POST
        && content_type.is_some_and(|value| {
            value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(RPC)
        })
}

/// Performs a request.
pub(super) async fn respond(request: Request<Incoming>, relay: &Arc<RelayState>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body: Bytes = match Limited::new(body, REQUEST_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => {
            let text = "the request is longer than 64 KiB, or was cut";
            return error(StatusCode::PAYLOAD_TOO_LARGE, text);
        }
    };
    let caller = match authorize(&head, &body, relay) {
        Ok(caller) => caller,
        Err(reason) => return refuse(relay, reason),
    };
    let call: Call = match serde_json::from_slice(&body) {
        Ok(call) => call,
        Err(_) => {
            return error(
                StatusCode::BAD_REQUEST,
                "the body is no {\"method\":...,\"params\":[...]}",
            );
        }
    };
    if !caller.may_call(&call.method) {
        return refuse(relay, "the key may not call this method");
    }
    let (relay, method) = (Arc::clone(relay), call.method.clone());
    let done = tokio::task::spawn_blocking(move || {
        methods::call(&relay, &caller, &call.method, &call.params)
    });
    match done.await.unwrap_or_else(|_| Err("the request could not be followed".to_owned())) {
        Ok(result) => {
            tracing::info!(method, "management request followed");
            answer(StatusCode::OK, "application/json", json!({ "result": result }).to_string())
        }
        Err(text) => error(StatusCode::OK, &text),
    }
}

fn refuse(relay: &RelayState, reason: &'static str) -> Response<Body> {
    if let Some(times) = relay.management.refusals.due() {
        tracing::info!(reason, times, "management request refused");
    }
    let mut response = error(StatusCode::UNAUTHORIZED, reason);
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Nostr"));
    response
}

fn error(status: StatusCode, text: &str) -> Response<Body> {
    answer(status, "application/json", json!({ "error": text }).to_string())
}
