//! HTTP requests to the relay: a request is forwarded unchanged, with the client's address in the
//! header that the relay trusts, and the response is returned unchanged. Only the NIP-11 document
//! gets an additional NIP, and WebSocket connections are observed.

use super::{SidecarState, connection};
use crate::relay_url::RelayUrl;
use crate::server::limits::{client_address, remove_forwarding};
use crate::server::media_type::{NOSTR_JSON, accepts};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::{Body as HttpBody, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue,
    SEC_WEBSOCKET_EXTENSIONS, TRANSFER_ENCODING, UPGRADE,
};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// Timeout for connecting to the relay.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout for the relay's answer to a health check.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum length of a NIP-11 document.
const DOCUMENT_BYTES: usize = 1 << 20;
/// NIP-77.
const NEGENTROPY: u64 = 77;

/// Any error between the two relays.
type Trouble = Box<dyn std::error::Error + Send + Sync>;

/// The body of every response.
pub(super) type Body = BoxBody<Bytes, Trouble>;

/// Host and port of a `ws://` URL without further parts.
pub(super) fn authority(url: &str) -> Option<String> {
    let url = RelayUrl::parse(url).ok()?;
    (!url.is_encrypted() && url.is_bare()).then(|| url.authority())
}

/// Forwards a request and returns the relay's response.
pub(super) async fn respond(
    mut request: Request<Incoming>,
    from: IpAddr,
    shared: Arc<SidecarState>,
) -> Response<Body> {
    let trusted = &shared.service.config().connections.trusted_proxies;
    let client = client_address(from, request.headers(), trusted);
    let mut place = None;
    if request.headers().contains_key(UPGRADE) {
        if shared.moderation.current().blocks(client) {
            shared.service.metrics.connections_refused.count("banned");
            return refuse(StatusCode::FORBIDDEN, "Your address is banned.\n".to_owned());
        }
        match shared.service.place(&request, from) {
            Ok(taken) => place = Some(taken),
            Err((status, text)) => return refuse(status, text),
        }
    }
    let wants_document = request.method() == Method::GET && accepts(request.headers(), NOSTR_JSON);
    let is_trusted = trusted.iter().any(|network| network.contains(from));
    let headers = request.headers_mut();
    // Compressed messages could not be parsed.
    headers.remove(SEC_WEBSOCKET_EXTENSIONS);
    if wants_document {
        headers.remove(ACCEPT_ENCODING);
    }
    // Headers about the client's address count only from a trusted proxy.
    if !is_trusted {
        remove_forwarding(headers);
    }
    if let Ok(address) = HeaderValue::from_str(&client.to_string()) {
        headers.insert(shared.forward_header.clone(), address);
    }
    let upgrade = place.map(|place| (hyper::upgrade::on(&mut request), place));
    let mut response = match forward(request, &shared.relay).await {
        Ok(response) => response,
        Err(error) => {
            if let Some(times) = shared.unanswered.due() {
                tracing::warn!(relay = %shared.relay, %error, times, "the relay does not answer");
            }
            let text = "The relay behind this address does not answer.\n".to_owned();
            return refuse(StatusCode::BAD_GATEWAY, text);
        }
    };
    let is_switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if let Some((client, place)) = upgrade.filter(|_| is_switched) {
        let relay = hyper::upgrade::on(&mut response);
        response.headers_mut().remove(SEC_WEBSOCKET_EXTENSIONS);
        tokio::spawn(async move {
            match tokio::try_join!(client, relay) {
                Ok((client, relay)) => connection::run(client, relay, place, shared).await,
                Err(error) => tracing::debug!(%error, "a connection could not be upgraded"),
            }
        });
    } else if wants_document && response.status() == StatusCode::OK {
        return with_negentropy(response).await;
    }
    response.map(|body| body.map_err(Into::into).boxed())
}

/// Checks that the relay answers.
pub(super) async fn ask(relay: &str) -> Result<(), Trouble> {
    let request = Request::get("/").header(HOST, relay).header(ACCEPT, NOSTR_JSON);
    let answered = forward(request.body(Empty::<Bytes>::new())?, relay);
    match tokio::time::timeout(ASK_TIMEOUT, answered).await {
        Ok(answered) => answered.map(drop),
        Err(_) => Err(format!("nothing within {} s", ASK_TIMEOUT.as_secs()).into()),
    }
}

async fn forward<B>(request: Request<B>, relay: &str) -> Result<Response<Incoming>, Trouble>
where
    B: HttpBody<Data: Send, Error: Into<Trouble>> + Send + 'static,
{
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(relay)).await??;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to the relay ended");
        }
    });
    Ok(sender.send_request(request).await?)
}

/// NIP-11: the relay's own document, with NIP-77 added to the supported NIPs.
async fn with_negentropy(response: Response<Incoming>) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    let Ok(body) = Limited::new(body, DOCUMENT_BYTES).collect().await else {
        let text = "The relay's description of itself could not be read.\n".to_owned();
        return refuse(StatusCode::BAD_GATEWAY, text);
    };
    let body = body.to_bytes();
    let body = match serde_json::from_slice::<Value>(&body) {
        Ok(Value::Object(mut document)) => {
            let nips = document.entry("supported_nips").or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(nips) = nips
                && !nips.contains(&Value::from(NEGENTROPY))
            {
                nips.push(Value::from(NEGENTROPY));
            }
            Bytes::from(Value::Object(document).to_string())
        }
        _ => body,
    };
    // The body is complete now, however it was transferred.
    head.headers.remove(TRANSFER_ENCODING);
    head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    Response::from_parts(head, whole(body))
}

fn refuse(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(whole(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}
