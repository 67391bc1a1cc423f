//! Authorization of requests (NIP-98): the `Authorization` header contains an event that an
//! operator has signed for this URL, method and body within the last minute, and that was not used
//! before.

use super::super::RelayState;
use crate::hex;
use crate::relay_url::{RelayName, RelayUrl};
use crate::store::Event;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Uri;
use hyper::header::{AUTHORIZATION, HOST};
use hyper::http::request::Parts;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// NIP-98: the kind of the event.
const HTTP_AUTH: u16 = 27_235;
/// Maximum difference between its time and now, in seconds.
const MOST_AGE_S: u64 = 60;
/// Maximum length of the header.
const HEADER_BYTES: usize = 16 << 10;
/// Maximum number of remembered events; only those of operators are remembered.
const MOST_REMEMBERED: usize = 10_000;

/// The used events, each with the second from which it is too old.
#[derive(Default)]
pub(super) struct Requests(Mutex<HashMap<[u8; 32], u64>>);

impl Requests {
    /// Records the use of an event. Fails if it was used before.
    fn is_first(&self, event: &Event, now: u64) -> Result<(), &'static str> {
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        used.retain(|_, until| *until >= now);
        if used.len() >= MOST_REMEMBERED {
            return Err("too many requests in a minute");
        }
        let until = event.item().created_at.saturating_add(MOST_AGE_S);
        match used.insert(event.item().id, until) {
            Some(_) => Err("the event was used before; sign a new one for each request"),
            None => Ok(()),
        }
    }
}

/// The signer of a request.
pub(super) struct Caller {
    /// The methods that may be called; `None` for all, if the signer is an operator.
    methods: Option<Vec<String>>,
}

impl Caller {
    /// Whether the method may be called. Everyone may ask for the supported methods.
    pub(super) fn may_call(&self, method: &str) -> bool {
        let is_granted = |methods: &Vec<String>| methods.iter().any(|it| it == method);
        method == "supportedmethods" || self.methods.as_ref().is_none_or(is_granted)
    }
}

/// The signer of the request: an operator, or a key to which an operator has assigned some methods.
///
/// # Errors
/// The fault of the event.
pub(super) fn authorize(
    head: &Parts,
    body: &[u8],
    relay: &RelayState,
) -> Result<Caller, &'static str> {
    let config = relay.config();
    let event = read(head)?;
    if event.kind() != HTTP_AUTH {
        return Err("the event's kind is not 27235");
    }
    let is_operator = config.moderation.operators.contains(event.pubkey());
    let list = relay.admission.moderation().current();
    let methods: Vec<String> = list.methods_of(event.pubkey()).map(ToOwned::to_owned).collect();
    if !is_operator && methods.is_empty() {
        return Err("the key is not one of moderation.operators");
    }
    let now = relay.service.now();
    if event.item().created_at.abs_diff(now) > MOST_AGE_S {
        return Err("the event's created_at is more than 60 seconds from now");
    }
    let only = |name: &str| match <[String; 1]>::try_from(event.tag_values(name)) {
        Ok([value]) => Some(value),
        Err(_) => None,
    };
    let configured = RelayUrl::parse(&config.auth.relay_url).ok().map(|url| url.name());
    let host = || RelayName::of_host(head.headers.get(HOST)?.to_str().ok()?);
    let us = configured.or_else(host).ok_or("the request names no Host")?;
    if !only("u").is_some_and(|url| is_url(&url, &us, &head.uri)) {
        return Err("the event's u tag is not the URL of this relay");
    }
    if only("method").as_deref() != Some(head.method.as_str()) {
        return Err("the event's method tag is not POST");
    }
    let payload = hex::encode(&Sha256::digest(body));
    if !only("payload").is_some_and(|hash| hash.eq_ignore_ascii_case(&payload)) {
        return Err("the event's payload tag is not the SHA-256 of the body");
    }
    let event = event.verify().map_err(|_| "the event's id or signature is wrong")?;
    relay.management.requests.is_first(&event, now)?;
    Ok(Caller { methods: (!is_operator).then_some(methods) })
}

fn read(head: &Parts) -> Result<Event, &'static str> {
    let header = head.headers.get(AUTHORIZATION).ok_or("there is no Authorization header")?;
    let text = header.to_str().map_err(|_| "the Authorization header is no text")?;
    let base64 = match text.split_once(' ') {
        Some((scheme, base64)) if scheme.eq_ignore_ascii_case("nostr") => base64.trim(),
        _ => return Err("the Authorization header is not \"Nostr BASE64\""),
    };
    let json = (base64.len() <= HEADER_BYTES).then(|| STANDARD.decode(base64).ok()).flatten();
    let json = json.and_then(|json| String::from_utf8(json).ok());
    let event = json.and_then(|json| Event::parse(&json).ok());
    event.ok_or("the Authorization header holds no event")
}

/// Whether a `u` tag names the relay and the request's path and query. Clients write the relay's
/// URL with either `ws` or `http`.
fn is_url(url: &str, us: &RelayName, request: &Uri) -> bool {
    let Ok(uri) = url.trim().parse::<Uri>() else { return false };
    let websocket = match uri.scheme_str() {
        Some("http") => url.trim().replacen("http", "ws", 1),
        Some("https") => url.trim().replacen("https", "wss", 1),
        _ => url.to_owned(),
    };
    let path = |uri: &Uri| uri.path().trim_end_matches('/').to_owned();
    us.is(&websocket) && path(&uri) == path(request) && uri.query() == request.query()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_host_path_and_query() {
        let us = RelayName::of_host("relay.example.com").unwrap();
        for (url, request, is) in [
            ("https://relay.example.com", "/", true),
            ("https://relay.example.com/", "/", true),
            ("wss://Relay.example.com", "/", true),
            ("http://relay.example.com:80/", "/", true),
            ("https://relay.example.com/?a=1", "/?a=1", true),
            ("https://relay.example.com/?a=1", "/", false),
            ("https://relay.example.com/", "/?a=1", false),
            ("https://relay.example.com/other", "/", false),
            ("https://relay.example.com.evil.example/", "/", false),
            ("relay.example.com", "/", false),
            ("", "/", false),
        ] {
            assert_eq!(is_url(url, &us, &request.parse().unwrap()), is, "{url} {request}");
        }
    }
}
