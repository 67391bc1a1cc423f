//! The page for browsers: complete HTML, updated by server-sent events if JavaScript is on. It
//! loads nothing from other servers.

mod events;
mod facts;
mod render;
mod streams;

use super::RelayState;
use super::response::Body;
use crate::config::Config;
use crate::plot::escape;
use crate::server::accept::Streaming;
use crate::server::limits::{client_address, is_forwarded};
use crate::server::media_type::accepts;
use crate::server::own_host::is_own_host;
use crate::store::StoreError;
use events::subscribe;
use facts::{Facts, Kinds, Span};
use hyper::header::{
    CONNECTION, CONTENT_SECURITY_POLICY, HOST, HeaderName, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Request, Response, StatusCode};
use render::{Audience, Part};
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streams::Streams;
use tokio::sync::Mutex;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Maximum age of the data, for any number of viewers.
const AGE: Duration = Duration::from_millis(500);

/// State shared by all views of the page.
#[derive(Default)]
pub(super) struct PageState {
    kinds: Arc<Kinds>,
    // For anyone and for the operator, for each time range.
    views: [[Mutex<Option<PageView>>; Span::ALL.len()]; 2],
    streams: Streams,
}

/// The page at one time.
#[derive(Clone)]
struct PageView {
    made: Instant,
    facts: Arc<Facts>,
    parts: Arc<Vec<Part>>,
}

/// Whether a request is a browser's request for the page.
pub(super) fn is_wanted<B>(request: &Request<B>) -> bool {
    accepts(request.headers(), "text/html")
}

/// Responds with the whole page.
pub(super) async fn respond<B>(
    request: &Request<B>,
    relay: &Arc<RelayState>,
    from: IpAddr,
) -> Response<Body> {
    let visitor = Visitor::of(request, from);
    let view = match view(relay, visitor.viewer(relay), visitor.span).await {
        Ok(view) => view,
        Err(error) => return failed(&error),
    };
    let config = relay.config();
    let html =
        render::page(&relay.document(), &address(request, &config), &view.facts, &view.parts);
    let mut response = private(StatusCode::OK, "text/html; charset=utf-8", Body::from(html));
    if let Ok(policy) = HeaderValue::from_str(&content_security_policy()) {
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// The text for browsers if the page is turned off.
pub(super) fn turned_off(config: &Config) -> String {
    let name = escape(&config.relay.name);
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{name}</title><p>{name} is a Nostr \
         relay: connect to it with a Nostr client. Its operator can have a page here: <code>enabled = \
         true</code> in <code>[page]</code> of relay.toml.</p></html>\n"
    )
}

/// Responds with the changes from now on.
pub(super) fn respond_updates<B>(
    request: &Request<B>,
    relay: &Arc<RelayState>,
    from: IpAddr,
) -> Response<Body> {
    let trusted = &relay.config().connections.trusted_proxies;
    let client = client_address(from, request.headers(), trusted);
    let permit = match relay.page.streams.enter(client) {
        Ok(permit) => permit,
        Err(text) => {
            return private(StatusCode::SERVICE_UNAVAILABLE, "text/plain", Body::from(text));
        }
    };
    let updates = subscribe(Arc::clone(relay), Visitor::of(request, from), permit);
    let mut response = private(StatusCode::OK, "text/event-stream", updates);
    response.extensions_mut().insert(Streaming);
    // Nothing follows on this connection.
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    // A proxy that buffers responses (nginx) would never pass this one on.
    let name = HeaderName::from_static("x-accel-buffering");
    response.headers_mut().insert(name, HeaderValue::from_static("no"));
    response
}

/// The origin of a request, and the relay's name in it.
#[derive(Debug, Clone)]
struct Visitor {
    // `None` if only a proxy knows it.
    from: Option<IpAddr>,
    host: Option<HeaderValue>,
    // The time range to show.
    span: Span,
}

impl Visitor {
    fn of<B>(request: &Request<B>, from: IpAddr) -> Self {
        let host = request.headers().get(HOST).cloned();
        let span = Span::of_query(request.uri().query());
        Self { from: (!is_forwarded(request)).then_some(from), host, span }
    }

    /// The audience of the page, by the current configuration.
    fn viewer(&self, relay: &RelayState) -> Audience {
        let config = relay.config();
        let is_operator = self
            .from
            .is_some_and(|from| config.page.operator.iter().any(|network| network.contains(from)));
        if is_operator && is_own_host(self.host.as_ref(), &config) {
            Audience::Operator
        } else {
            Audience::Anyone
        }
    }
}

/// The page, at most `AGE` old.
async fn view(
    relay: &Arc<RelayState>,
    viewer: Audience,
    span: Span,
) -> Result<PageView, StoreError> {
    let [anyone, operator] = &relay.page.views;
    let [days, year, all] = if viewer == Audience::Operator { operator } else { anyone };
    let kept = match span {
        Span::Days90 => days,
        Span::Year => year,
        Span::All => all,
    };
    // One request renders the page; the others wait and use the result.
    let mut kept = kept.lock().await;
    if let Some(view) = kept.as_ref().filter(|view| view.made.elapsed() < AGE) {
        return Ok(view.clone());
    }
    let (shared, kinds) = (Arc::clone(relay), Arc::clone(&relay.page.kinds));
    let gather = move || Facts::gather(&shared, &kinds, viewer, span);
    let facts = tokio::task::spawn_blocking(gather).await;
    let facts = facts.unwrap_or(Err(StoreError::Closed))?;
    let parts = Arc::new(render::parts(&facts, viewer));
    let view = PageView { made: Instant::now(), facts: Arc::new(facts), parts };
    *kept = Some(view.clone());
    Ok(view)
}

/// The URL for clients: the configured one, or the one that the browser requested.
fn address<B>(request: &Request<B>, config: &Config) -> String {
    if !config.auth.relay_url.is_empty() {
        return config.auth.relay_url.clone();
    }
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let is_tls = header("x-forwarded-proto").is_some_and(|scheme| scheme.trim() == "https");
    let scheme = if is_tls { "wss" } else { "ws" };
    let fallback = config.relay.listen.reachable();
    format!("{scheme}://{}", header(HOST.as_str()).unwrap_or(&fallback))
}

fn failed(error: &StoreError) -> Response<Body> {
    tracing::warn!(%error, "the page could not be made");
    let text = "The store cannot be read; the relay's log says why.\n";
    private(StatusCode::SERVICE_UNAVAILABLE, "text/plain", Body::from(text.to_owned()))
}

/// A response that pages of other origins can neither read nor frame.
fn private(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (hyper::header::CONTENT_TYPE, content_type),
        (hyper::header::CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Allows only the page's own style, script and updates.
fn content_security_policy() -> String {
    let hash = |text: &str| base64(&Sha256::digest(text.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT),
    )
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) & 63;
            let digit = DIGITS.get(value as usize).filter(|_| digit <= chunk.len());
            text.push(digit.map_or('=', |digit| char::from(*digit)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64_is_that_of_the_rfc() {
        for (text, expected) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(super::base64(text.as_bytes()), expected);
        }
    }
}
