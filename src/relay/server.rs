//! Accepts connections and hands each to HTTP or, upgraded, to WebSocket.

use super::limits::{Full, Handshake, Place, client_address};
use super::{Shared, connection, http, stopped};
use crate::config::ConnectionsConfig;
use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, HOST, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// How long an answer has to be taken when the relay stops or the connection's time is up.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait when the system has no connection to give (out of descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A connection's buffer for reading. It is allocated at once, so that it counts a thousandfold.
const READ_BUFFER_BYTES: usize = 16 << 10;
/// What is gathered for one write to the socket.
const WRITE_BUFFER_BYTES: usize = 64 << 10;
/// The version of the WebSocket protocol (RFC 6455).
const VERSION: &str = "13";

/// Accepts until the relay stops.
pub(super) async fn accept(listener: TcpListener, relay: Arc<Shared>) {
    let mut stopping = relay.stopping.clone();
    let mut is_refused = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stopping) => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                is_refused = false;
                let most = relay.config().connections.half_open.size();
                let handshake = relay.counts.half_open.enter(most);
                tokio::spawn(serve(stream, peer.ip(), handshake, Arc::clone(&relay)));
            }
            Err(error) => {
                // Said once: it is tried again and again until there is one to be had.
                if !std::mem::replace(&mut is_refused, true) {
                    tracing::warn!(%error, "no connection can be accepted");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves HTTP until a WebSocket has come of it, or for as long as a handshake may take.
async fn serve(stream: TcpStream, peer: IpAddr, mut handshake: Handshake, relay: Arc<Shared>) {
    // Answers are small and awaited: never hold them back to fill a packet.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection cannot send at once");
    }
    let mut stopping = relay.stopping.clone();
    let patience = Duration::from_secs(relay.config().connections.handshake_timeout_s.get());
    let service = service_fn(move |request| {
        let relay = Arc::clone(&relay);
        async move { Ok::<_, Infallible>(respond(request, peer, relay).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut served = std::pin::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = handshake.pushed_out() => return,
        _ = tokio::time::timeout(patience, stopped(&mut stopping)) => {
            served.as_mut().graceful_shutdown();
            tokio::time::timeout(CLOSE_TIMEOUT, served).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended before its request was answered");
    }
}

async fn respond(
    mut request: Request<Incoming>,
    peer: IpAddr,
    relay: Arc<Shared>,
) -> Response<http::Body> {
    if !has_token(&request, UPGRADE, "websocket") {
        return http::respond(&request, &relay, peer).await;
    }
    let refused = &relay.metrics.connections_refused;
    let Some(key) = websocket_key(&request) else {
        refused.count("handshake");
        return http::refuse(StatusCode::BAD_REQUEST, "This is no WebSocket handshake.\n");
    };
    if request.headers().get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != VERSION) {
        refused.count("handshake");
        let mut response = http::refuse(StatusCode::UPGRADE_REQUIRED, "Use WebSocket 13.\n");
        response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION));
        return response;
    }
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    let place = match place(&request, peer, &relay) {
        Ok(place) => place,
        Err(full) => {
            refused.count(full.reason());
            return full_answer(full, &relay.config().connections);
        }
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                let config = websocket_config(relay.config().limits.message_bytes.size());
                let stream = TokioIo::new(upgraded);
                let socket =
                    WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
                connection::serve(relay, socket, place, host.as_deref()).await;
            }
            Err(error) => tracing::debug!(%error, "a connection could not be upgraded"),
        }
    });
    let mut response = Response::new(http::Body::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

/// Takes a place for the client's connection.
fn place(request: &Request<Incoming>, peer: IpAddr, relay: &Shared) -> Result<Place, Full> {
    let config = &relay.config().connections;
    let client = client_address(peer, request.headers(), &config.trusted_proxies);
    relay.counts.addresses.connect(client, config)
}

/// There is no place for a connection.
fn full_answer(full: Full, config: &ConnectionsConfig) -> Response<http::Body> {
    let (status, text) = match full {
        Full::InAll => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("All {} connections of this relay are taken.", config.in_all.get()),
        ),
        Full::Address => (
            StatusCode::TOO_MANY_REQUESTS,
            format!("Your address has {} connections already.", config.per_address.get()),
        ),
    };
    http::refuse(status, &format!("{text} Try again later.\n"))
}

/// RFC 6455, section 4.2.1: the key of a request that a WebSocket can come of.
fn websocket_key(request: &Request<Incoming>) -> Option<HeaderValue> {
    let is_handshake = request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && has_token(request, CONNECTION, "upgrade");
    request.headers().get(SEC_WEBSOCKET_KEY).filter(|_| is_handshake).cloned()
}

/// Whether one of a header's values, separated by commas, is `token`, in either case.
fn has_token(request: &Request<Incoming>, header: HeaderName, token: &str) -> bool {
    let values = request.headers().get_all(header);
    let mut tokens =
        values.iter().filter_map(|value| value.to_str().ok()).flat_map(|v| v.split(','));
    tokens.any(|value| value.trim().eq_ignore_ascii_case(token))
}

fn websocket_config(message_bytes: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_message_size(Some(message_bytes))
        .max_frame_size(Some(message_bytes))
}
